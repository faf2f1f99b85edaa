"""Runs a pool to its end: one supervisor for each pool id on a machine, its signals, its view and its exit code."""

import asyncio
import contextlib
import hashlib
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import structlog

from s3_agent import event_loop
from s3_agent.errors import ConfigError, GatewayError, S3AgentError
from s3_agent.rollout.pool.launcher import Launcher, LocalLauncher
from s3_agent.rollout.pool.metrics import serve_metrics
from s3_agent.rollout.pool.monitor import Monitor
from s3_agent.rollout.pool.settings import PoolSettings
from s3_agent.rollout.pool.supervisor import Supervisor
from s3_agent.rollout.pool.view import show
from s3_agent.rollout.worker.native import WorkerSettings

log = structlog.get_logger()

GATEWAY_LOST = 75  # EX_TEMPFAIL: a restart would meet the same lost gateway
FAILED = 2


@contextmanager
def only_pool_of(pool_id: str, gateway_url: str) -> Iterator[None]:
    """Hold the pool id on this machine. Raises ConfigError while another process holds it.

    Two supervisors with one id would each adopt the other's rollouts. An abstract socket disappears with its process,
    however that ends, and leaves no file.
    """
    name = hashlib.sha256(f"{pool_id} {gateway_url}".encode()).hexdigest()
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0s3-agent-pool-{name}")
        except OSError as cause:
            raise ConfigError(
                f"a pool with the id {pool_id} works for {gateway_url} already",
                remedy="stop it, or give this one another --pool-id",
            ) from cause
        yield


async def _run(supervisor: Supervisor, view: AbstractContextManager[None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    with view:
        await supervisor.run()


def run_pool(
    settings: PoolSettings,
    worker_settings: WorkerSettings,
    *,
    launcher: Callable[[WorkerSettings], Launcher] = LocalLauncher,
    plain: bool = True,
    metrics_port: int | None = None,
) -> int:
    """Work until stopped by SIGTERM or SIGINT. Returns the exit code; 75 means that the gateway is lost."""
    monitor = Monitor()
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_pool_of(settings.pool_id, settings.gateway_url))
        if metrics_port is not None:
            stack.enter_context(serve_metrics(monitor, port=metrics_port))
        supervisor = Supervisor(settings, worker_settings, launcher(worker_settings), monitor=monitor)
        title = f"pool {settings.pool_id} at {settings.gateway_url}"
        try:
            event_loop.run(_run(supervisor, show(monitor, title=title, plain=plain)))
        except GatewayError as error:
            log.error("the gateway is lost; the pool ends", boundary=error.boundary, error=str(error))
            return GATEWAY_LOST
        except S3AgentError as error:
            log.error("the pool can not work", boundary=error.boundary, error=str(error))
            return FAILED
    return 0
