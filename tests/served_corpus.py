"""The retrieval server in a process of its own over a few rows, for tests that speak to it over HTTP."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

DEADLINE_S = 90.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def command(folder: Path, *, port: int, options: tuple[str, ...] = ("--build",)) -> list[str]:
    own = ["--corpus", str(folder / "corpus.jsonl"), "--index", str(folder / "index"), "--port", str(port)]
    return [sys.executable, "-m", "retrieval_server", *own, *options]


def write_corpus(folder: Path, rows: list[Any]) -> None:
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def await_status(url: str, status: int, process: subprocess.Popen[bytes]) -> httpx.Response:
    """The first answer of `url` with that status."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            response = httpx.get(url)
        except httpx.TransportError:
            response = None
        if response is not None and response.status_code == status:
            return response
        time.sleep(0.1)
    raise AssertionError(f"{url} did not answer {status} within {DEADLINE_S:.0f} s")


@contextmanager
def serving_rows(folder: Path, rows: list[Any], *options: str) -> Iterator[str]:
    """The URL of a ready server over these rows."""
    write_corpus(folder, rows)
    port = free_port()
    process = subprocess.Popen(command(folder, port=port, options=("--build", *options)))
    try:
        await_status(f"http://127.0.0.1:{port}/readyz", 200, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


class Restartable:
    """A retrieval server in a process of its own, which can be killed and started again at its port."""

    def __init__(self, command: list[str], port: int) -> None:
        self._command = command
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)

    def ready(self) -> None:
        await_status(f"{self.url}/readyz", 200, self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def requests(self) -> float:
        """The searches that it has answered since it was started."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        counts = (line for line in lines if line.startswith("retrieval_requests_total") and "/documents" not in line)
        return sum(float(line.rpartition(" ")[2]) for line in counts)
