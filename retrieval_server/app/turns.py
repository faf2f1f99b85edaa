"""Runs long jobs one after the other in a thread of their own, beside the searches: `POST /grep` and `/rerank`."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from retrieval_server.batcher import LONGEST_RETRY_AFTER_S, Overloaded

Stopped = Callable[[], bool]
"""Whether nobody waits for the job any more."""


class Turns:
    """A thread, and a queue of at most `waiting` jobs. Belongs to one event loop."""

    def __init__(self, name: str, *, waiting: int, expected_s: float) -> None:
        """`expected_s`: seconds of one job, from which `Retry-After` is computed."""
        self._most, self._expected_s = waiting, expected_s
        self._open = 0
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run[T](self, job: Callable[[Stopped], T]) -> T:
        """The result of `job`. Raises Overloaded if too many wait. If cancelled, the job is told that it can stop."""
        if self._open > self._most:
            raise Overloaded(retry_after_s=min(LONGEST_RETRY_AFTER_S, max(1, round(self._open * self._expected_s))))
        gone = threading.Event()
        self._open += 1
        try:
            work = asyncio.get_running_loop().run_in_executor
            return await work(self._thread, job, lambda: gone.is_set() or self._closed)
        finally:
            self._open -= 1
            gone.set()

    def close(self) -> None:
        """Tell the running job to stop, and run no other."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
