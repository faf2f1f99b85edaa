"""Starts the processes of a run in dependency order, watches all of them, and stops exactly those that it started.

Used by every job that needs services. Every process that a run starts, including Ray's daemons, has the run's marker in
its environment, so that the run finds it even after its parent has changed. No process is ever searched by name. When
the launcher itself is killed, its processes are asked to end.
"""

import asyncio
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import httpx
import psutil
import structlog

from s3_agent.clients.connections import client
from s3_agent.errors import LaunchError
from s3_agent.machine.inherited import SHORT, inherited, temporary_folder
from s3_agent.preloaded import VARIABLE, server_command, write_executable
from s3_agent.processes.requirements import require_for_process
from s3_agent.rollout.first_ended import until_first
from s3_agent.rollout.process import ending_with_parent

log = structlog.get_logger()

MARKER = "S3_AGENT_RUN"
PART = "S3_AGENT_PART"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TICK_S = 0.25
STOP_S = 15.0
KILL_S = 10.0
LAST_LINES = 12
PRELOADED = "preloaded"


@dataclass(frozen=True, slots=True)
class Part:
    """One process of a run. `ready_url` answers 200 when others may use it; `needs` names processes that must be ready.

    If its command begins with our interpreter and it has `preload`, it is forked from a process that has already loaded
    these modules. All such processes of the run are forked from the same one.
    """

    name: str
    command: Sequence[str]
    log: Path
    ready_url: str | None = None
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    remedy: str = "read its log"
    ready_within_s: float = 900.0


def last_lines(log: Path, count: int = LAST_LINES) -> str:
    """The end of a log, indented."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "    (no log)"
    return "\n".join(f"    {line[:300]}" for line in lines[-count:]) or "    (empty)"


def own_processes(run_id: str) -> list[psutil.Process]:
    """Every process with the run's marker, except this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARKER) == run_id:
                found.append(process)
        except psutil.Error:
            continue
    return found


def scratch_folder(run_id: str) -> Path:
    """The folder of a run's sockets and sessions, named after its mark; short, because their own paths are long.

    Raises LaunchError when no temporary folder has a short path.
    """
    if (folder := temporary_folder()) is None:
        raise LaunchError(
            f"the temporary folder {tempfile.gettempdir()} has a path that is too long for the sockets of Ray and vLLM "
            f"({SHORT} bytes with the run's own folder), and neither /tmp nor /var/tmp can be written to",
            remedy="set TMPDIR to a folder that you own, with a short path",
        )
    return folder / f"s3-{hashlib.blake2b(run_id.encode(), digest_size=4).hexdigest()}"


def make_private(folder: Path) -> None:
    """Create an empty folder that no other user can enter; it replaces one that an earlier process of ours left.

    Other users of a shared temporary folder may know its name. Raises LaunchError when another user's folder, or a
    link, already has that name.
    """
    try:
        folder.mkdir(mode=0o700)
        return
    except FileExistsError:
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise LaunchError(
            f"{folder} already exists and is not a folder of this user",
            remedy="ask its owner to remove it, or set TMPDIR to a folder that you own",
        )
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue


def _with_preloaded(parts: Sequence[Part], folder: Path) -> list[Part]:
    """The processes; first the one in `folder` from which some of them are forked, if any."""
    forked = [part for part in parts if part.preload]
    if not forked:
        return list(parts)
    executable = str(write_executable(folder))
    if not os.access(executable, os.X_OK):  # the file system of the temporary folder does not allow programs to run
        log.info("every process loads its own modules, because no program can run in the folder", folder=str(folder))
        return list(parts)
    server = Part(
        name=PRELOADED,
        command=server_command(folder, [*dict.fromkeys(module for part in forked for module in part.preload)]),
        log=forked[0].log.with_name(f"{PRELOADED}.log"),
        environment={name: value for part in forked for name, value in part.environment.items()},
        remedy="the installed packages do not import: bash scripts/setup.sh",
    )
    return [
        server,
        *(
            replace(
                part,
                command=[executable, *part.command[1:]],
                environment={**part.environment, VARIABLE: executable},
            )
            if part.preload
            else part
            for part in parts
        ),
    ]


class Interrupted(SystemExit):
    """Ctrl-C or SIGTERM reached the launcher. If nothing catches it, the process ends with the shell's code for it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.code: int = 128 + number
        self.name = signal.Signals(number).name

    def __str__(self) -> str:
        return self.name


class Stack:
    """The processes of one run; a context manager that leaves none of them running."""

    def __init__(self, parts: Sequence[Part], *, run_id: str) -> None:
        for part in parts:
            require_for_process(part.name, part.command)
        self.run_id = run_id
        self._scratch = scratch_folder(run_id)
        make_private(self._scratch)
        self._parts = {part.name: part for part in _with_preloaded(parts, self._scratch)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ready: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._http = client(timeout=2.0)
        unknown = {need for part in parts for need in part.needs} - self._parts.keys()
        assert not unknown, f"needed, but not a process of this run: {unknown}"
        self._marks = {
            MARKER: run_id,
            # vLLM renames its processes through setproctitle, which would overwrite the environment that we read.
            "SPT_NOENV": "1",
            "TMPDIR": str(self._scratch),  # sockets and sessions of vLLM and Ray are removed with the run
        }

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._interrupt) for number in ENDING}
        if self._handlers[signal.SIGHUP] is signal.SIG_IGN:  # under nohup the launcher must survive a hang-up
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        try:
            if killed := self.stop():
                log.warning("some processes did not stop when asked and were killed", processes=killed)
        finally:
            self._http.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    @staticmethod
    def _interrupt(number: int, _: FrameType | None) -> None:
        for ending in ENDING:  # `timeout` sends its signal twice: the second must not end what the first begins
            signal.signal(ending, signal.SIG_IGN)
        raise Interrupted(number)

    @property
    def starting(self) -> list[str]:
        """The processes that are not ready yet."""
        return [name for name in self._parts if name not in self._ready]

    @property
    def start_up_s(self) -> dict[str, float]:
        """Seconds from start to ready, by process."""
        return {name: round(ready - self._started[name], 1) for name, ready in self._ready.items()}

    def run(self, job: str | None = None, *, tick: Callable[[], None] = lambda: None) -> None:
        """Start everything; with a `job`, return when that process has ended with success, else when all are ready.

        Raises LaunchError, which names the process that ended or did not become ready, its log and the remedy.
        """
        while True:
            for part in self._parts.values():
                self._advance(part)
            if self.ended_well(job):
                return
            if job is None and not self.starting:
                return
            tick()
            time.sleep(TICK_S)

    def ended_well(self, job: str | None = None) -> bool:
        """Whether the process `job` has ended with success. Raises LaunchError when any process ended in another
        way."""
        for name, process in self._running.items():
            if (code := process.poll()) is None:
                continue
            if name == job and code == 0:
                return True
            raise self._ended(self._parts[name], code)
        return False

    async def while_alive[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work and return its result. Raises LaunchError as soon as a process has ended, so that nothing waits
        for its answers."""
        results: list[T] = []

        async def do() -> None:
            results.append(await work)

        async def watch() -> None:
            while not self.ended_well():
                await asyncio.sleep(TICK_S)

        await until_first(do(), watch())
        return results[0]

    def _advance(self, part: Part) -> None:
        if part.name not in self._running:
            if all(need in self._ready for need in part.needs):
                self._start(part)
        elif part.name not in self._ready:
            if self._answers(part):
                self._ready[part.name] = time.monotonic()
            elif time.monotonic() - self._started[part.name] > part.ready_within_s:
                raise LaunchError(
                    f"{part.name} was not ready within {part.ready_within_s:.0f} s; its log {part.log} ends:\n"
                    f"{last_lines(part.log)}",
                    remedy=part.remedy,
                )

    def _start(self, part: Part) -> None:
        part.log.parent.mkdir(parents=True, exist_ok=True)
        with part.log.open("ab") as output:
            try:
                self._running[part.name] = subprocess.Popen(
                    ending_with_parent(part.command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**inherited(os.environ), **part.environment, **self._marks, PART: part.name},
                    start_new_session=True,
                )
            except OSError as cause:
                raise LaunchError(
                    f"{part.name} can not be started: {cause}; its log would be {part.log}", remedy=part.remedy
                ) from cause
        self._started[part.name] = time.monotonic()

    def _answers(self, part: Part) -> bool:
        if part.ready_url is None:
            return True
        try:
            return self._http.get(part.ready_url).status_code == 200
        except httpx.TransportError:
            return False

    @staticmethod
    def _ended(part: Part, code: int) -> LaunchError:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return LaunchError(f"{part.name} {how}; its log {part.log} ends:\n{last_lines(part.log)}", remedy=part.remedy)

    def _alive(self) -> list[str]:
        return [name for name, process in self._running.items() if process.poll() is None]

    def stop(self) -> int:
        """Ask every process of the run to stop, kill it after a grace period; returns how many had to be killed.

        A process is asked when those that need it have ended: the workers still report to the gateway how rollouts end.
        """
        waiting, deadline = dict(self._running), time.monotonic() + STOP_S
        while (alive := self._alive()) and time.monotonic() < deadline:
            needed = {need for name in alive for need in self._parts[name].needs}
            for name in [name for name in waiting if name not in needed]:
                waiting.pop(name).terminate()
            time.sleep(0.1)
        asked = own_processes(self.run_id)
        _signal(asked, signal.SIGTERM)
        psutil.wait_procs(asked, timeout=3.0)
        killed: set[int] = set()
        deadline = time.monotonic() + KILL_S
        # Search again, because a process may have forked during the last search.
        while (left := own_processes(self.run_id)) and time.monotonic() < deadline:
            _signal(left, signal.SIGKILL)
            killed |= {process.pid for process in left}
            psutil.wait_procs(left, timeout=0.5)
        for process in self._running.values():
            process.wait(timeout=10.0)
        return len(killed)
