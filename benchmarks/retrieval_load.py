"""A closed-loop load generator for POST /retrieve, lean because it shares the machine with the measured server.

Each client is one connection that sends one query, awaits the answer and sends the next. Requests are encoded before
the clock starts; of an answer only the status, the length and the first passage's id are checked. Prints one JSON
object.

    python benchmarks/retrieval_load.py --port 3000 --clients 128 --seconds 20 --queries queries.json [--first 0]

`queries.json` holds a list of [query, expected first id].
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import cast

import uvloop


def request_bytes(query: str, *, port: int, topk: int) -> bytes:
    body = json.dumps({"queries": [query], "topk": topk, "return_scores": True}).encode()
    head = f"POST /retrieve HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body


class Client(asyncio.Protocol):
    """One connection. Takes queries from `load` until none remain."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not instances of that class
        self._next()

    def _next(self) -> None:
        work = self._load.take()
        if work is None:
            self._transport.close()
            return
        request, self._wanted = work
        self._begin = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, separator, body = self._answer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        end = time.perf_counter()
        right = head.startswith(b"HTTP/1.1 200") and body.startswith(self._wanted)
        self._load.done(self._begin, end, right=right)
        self._answer = b""
        self._next()

    def connection_lost(self, _: Exception | None) -> None:
        self._load.left()


class Load:
    """The state that all clients share: the queries to send, and the times of answered ones."""

    def __init__(self, work: list[tuple[bytes, bytes]], *, clients: int, seconds: float) -> None:
        self._work = iter(work)
        self._clients = clients
        self._seconds = seconds
        self._end = float("inf")
        self.times: list[tuple[float, float]] = []
        self.wrong = 0
        self.exhausted = False
        self.finished = asyncio.Event()

    def take(self) -> tuple[bytes, bytes] | None:
        if self._end == float("inf"):
            self._end = time.perf_counter() + self._seconds
        if time.perf_counter() >= self._end:
            return None
        work = next(self._work, None)
        self.exhausted |= work is None
        return work

    def done(self, begin: float, end: float, *, right: bool) -> None:
        self.times.append((begin, end))
        self.wrong += not right

    def left(self) -> None:
        self._clients -= 1
        if not self._clients:
            self.finished.set()


async def drive(load: Load, *, port: int, clients: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(clients):
        await loop.create_connection(lambda: Client(load), "127.0.0.1", port)
    await load.finished.wait()


def summary(load: Load, *, seconds: float) -> dict[str, float | int | bool]:
    """Throughput from the first request to the last answer (the clients' last batch and its time count in full)."""
    spans = sorted(end - begin for begin, end in load.times)
    took = max(end for _, end in load.times) - min(begin for begin, _ in load.times)
    cuts = statistics.quantiles(spans, n=100) if len(spans) > 1 else spans * 99
    return {
        "answers": len(spans),
        "wrong": load.wrong,
        "exhausted": load.exhausted,
        "per_second": len(spans) / took,
        "p50_s": cuts[49],
        "p95_s": cuts[94],
        "p99_s": cuts[98],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A closed-loop load on POST /retrieve.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--topk", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="skip this many queries, so that none is sent twice")
    parser.add_argument("--queries", type=Path, required=True)
    options = parser.parse_args()
    pairs = json.loads(options.queries.read_text(encoding="utf-8"))[options.first :]
    start = b'{"result":[[{"document":{"id":"%b"'
    work = [
        (request_bytes(query, port=options.port, topk=options.topk), start % wanted.encode()) for query, wanted in pairs
    ]

    async def run() -> Load:
        load = Load(work, clients=options.clients, seconds=options.seconds)
        await drive(load, port=options.port, clients=options.clients)
        return load

    print(json.dumps(summary(uvloop.run(run()), seconds=options.seconds)))


if __name__ == "__main__":
    main()
