"""Worker processes as actors of a Ray cluster. They belong to the pool's process and end with it.

A native worker is one actor; an env-contract class is played by an actor that forks for each attempt, as the local
launcher does. A cluster that runs already is joined and left running; without an address a Ray of our own is started
on 127.0.0.1 and ended with the pool.
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

from s3_agent.errors import LaunchError
from s3_agent.rollout.jobs import AttemptResult, Job
from s3_agent.rollout.pool.launcher import READY_WITHIN_S, LocalLauncher, WorkerLost
from s3_agent.rollout.ray_address import LOOPBACK, use_loopback
from s3_agent.rollout.worker.native import RecipeAgent, WorkerSettings, native_class
from s3_agent.rollout.worker.worker import NativeWorker


class _NativeActor:
    def __init__(self, settings_json: str) -> None:
        settings = WorkerSettings.model_validate_json(settings_json)
        RecipeAgent.preload(settings)
        for agent_class in settings.native_agents:
            native_class(agent_class)
        self._worker = NativeWorker(settings)

    async def ready(self) -> None:
        """Returns once the actor can play."""

    async def play(self, job_json: str) -> str:
        return (await self._worker.play(Job.model_validate_json(job_json))).model_dump_json()

    async def ended(self) -> None:
        """Never returns: the call fails when the actor is gone."""
        await asyncio.Event().wait()


class _ForkedActor:
    def __init__(self, settings_json: str, agent_class: str, names: tuple[str, ...]) -> None:
        self._launcher = LocalLauncher(WorkerSettings.model_validate_json(settings_json))
        self._agent_class, self._names = agent_class, names

    async def ready(self) -> None:
        self._link = await self._launcher.start_forked(self._agent_class, names=self._names)

    async def play(self, job_json: str) -> str:
        return (await self._link.play(Job.model_validate_json(job_json))).model_dump_json()

    async def ended(self) -> str:
        return await self._link.wait_lost()


class RayLink:
    """The supervisor's end of an actor."""

    def __init__(self, ray: Any, name: str, actor: Any) -> None:
        self.name = name
        self._ray, self._actor = ray, actor
        self._lost = asyncio.ensure_future(self._watch())

    async def ready(self) -> None:
        """Raises WorkerLost when the actor could not be made."""
        async with asyncio.timeout(READY_WITHIN_S):
            await self._answer(self._actor.ready.remote())

    async def _answer[T](self, reference: Awaitable[T]) -> T:
        try:
            return await reference
        except self._ray.exceptions.RayTaskError as cause:
            raise WorkerLost(str(cause.cause or cause)) from cause
        except self._ray.exceptions.RayError as cause:
            raise WorkerLost(str(cause).splitlines()[0]) from cause

    async def _watch(self) -> str:
        try:
            return await self._answer(self._actor.ended.remote()) or "it ended"
        except WorkerLost as cause:
            return str(cause)

    async def play(self, job: Job) -> AttemptResult:
        reference = self._actor.play.remote(job.as_json())
        try:
            return AttemptResult.model_validate_json(await self._answer(reference))
        except ValueError as cause:
            self.kill()
            raise WorkerLost(f"it sent something that is not a report: {str(cause)[:300]}") from cause
        except asyncio.CancelledError:
            self._ray.cancel(reference)
            raise

    async def wait_lost(self) -> str:
        return await asyncio.shield(self._lost)

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor)


class RayLauncher:
    """Starts workers on the cluster at `address`, or on a Ray of our own without one."""

    def __init__(self, settings: WorkerSettings, *, address: str | None) -> None:
        use_loopback(address)
        try:
            import ray
        except ImportError as cause:
            raise LaunchError("--launcher ray needs Ray", remedy="pip install 'ray[default]==2.60.0'") from cause
        RecipeAgent.preload(settings)  # fails here, before any actor is started, if no actor could work
        self._ray, self._settings = ray, settings.model_dump_json()
        self._concurrency = settings.concurrency
        self._links: list[RayLink] = []
        self._number = 0
        own = {} if address else {"_node_ip_address": LOOPBACK, "include_dashboard": False}
        try:
            # "local" starts one, whatever other Ray this machine runs.
            ray.init(address=address or "local", log_to_driver=False, namespace="s3-agent", **own)
        except (ConnectionError, RuntimeError, ValueError) as cause:
            raise LaunchError(
                f"Ray at {address or 'this machine'} can not be used: {cause}",
                remedy="give the address of a running cluster with --ray-address, of the same Ray and Python version",
            ) from cause

    async def _start(self, actor_class: type, name: str, *arguments: Any, concurrency: int) -> RayLink:
        # Actors wait for services: the pool's numbers bound them, not Ray's count of processors.
        options = {"num_cpus": 0, "max_concurrency": concurrency, "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(actor_class).options(**options).remote(self._settings, *arguments)
        link = RayLink(self._ray, name, actor)
        try:
            await link.ready()
        except BaseException:
            link.kill()
            raise
        self._links.append(link)
        return link

    async def start_native(self, index: int) -> RayLink:
        return await self._start(_NativeActor, f"worker-{index}", concurrency=self._concurrency + 2)

    async def start_forked(self, agent_class: str, *, names: tuple[str, ...] = ()) -> RayLink:
        self._number += 1
        return await self._start(_ForkedActor, f"{agent_class}-{self._number}", agent_class, names, concurrency=3)

    async def retire(self, agent_class: str) -> None:
        """Nothing to do: each actor ends together with the process that it forks from."""

    async def close(self) -> None:
        for link in self._links:
            link.kill()
        # Ends a Ray that we started; a cluster that we joined keeps running.
        await asyncio.to_thread(self._ray.shutdown)
