"""Plays env-contract classes, each attempt in its own fork, so that it leaves nothing behind for the next one.

The contract is the stock controller's (agentlightning 1.0.2, `controller/local_reconciler.py`): a class named
`module:Class` or `module.Class` without constructor arguments, whose `run()` may be a coroutine; input and addresses
come as environment variables; exit code 0 is success; the class posts its own reward. Standard library only, see
`process`.
"""

import atexit
import contextlib
import importlib
import inspect
import json
import os
import select
import signal
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from s3_agent.rollout.cancelling import cancelled_attempt
from s3_agent.rollout.process import adopt_orphans, die_with_parent, kill_children, reset_signals

CONTRACT = frozenset({"AGL_KEY", "AGL_OPENAI_BASE_URL", "AGL_EVENT_URL"})
OUTPUT_KEPT = 16_384
UNSAFE_TO_PRELOAD = 3
_IMPORTED = b"1"
_CHUNK = 65_536


def load_class(agent_class: str) -> type:
    """The class of that path, found as the stock controller finds it."""
    module_name, _, class_name = agent_class.partition(":") if ":" in agent_class else agent_class.rpartition(".")
    loaded = getattr(importlib.import_module(module_name), class_name)
    if not isinstance(loaded, type):
        raise TypeError(f"{agent_class} is not a class")
    return loaded


class _Watched:
    """Notes whether an import reads variables that only a rollout's own environment holds."""

    def __init__(self, names: frozenset[str], package: str) -> None:
        self.seen = False
        self._package = package
        self._names = names | CONTRACT
        self._libraries = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})

    @contextlib.contextmanager
    def environ(self) -> Iterator[None]:
        watcher, mapping = self, type(os.environ)

        class Environ(mapping):
            def __getitem__(self, key: str) -> str:
                watcher.seen |= key in watcher._names
                return super().__getitem__(key)

            def __contains__(self, key: object) -> bool:
                watcher.seen |= key in watcher._names
                return super().__contains__(key)

            def __iter__(self) -> Iterator[str]:
                # A library that lists all variables looks for its own; the class's own module may copy them all.
                watcher.seen |= not watcher._by_library()
                return super().__iter__()

        os.environ.__class__ = Environ
        try:
            yield
        finally:
            os.environ.__class__ = mapping

    def _by_library(self) -> bool:
        frame: Any = sys._getframe(2)
        while frame and (frame.f_code.co_filename.startswith("<frozen") or frame.f_globals.get("__name__") == "os"):
            frame = frame.f_back
        own = bool(frame) and str(frame.f_globals.get("__name__")).partition(".")[0] == self._package
        return bool(frame) and not own and frame.f_code.co_filename.startswith(self._libraries)


def _preload(agent_class: str, names: frozenset[str]) -> bool:
    """Load the class into the zygote; False when a fork would then differ from a fresh interpreter.

    This is so when the import fails, reads variables that only a rollout has, or leaves threads or child processes.
    """
    watched = _Watched(names, agent_class.partition(":")[0].partition(".")[0])
    try:
        with watched.environ():
            load_class(agent_class)
    except BaseException:
        return False
    kept = not watched.seen and len(os.listdir("/proc/self/task")) == 1
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        kept = False
    return kept


def prepare_forked(settings: dict[str, Any]) -> Callable[[socket.socket], None]:
    """The body of a worker of `settings["agent_class"]`. With `preload` false, each fork imports the class itself.

    Exits with code 3 when the class can not be kept loaded: the zygote must then be started with `preload` false.
    """
    agent_class = settings["agent_class"]
    sys.path[0] = ""  # as `python -c` has it
    sys.argv = ["-c", agent_class]
    if settings["preload"] and not _preload(agent_class, frozenset(settings["names"])):
        os._exit(UNSAFE_TO_PRELOAD)
    return lambda worker: serve(worker, agent_class)


def _play(agent_class: str, imported: int) -> int:
    try:
        agent = load_class(agent_class)
        os.write(imported, _IMPORTED)
        os.close(imported)
        result = agent().run()
        if inspect.isawaitable(result):
            import asyncio

            asyncio.run(result)  # pyright: ignore[reportArgumentType]
        return 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1


def _become_rollout(job: dict[str, Any], agent_class: str, output: int, imported: int, parent: int) -> None:
    """Never returns: the forked process plays and exits as a fresh interpreter would."""
    code = 1
    try:
        os.setsid()
        die_with_parent(parent)
        reset_signals()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(output)
        os.environ.update(job["environment"])
        if numpy := sys.modules.get("numpy"):  # `random` does this by itself after a fork
            numpy.random.seed()
        code = _play(agent_class, imported)
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code & 0xFF)


class _Output:
    """What the class prints: the end of it is kept, and all of it goes to a file if one is named."""

    def __init__(self, pipe: int, path: str | None) -> None:
        self._pipe, self._kept = pipe, b""
        self._file = None if path is None else open(path, "wb", buffering=0)  # noqa: SIM115  closed with the rollout
        os.set_blocking(pipe, False)

    def read(self) -> bool:
        """Read what is available; False at the end of the output."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._pipe, _CHUNK)
            if self._file:
                self._file.write(data)
            self._kept = (self._kept + data)[-OUTPUT_KEPT:]
            return bool(data)
        return True

    def close(self) -> str:
        """The output as far as it is kept."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, _CHUNK):
                if self._file:
                    self._file.write(data)
                self._kept = (self._kept + data)[-OUTPUT_KEPT:]
        os.close(self._pipe)
        if self._file:
            self._file.close()
        return self._kept.decode(errors="replace")


def _failure(code: int, imported: bool, timed_out: bool, output: str, seconds: float) -> dict[str, Any] | None:
    if timed_out:
        return {"boundary": "timeout", "message": f"the class did not end within {seconds:.1f} s", "retried": True}
    if code == 0:
        return None
    last = output.strip().splitlines()[-1:] or ["it printed nothing"]
    if not imported and code > 0:
        return {"boundary": "agent-import", "message": f"the class can not be loaded: {last[0]}", "retried": False}
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    return {"boundary": "agent" if code > 0 else "worker", "message": f"the class {how}: {last[0]}", "retried": True}


def serve(worker: socket.socket, agent_class: str) -> None:
    """Play the jobs of the socket one after the other until the socket ends; a running job is then killed."""
    adopt_orphans()
    os.setsid()
    lines = _Lines(worker)
    while (job := lines.next()) is not None:
        if cancelled_attempt(job) is None and (result := _run(job, agent_class, lines)) is not None:
            worker.sendall(json.dumps(result).encode() + b"\n")


class _Lines:
    """The JSON lines of a socket, each read when it is asked for."""

    def __init__(self, source: socket.socket) -> None:
        self.source, self._rest = source, b""

    @property
    def waiting(self) -> bool:
        """Whether a message was received already with an earlier one: the socket does not show that."""
        return b"\n" in self._rest

    def next(self) -> dict[str, Any] | None:
        """The next message; None at the end."""
        while b"\n" not in self._rest:
            try:
                data = self.source.recv(_CHUNK)
            except ConnectionError:
                return None
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


def _run(job: dict[str, Any], agent_class: str, lines: _Lines) -> dict[str, Any] | None:
    """One attempt in a fork; its result, or None when it was cancelled or the supervisor is gone."""
    output, write_output = os.pipe()
    imported, write_imported = os.pipe()
    worker, me, started = lines.source, os.getpid(), time.monotonic()
    pid = os.fork()
    if pid == 0:
        worker.close()
        os.close(output)
        os.close(imported)
        _become_rollout(job, agent_class, write_output, write_imported, me)
    os.close(write_output)
    os.close(write_imported)
    reader = _Output(output, job.get("log_path"))
    process = os.pidfd_open(pid)
    poll = select.poll()
    for descriptor in (process, output, worker.fileno()):
        poll.register(descriptor, select.POLLIN)
    ended = timed_out = given_up = False
    while not (ended or timed_out or given_up):
        left = job["seconds"] - (time.monotonic() - started)
        patience_s = 0.0 if lines.waiting else max(0.0, min(left, 3600.0))
        ready = [descriptor for descriptor, _ in poll.poll(patience_s * 1000)]
        if output in ready and not reader.read():
            poll.unregister(output)
        if lines.waiting or worker.fileno() in ready:
            message = lines.next()
            given_up = message is None or cancelled_attempt(message) == job["attempt_id"]
        ended = process in ready
        timed_out = not ended and left <= 0
    # Kill before reaping: until then no other process can have its id. Also kill it by its own id: it may not lead its
    # group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    kill_children()
    os.close(process)
    was_imported = bool(os.read(imported, 1))
    os.close(imported)
    text = reader.close()
    if given_up:
        return None
    code = os.waitstatus_to_exitcode(status)
    return {
        "attempt_id": job["attempt_id"],
        "failure": _failure(code, was_imported, timed_out, text, job["seconds"]),
        "record": {"timings": {"play_s": time.monotonic() - started}},
        "output": text,
    }
