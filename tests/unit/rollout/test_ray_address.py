"""A Ray on loopback is looked for on loopback, any other at the machine's own address."""

import os
import socket
from collections.abc import Iterator

import pytest

from s3_agent.rollout import ray_address
from s3_agent.rollout.ray_address import LOCAL, on_loopback_alone, use_loopback


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    with socket.create_server((request.param, 0)) as server:
        yield request.param, server.getsockname()[1]


@pytest.fixture(autouse=True)
def outer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another address of this machine, whatever network it has."""
    monkeypatch.setattr(ray_address, "_outer_address", lambda: "127.0.0.2")
    monkeypatch.setattr(socket.socket, "getpeername", lambda _: ("10.0.0.2", 1))


def test_who_listens_where(listening: tuple[str, int]) -> None:
    bound, port = listening
    assert on_loopback_alone(f"127.0.0.1:{port}") == (bound == "127.0.0.1")
    assert on_loopback_alone(f"localhost:{port}") == (bound == "127.0.0.1")


@pytest.mark.parametrize("address", ["10.0.0.2:6379", "ray://127.0.0.1:10001", "auto", "127.0.0.1"])
def test_other_addresses_are_left_to_ray(address: str) -> None:
    assert not on_loopback_alone(address)


def test_a_ray_of_our_own_stays_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    use_loopback("10.0.0.2:6379")
    assert not environment
    use_loopback(None)
    assert environment == LOCAL
