"""`python -m s3_agent.preloaded.server SOCKET MODULE…`: loads the modules, then forks a process for every client.

Clients that come before the modules are loaded wait. A fork has its client's arguments, environment, folder and files,
runs like a fresh interpreter, and is killed when its client or the server ends.

The server starts no thread and runs nothing in parallel, since a fork would lack the other threads. Do not preload
modules that keep values of the environment from the time when they were loaded, as Ray's do.
"""

import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import multiprocessing.process
import os
import runpy
import select
import signal
import socket
import sys
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from s3_agent.preloaded import VARIABLE
from s3_agent.rollout.process import die_with_parent, reset_signals

ONE_THREAD = "OMP_NUM_THREADS"
FIRST_FREE = 1000  # received files are kept above every number that a client's file can have


@dataclass(slots=True)
class Request:
    """What the fork of a client must run: arguments, environment, folder and open files."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    files: dict[int, int] = field(default_factory=dict)
    """Our descriptor for each of the client's file numbers."""


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def read_request(connection: socket.socket) -> Request:
    """Read the request of a client. Raises EOFError when the client has ended."""
    header, received, _, _ = socket.recv_fds(connection, 4, 253)
    try:
        if not header:
            raise EOFError
        header += _exactly(connection, 4 - len(header))
        message = _exactly(connection, int.from_bytes(header, "big"))
    except EOFError:
        for file in received:
            os.close(file)
        raise
    parts = []
    while message:
        size = int.from_bytes(message[:4], "big")
        parts.append(message[4 : 4 + size])
        message = message[4 + size :]
    arguments, environment, folder, numbers = parts

    def texts(packed: bytes) -> list[str]:
        return [os.fsdecode(text) for text in packed.split(b"\0")] if packed else []

    return Request(
        arguments=texts(arguments),
        environment=dict(text.split("=", 1) for text in texts(environment)),
        folder=os.fsdecode(folder),
        files=dict(zip(map(int, texts(numbers)), received, strict=True)),
    )


def _take_files(files: dict[int, int]) -> None:
    import fcntl

    held = {number: fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE) for number, file in files.items()}
    for file in files.values():
        os.close(file)
    for number, file in held.items():
        os.dup2(file, number)
        os.close(file)


def _show_environment(environment: dict[str, str]) -> None:
    """Make `/proc/PID/environ` show the environment of this process: a run finds its own processes by it.

    Linux shows the memory where the environment was when the process was started; in a fork, this is still the
    parent's.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    start, end = int(fields[47]), int(fields[48])
    ours = sorted(environment.items(), key=lambda item: not item[0].startswith("S3_AGENT_"))
    text = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in ours)[: max(0, end - start - 1)]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def _become(request: Request, server: int) -> None:
    """Give the fork the environment, folder and files of its client. `run` then runs the code."""
    os.setsid()
    die_with_parent(server)
    reset_signals()
    _take_files(request.files)
    if {"-c", "-m"} & {*request.arguments[:2]}:
        _find_title()
    for name in [*os.environ]:
        del os.environ[name]
    _show_environment(request.environment)
    os.environ.update(request.environment)
    os.chdir(request.folder)
    # Spawned processes look for the main file there.
    multiprocessing.process.ORIGINAL_DIR = request.folder  # pyright: ignore[reportAttributeAccessIssue]
    if executable := request.environment.get(VARIABLE):
        multiprocessing.set_executable(executable)  # processes that it spawns are forked as well
    _read_environment_again()


def _find_title() -> None:
    """Let vLLM name its processes with setproctitle, which finds the command line in memory by the old environment.

    So it is called before that environment is removed. It is not called for Ray's workers, which run a file: Ray has
    its own copy of setproctitle, which must be the first to find the command line.
    """
    with contextlib.suppress(ImportError):
        from setproctitle import getproctitle

        getproctitle()


def _read_environment_again() -> None:
    """Let libraries read again what they read from the environment when loaded, and seed their random numbers again."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ.get(ONE_THREAD) or os.cpu_count() or 1))
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()


def _main_module() -> types.ModuleType:
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    return module


def run(arguments: Sequence[str]) -> None:
    """Run what `python ARGUMENT…` would run: flags of the interpreter, then `-c CODE`, `-m MODULE` or a file."""
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] not in ("-c", "-m"):
        flag = rest.pop(0)
        if flag in ("-X", "-W"):
            rest.pop(0)
        elif flag == "-u":
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(write_through=True)  # pyright: ignore[reportAttributeAccessIssue]
    if not rest:
        raise SystemExit("a preloaded interpreter runs -c, -m or a file")
    kind, *rest = rest
    if kind == "-c":
        code, *rest = rest
        sys.argv, sys.path[0] = ["-c", *rest], ""
        exec(compile(code, "<string>", "exec"), _main_module().__dict__)
    elif kind == "-m":
        name, *rest = rest
        sys.argv, sys.path[0] = [name, *rest], os.getcwd()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [kind, *rest], os.path.dirname(os.path.abspath(kind))
        runpy.run_path(kind, run_name="__main__")


class Server:
    """Forks processes for clients until it is asked to end."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._clients: dict[socket.socket, int] = {}
        wake, self._woken = os.pipe()
        self._wake = wake
        for end in (wake, self._woken):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> Request:
        """Returns only in each fork, with the request that it must serve; never in the server."""
        while True:
            readable, _, _ = select.select([self._listener, self._wake, *self._clients], [], [])
            for ready in readable:
                if ready is self._wake:
                    os.read(self._wake, 4096)
                    self._reap()
                elif ready is self._listener:
                    connection, _ = self._listener.accept()
                    if (request := self._accept(connection)) is not None:
                        return request
                elif ready in self._clients:
                    self._gone(ready)

    def _accept(self, connection: socket.socket) -> Request | None:
        try:
            request = read_request(connection)
        except (EOFError, OSError):
            connection.close()
            return None
        server = os.getpid()
        with warnings.catch_warnings():
            # pyarrow's allocator has a thread, and handles forks itself.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            for file in request.files.values():
                os.close(file)
            self._clients[connection] = pid
            self._say(connection, pid)
            return None
        self._listener.close()
        for other in (connection, *self._clients):
            other.close()
        signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self._woken)
        _become(request, server)
        return request

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for connection, fork in [*self._clients.items()]:
                if fork == pid:
                    self._say(connection, os.waitstatus_to_exitcode(status))
                    del self._clients[connection]
                    connection.close()

    def _gone(self, connection: socket.socket) -> None:
        """A client sends nothing after its request: readable means that it was killed, so the fork is killed too."""
        pid = self._clients.pop(connection)
        connection.close()
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the process id is still the fork's

    @staticmethod
    def _say(connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):  # the client may have ended; `select` shows that
            connection.sendall(b"%d\n" % number)


def main() -> None:
    """Serve. In a fork, `serve` returns; the fork then runs its code and ends as any interpreter does."""
    path, *modules = sys.argv[1:]
    # Libraries that read this variable when loaded start no thread; a fork would lack such a thread.
    os.environ[ONE_THREAD] = "1"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(64)
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # loaded modules stay shared: no garbage collection in a fork walks through them
    sys.stdout.flush()
    sys.stderr.flush()
    run(Server(listener).serve().arguments)


if __name__ == "__main__":
    main()
