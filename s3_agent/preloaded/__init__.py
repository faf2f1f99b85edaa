"""A Python interpreter with its modules already loaded: processes of a run are forked from it instead of started.

On a CPU, the processes of a run spend most of their start time on importing the same torch, verl and vLLM, one after
the other on few cores. `server` imports them once and forks. `client` is started instead of a process: it takes the
arguments of `python`, sends them with its environment, folder and files to the server, and lives as long as the fork.
Without a server it becomes the plain interpreter.
"""

import shlex
import sys
from pathlib import Path

VARIABLE = "S3_AGENT_PRELOADED"
"""The variable that names the executable, for processes that were forked and for those that may start others."""

EXECUTABLE, SOCKET = "python", "python.socket"


def write_executable(folder: Path) -> Path:
    """An executable in `folder` that takes the arguments of `python` and is forked from the server at `folder`."""
    client = Path(__file__).with_name("client.py")
    path = folder / EXECUTABLE
    # -I -S: the client's own interpreter needs only the standard library.
    command = [sys.executable, "-I", "-S", str(client), str(folder / SOCKET), sys.executable]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
    path.chmod(0o700)
    return path


def server_command(folder: Path, modules: list[str]) -> list[str]:
    """The command of the server that loads `modules` and listens in `folder`."""
    return [sys.executable, "-m", "s3_agent.preloaded.server", str(folder / SOCKET), *modules]
