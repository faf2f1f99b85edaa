"""The error for a taken port names the process that needs it."""

import os
import socket
from collections.abc import Iterator

import pytest

from s3_agent.errors import LaunchError
from s3_agent.processes.ports import _is_loopback, reserve_port


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_zero_is_any_free_port() -> None:
    assert reserve_port("gateway", 0) > 0


def test_a_busy_port_names_part_holder_and_remedy(taken: int) -> None:
    with pytest.raises(LaunchError) as caught:
        reserve_port("generator", taken)
    text = str(caught.value)
    for expected in (
        f"generator can not have port {taken}",
        f"(pid {os.getpid()})",
        "generator.port=0",
        "generator.url=",
    ):
        assert expected in text


def test_a_port_taken_on_every_address_is_busy_too() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        with pytest.raises(LaunchError, match="can not have port"):
            reserve_port("retriever", listener.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"])
def test_loopback(address: str) -> None:
    assert _is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "10.0.0.5", "::", "fe80::1%eth0", "::ffff:10.0.0.5"])
def test_beyond_loopback(address: str) -> None:
    assert not _is_loopback(address)
