"""What forked processes use of Linux: they end with their parent, adopt orphans and leave none behind.

Standard library only: the zygote of an env-contract class imports this module, and must not load modules into that
class's interpreter that the stock controller would not load.
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
    """Have the kernel signal this process as soon as `parent`, which started it, ends for whatever reason."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def ending_with_parent(command: Sequence[str]) -> list[str]:
    """A form of `command` that gets SIGTERM when the thread that starts it ends for whatever reason.

    It runs this file, which asks the kernel for the signal and then becomes the command, since `preexec_fn` is not safe
    beside threads. A command that does not exist is returned unchanged: the caller must see that error, not only its
    log.
    """
    if shutil.which(command[0]) is None:
        return list(command)
    # -I -S: nothing but the standard library is needed, so that this takes 20 ms.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(parent: int) -> set[int]:
    """Process ids of the children of a process. (`/proc/*/task/*/children` does not exist on every kernel.)"""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
                if int(fields[1]) == parent:
                    found.add(int(name))
    return found


def kill_children(*, spared: frozenset[int] | set[int] = frozenset()) -> None:
    """Kill and reap every child of this process, and the orphans that it adopts by that, except the `spared` ones."""
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
    """Restore the signal handling of a fresh interpreter."""
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
