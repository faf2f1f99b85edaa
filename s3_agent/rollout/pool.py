"""The worker pool: a supervisor over worker processes, each claiming for itself.

A worker that dies is started again under its own number and adopts what it had claimed, so that no rollout is lost with
it. On SIGTERM and SIGINT the workers finish what they hold.
"""

import asyncio
import multiprocessing
import os
import signal
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

import structlog

from s3_agent.errors import S3AgentError
from s3_agent.rollout.worker import Worker, WorkerSettings

log = structlog.get_logger()

# What loading a tokenizer imports: once for all workers instead of 4 s and 360 MB in each.
PRELOADED = [
    "s3_agent.rollout.worker",
    "transformers.models.auto.tokenization_auto",
    "transformers.modeling_utils",
]
GATEWAY_LOST = 75  # EX_TEMPFAIL: a restart would meet the same lost gateway
POOL_LOST = 1
SUPERVISE_S = 0.2
FEWEST_SECONDS_BETWEEN_RESTARTS = 1.0


async def _run_worker(settings: WorkerSettings, index: int) -> None:
    worker = Worker(settings, index)
    loop = asyncio.get_running_loop()
    if (pool := multiprocessing.parent_process()) is not None:
        # Its rollouts are adopted by the pool that is started again; two workers must not end one rollout.
        loop.add_reader(pool.sentinel, os._exit, POOL_LOST)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    await worker.run()


def _worker_main(settings_json: str, index: int) -> None:
    try:
        asyncio.run(_run_worker(WorkerSettings.model_validate_json(settings_json), index))
    except S3AgentError as error:
        log.error("worker ended", worker=index, boundary=error.boundary, error=str(error))
        raise SystemExit(GATEWAY_LOST) from error


class WorkerPool:
    """`processes` workers with the same settings."""

    def __init__(self, settings: WorkerSettings, *, processes: int) -> None:
        self._settings_json = settings.model_dump_json()
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._processes: list[BaseProcess] = [self._start(index) for index in range(processes)]
        self._stopping = False

    def _start(self, index: int) -> BaseProcess:
        process = self._context.Process(
            target=_worker_main, args=(self._settings_json, index), name=f"worker-{index}", daemon=True
        )
        process.start()
        return process

    def stop(self, *_: object) -> None:
        """Ask every worker to finish what it holds; `run` passes it on, also to one that is just being started."""
        self._stopping = True

    def run(self) -> int:
        """Supervise until stopped or until the gateway is lost; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        while not self._stopping:
            for index, process in enumerate(self._processes):
                if process.is_alive():
                    continue
                if process.exitcode == GATEWAY_LOST:
                    log.error("a worker could not go on; the pool ends", worker=index)
                    self.stop()
                    break
                log.warning("worker died and is started again", worker=index, exit_code=process.exitcode)
                time.sleep(FEWEST_SECONDS_BETWEEN_RESTARTS)
                self._processes[index] = self._start(index)
            time.sleep(SUPERVISE_S)
        for process in self._processes:
            if process.is_alive():
                process.terminate()
        for process in self._processes:
            process.join()
        return max(0, *(process.exitcode or 0 for process in self._processes))
