"""Runs a script as the ranks of one process group, each in a process of its own."""

import subprocess
import sys
from pathlib import Path


def run_ranks(script: Path, store: Path, *arguments: str, within_s: float) -> list[subprocess.CompletedProcess[str]]:
    """The ends of both ranks of `script RANK 2 STORE ARGUMENT…`.

    One that fails ends the other as well: it waits for nothing that does not come.
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(rank), "2", str(store), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=within_s) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *end)
        for process, end in zip(started, ends, strict=True)
    ]
