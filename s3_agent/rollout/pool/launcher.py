"""Starts worker processes and holds the supervisor's end of each.

The crew uses only the protocols `Launcher` and `Link`, so that `ray_launcher` can replace the processes of this machine
by actors of a cluster.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Protocol

import structlog

from s3_agent.errors import ConfigError
from s3_agent.rollout.cancelling import cancel_line
from s3_agent.rollout.jobs import AttemptResult, Job
from s3_agent.rollout.worker.forked import UNSAFE_TO_PRELOAD
from s3_agent.rollout.worker.native import WorkerSettings
from s3_agent.rollout.worker.worker import LONGEST_MESSAGE

log = structlog.get_logger()

READY_WITHIN_S = 120.0
PRELOADED_WITHIN_S = 30.0
REASON_WITHIN_S = 1.0
ENDED_WITHIN_S = 5.0


class WorkerLost(Exception):
    """The worker process has died, or can not be reached any more."""


class Link(Protocol):
    """One worker as the supervisor sees it."""

    name: str

    async def play(self, job: Job) -> AttemptResult:
        """Play one attempt. Raises WorkerLost when the process dies first, ConfigError for a job that can not be sent.

        Cancelling the call gives the attempt up.
        """
        ...

    async def wait_lost(self) -> str:
        """Returns when the worker is gone, with the reason."""
        ...

    def kill(self) -> None:
        """End the process at once; never raises."""
        ...


class Launcher(Protocol):
    """Starts workers somewhere."""

    async def start_native(self, index: int) -> Link:
        """A worker that plays native agents, many at a time. Raises S3AgentError when none could work."""
        ...

    async def start_forked(self, agent_class: str, *, names: tuple[str, ...] = ()) -> Link:
        """A worker that plays one env-contract class, one attempt at a time.

        `names` are the variables, besides AGL's own, that only a rollout's environment holds.
        """
        ...

    async def retire(self, agent_class: str) -> None:
        """End the process that workers of the class are forked from. No such worker is left."""
        ...

    async def close(self) -> None:
        """End everything that was started."""
        ...


class SocketLink:
    """A worker at the other end of a socket that carries JSON lines."""

    def __init__(self, name: str, pid: int, zygote: "Zygote") -> None:
        self.name, self.pid = name, pid
        self._zygote = zygote
        self._waiting: dict[str, asyncio.Future[AttemptResult]] = {}
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def connect(self, connection: socket.socket) -> None:
        """Take over the supervisor's end."""
        reader, self._writer = await asyncio.open_unix_connection(sock=connection, limit=LONGEST_MESSAGE)
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        garbled = ""
        try:
            while line := await reader.readline():
                report = AttemptResult.model_validate_json(line)
                if (waiting := self._waiting.get(report.attempt_id)) and not waiting.done():
                    waiting.set_result(report)
        except ConnectionError:
            pass
        except ValueError as cause:  # the end of a report can not be recognized any more
            garbled = f"it sent something that is not a report: {str(cause)[:300]}"
            self.kill()
        self._writer.close()
        reason = await self._zygote.reason(self.pid)
        reason = garbled or reason
        self._lost.set_result(reason)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(WorkerLost(reason))

    async def play(self, job: Job) -> AttemptResult:
        if self._lost.done() or self._writer.is_closing():
            raise WorkerLost("it had ended already")
        sent = job.as_json().encode() + b"\n"
        future = self._waiting[job.attempt_id] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(sent)
            return await future
        except asyncio.CancelledError:
            self._writer.write(cancel_line(job.attempt_id))
            raise
        finally:
            del self._waiting[job.attempt_id]

    async def wait_lost(self) -> str:
        return await asyncio.shield(self._lost)

    def close(self) -> None:
        """Close the socket; the worker sees that and ends, with everything that it runs."""
        self._writer.close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Zygote:
    """The supervisor's end of a zygote process."""

    def __init__(self, role: str, settings: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._control = ours
        self._loop = asyncio.get_running_loop()
        self._started: dict[int, asyncio.Future[int]] = {}
        self._exited: dict[int, asyncio.Future[int]] = {}
        self._links: set[SocketLink] = set()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "s3_agent.rollout.worker.zygote", role, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"} if role == "native" else None,
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(settings.encode())
            self.process.stdin.close()
        self._loop.add_reader(ours.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = self._control.recv(65_536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._end()
            return
        message = json.loads(data)
        if "ready" in message and not self._ready.done():
            self._ready.set_result(None)
        elif "error" in message and not self._ready.done():
            self._ready.set_exception(ConfigError(message["error"]))
        elif "started" in message:
            self._started.pop(message["started"]).set_result(message["pid"])
        elif "exited" in message:
            self._exit_code(message["exited"]).set_result(message["code"])

    def _exit_code(self, pid: int) -> asyncio.Future[int]:
        return self._exited.setdefault(pid, self._loop.create_future())

    def _end(self) -> None:
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        for future in (self._ready, *self._started.values()):
            if not future.done():
                future.set_exception(WorkerLost("the process that forks the workers has ended"))

    @property
    def alive(self) -> bool:
        """Whether it can fork."""
        return self._control.fileno() >= 0 and self.process.poll() is None

    async def ready(self, within_s: float) -> None:
        """Wait until it can fork. Raises ConfigError with what it could not load, WorkerLost when it has ended."""
        async with asyncio.timeout(within_s):
            await asyncio.shield(self._ready)

    async def fork(self, number: int, name: str) -> SocketLink:
        """One more worker."""
        ours, theirs = socket.socketpair()
        future = self._started[number] = self._loop.create_future()
        try:
            with theirs:
                socket.send_fds(self._control, [str(number).encode()], [theirs.fileno()])
            link = SocketLink(name, await future, self)
        except OSError as cause:
            ours.close()
            raise WorkerLost(f"no worker can be forked: {cause}") from cause
        except WorkerLost:
            ours.close()
            raise
        await link.connect(ours)
        self._links.add(link)
        return link

    async def reason(self, pid: int) -> str:
        """How a worker of it ended."""
        self._links = {link for link in self._links if link.pid != pid}
        try:
            code = await asyncio.wait_for(asyncio.shield(self._exit_code(pid)), REASON_WITHIN_S)
        except TimeoutError:
            return "it ended"
        finally:
            self._exited.pop(pid, None)
        return f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with code {code}"

    async def close(self) -> None:
        """End it with all its workers."""
        for link in self._links:
            link.close()
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
        try:
            await asyncio.to_thread(self.process.wait, ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class LocalLauncher:
    """Workers on this machine, forked from zygotes: one for all native agents, one for each env-contract class."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._zygotes: dict[str | None, Zygote] = {}
        self._unsafe: set[str] = set()
        self._locks: dict[str | None, asyncio.Lock] = {}
        self._number = 0

    async def start_native(self, index: int) -> SocketLink:
        async with self._locks.setdefault(None, asyncio.Lock()):
            zygote = self._zygotes.get(None)
            if zygote is None or not zygote.alive:
                zygote = await self._replace(None, Zygote("native", self._settings.model_dump_json()))
                await zygote.ready(READY_WITHIN_S)
        return await self._fork(zygote, f"worker-{index}")

    async def start_forked(self, agent_class: str, *, names: tuple[str, ...] = ()) -> SocketLink:
        async with self._locks.setdefault(agent_class, asyncio.Lock()):
            zygote = self._zygotes.get(agent_class)
            if zygote is None or not zygote.alive:
                zygote = await self._forked_zygote(agent_class, names)
        return await self._fork(zygote, f"{agent_class}-{self._number}")

    async def _forked_zygote(self, agent_class: str, names: tuple[str, ...]) -> Zygote:
        preload = agent_class not in self._unsafe
        settings = {"agent_class": agent_class, "names": names, "preload": preload}
        zygote = await self._replace(agent_class, Zygote("forked", json.dumps(settings)))
        try:
            await zygote.ready(PRELOADED_WITHIN_S)
        except (WorkerLost, TimeoutError):
            if not preload:
                raise
            zygote.process.kill()
            if zygote.process.wait() == UNSAFE_TO_PRELOAD:
                log.info("the class is loaded again for each rollout", agent_class=agent_class)
            self._unsafe.add(agent_class)
            return await self._forked_zygote(agent_class, names)
        return zygote

    async def retire(self, agent_class: str) -> None:
        if zygote := self._zygotes.pop(agent_class, None):
            await zygote.close()

    async def _replace(self, key: str | None, zygote: Zygote) -> Zygote:
        if old := self._zygotes.get(key):
            await old.close()
        self._zygotes[key] = zygote
        return zygote

    async def _fork(self, zygote: Zygote, name: str) -> SocketLink:
        self._number += 1
        return await zygote.fork(self._number, name)

    async def close(self) -> None:
        await asyncio.gather(*(zygote.close() for zygote in self._zygotes.values()))
