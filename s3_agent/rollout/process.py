"""What a forked process needs of Linux: to die with its parent, to inherit orphans, to leave none behind.

Standard library only: the zygote of an env-contract class imports this, and must not bring modules into that class's
interpreter which it would not have found under the stock controller.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Get a signal as soon as the process `parent`, which started this one, ends in whatever way."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def ending_with_parent(command: Sequence[str]) -> list[str]:
    """`command`, asked to end (SIGTERM) when the thread that starts it has ended in whatever way.

    This file asks the kernel for it and becomes the command, since `preexec_fn` is not safe beside threads. A command
    that is not there stays as it is: whoever starts it is to see that, not its log.
    """
    if shutil.which(command[0]) is None:
        return list(command)
    # -I -S: nothing but the standard library is needed, so that this takes 20 ms.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(parent: int) -> set[int]:
    """Process ids of the children of a process. (`/proc/*/task/*/children` is not there on every kernel.)"""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
                if int(fields[1]) == parent:
                    found.add(int(name))
    return found


def kill_children(*, spared: frozenset[int] | set[int] = frozenset()) -> None:
    """Kill and reap every child of this process, and the orphans that come to it by that, but the `spared` ones."""
    while True:
        if not spared:
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
        if not (left := children(os.getpid()) - spared):
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def reset_signals() -> None:
    """The signal handling of a fresh interpreter."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """`process.py PARENT COMMAND…`: become the command, which ends when the process PARENT does."""
    parent, *command = sys.argv[1:]
    die_with_parent(int(parent), signal.SIGTERM)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # the interpreter ignores them, and the command would too
        signal.signal(number, signal.SIG_DFL)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
