"""Checks what can end a run late on this machine: shared memory, leftover Ray daemons, the clock, the compiler."""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.doctor.memory import gib
from s3_agent.machine.description import GIB

DAY_S = 86400


def check_host(case: Case) -> Iterator[Finding]:
    """Shared memory, leftover Ray daemons, the clock and, if vLLM compiles on a CPU, the compiler."""
    if case.machine.host is None:
        return
    yield from _shared_memory(case)
    yield from _left_over(case)
    generator = case.recipe.generator
    if not case.cuda and generator.hosted and generator.compiled and not case.machine.host.compiler:
        yield error(
            "host.compiler",
            what="generator.serve asks vLLM to compile the generator, but there is no C++ compiler",
            why="on a CPU, torch compiles to C++: the generator would fail at its start",
            fix="take the option out of generator.serve, or install g++ (Debian: apt install g++)",
        )


def _shared_memory(case: Case) -> Iterator[Finding]:
    host = case.machine.host
    assert host is not None
    needed = (8 if case.cuda and case.recipe.trainer.gpus > 1 else 1) * GIB
    if host.shm_free is not None and host.shm_free < needed:
        report = error if case.cuda and case.recipe.trainer.gpus > 1 else warning
        yield report(
            "host.shared-memory",
            what=f"/dev/shm has {gib(host.shm_free)} free, but a run needs {gib(needed)}",
            why="NCCL and Ray's object store use it: NCCL fails with a bus error, and Ray falls back to the disk",
            fix="docker run --shm-size=16g (or --ipc=host); on a host: mount -o remount,size=16g /dev/shm",
        )


def _left_over(case: Case) -> Iterator[Finding]:
    host = case.machine.host
    assert host is not None
    if host.stray_rays and not case.recipe.ray.address:
        pids = " ".join(map(str, host.stray_rays))
        yield warning(
            "host.stray-ray",
            what=f"Ray daemons without a parent job are running (pid {pids})",
            why="they still hold GPU memory, ports and shared memory of a run that has ended",
            fix=f"if they are yours: kill {pids}; to train on them: ray.address=…",
        )
    if host.newest_input is not None and host.newest_input > host.now + DAY_S:
        yield error(
            "host.clock",
            what=f"the newest data file is {(host.newest_input - host.now) / DAY_S:.0f} days ahead of the clock",
            why="if the clock is behind, certificates are refused, and a new run sorts before older ones",
            fix="set the clock: timedatectl set-ntp true",
        )
