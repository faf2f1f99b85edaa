"""The process that worker processes are forked from, with their modules loaded already.

multiprocessing has one fork server for each interpreter; it loads only modules that are known beforehand, and leaves
its heap to the garbage collector, which copies it into every child. Here one zygote holds the policy's tokenizer and
forks the native workers; another holds one env-contract class and forks the workers of that class. The supervisor sends
a socket for each worker over a control socket; when the supervisor dies, that socket ends, and the zygote ends too.

    python -m s3_agent.rollout.worker.zygote native|forked CONTROL_FD <settings on stdin>
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from s3_agent.rollout.process import adopt_orphans, kill_children, reset_signals

Body = Callable[[socket.socket], None]


def say(control: socket.socket, **message: object) -> None:
    """Send one message to the supervisor, which may be gone."""
    with contextlib.suppress(OSError):
        control.send(json.dumps(message).encode())


def _native(settings: str) -> Body:
    from s3_agent.rollout.worker.worker import prepare_native

    return prepare_native(settings)


def _forked(settings: str) -> Body:
    from s3_agent.rollout.worker.forked import prepare_forked

    return prepare_forked(json.loads(settings))


def _fork(body: Body, control: socket.socket, worker: socket.socket) -> int:
    if pid := os.fork():
        return pid
    try:
        reset_signals()
        control.close()
        body(worker)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _reaped(workers: set[int]) -> list[tuple[int, int]]:
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if found[0] in workers:
                ended.append(found)
    return ended


def main() -> None:
    """Prepare, then fork one worker for every socket that arrives, until the control socket ends."""
    role, control = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    adopt_orphans()
    try:
        body = {"native": _native, "forked": _forked}[role](sys.stdin.read())
    except Exception as error:
        say(control, boundary=getattr(error, "boundary", "worker"), error=str(error) or type(error).__name__)
        raise
    gc.collect()
    gc.freeze()  # what is loaded now stays shared: no collection in a worker writes to it
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    workers: set[int] = set()
    say(control, ready=True)
    while True:
        readable, _, _ = select.select([control, wake], [], [])
        if wake in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            for pid, status in _reaped(workers):
                workers.discard(pid)
                say(control, exited=pid, code=os.waitstatus_to_exitcode(status))
            kill_children(spared=workers)  # a killed worker could not end its own children
        if control in readable:
            message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
            if not message:
                break
            worker = socket.socket(fileno=descriptors[0])
            pid = _fork(body, control, worker)
            worker.close()
            workers.add(pid)
            say(control, started=int(message), pid=pid)
    # The workers see their own sockets end; what they run ends with them.
    for pid in workers:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.waitpid(pid, 0)
    kill_children()


if __name__ == "__main__":
    main()
