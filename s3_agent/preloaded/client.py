"""Represents a process that the server forks: `client.py SOCKET PYTHON ARGUMENT…` behaves as `PYTHON ARGUMENT…`.

It ends with the fork's exit status and forwards the signals that it gets; when it is killed, the fork is killed too. It
uses only a little of the standard library, since it is started once for every process.
"""

import contextlib
import os
import signal
import socket
import sys
import time

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
APPEARS_WITHIN_S = 10.0
MOST_FILES = 250  # the limit of one message


def open_files() -> list[int]:
    """The descriptors with which this process was started: those that it opened itself close on exec."""
    return [number for number in map(int, os.listdir("/proc/self/fd")) if _inherited(number)][:MOST_FILES]


def _inherited(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:  # the descriptor of the listing itself
        return False


def _packed(values: list[str]) -> bytes:
    return b"\0".join(os.fsencode(value) for value in values)


def _connect(path: str) -> socket.socket:
    """A connection to the server, which may still be starting. Raises OSError."""
    deadline = time.monotonic() + APPEARS_WITHIN_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
            return connection
        except FileNotFoundError:
            connection.close()
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def ask(path: str, arguments: list[str]) -> socket.socket:
    """Ask the server at `path` to run `arguments` in a fork. Raises OSError without a server."""
    files = open_files()
    connection = _connect(path)
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    parts = [_packed(arguments), _packed(environment), os.fsencode(os.getcwd()), _packed([str(file) for file in files])]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    socket.send_fds(connection, [len(message).to_bytes(4, "big")], files)
    connection.sendall(message)
    return connection


def _line(connection: socket.socket) -> int:
    """The next number that the server sends. Raises OSError when the server has ended."""
    text = b""
    while not text.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionResetError("the preloaded interpreter has ended")
        text += byte
    return int(text)


def main() -> None:
    """Act as the fork; become the plain interpreter if there can be no fork."""
    path, python, *arguments = sys.argv[1:]
    early: list[int] = []
    for number in FORWARDED:
        signal.signal(number, lambda got, _: early.append(got))
    try:
        connection = ask(path, arguments)
        pid = _line(connection)
    except OSError as cause:
        print(f"no preloaded interpreter ({cause}): starting {python}", file=sys.stderr, flush=True)
        for number in FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        os.execv(python, [python, *arguments])

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    for number in early:
        forward(number, None)
    try:
        status = _line(connection)
    except OSError:
        sys.exit("the preloaded interpreter has ended, and this process with it")
    if status < 0:  # the fork was ended by a signal: end in the same way
        signal.signal(-status, signal.SIG_DFL) if -status in FORWARDED else None
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
