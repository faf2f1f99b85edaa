"""What a machine is, as far as a run depends on it: taken from this one (`host_snapshot`), or described in a word.

A described machine has only GPUs. What is not known of it is not checked, and the report says so.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from s3_agent.errors import ConfigError

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card. `total` and `free` are in bytes, as nvidia-smi reports them; `capability` is (major, minor)."""

    index: int
    name: str
    total: int
    free: int
    driver: str | None = None
    capability: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that holds a path: its device number and its free bytes."""

    device: int
    free: int


@dataclass(frozen=True, slots=True)
class Host:
    """Everything but the GPUs. Sizes are in bytes, times in seconds since 1970; None: this system does not report it.

    `listening` maps each port that is in use to the process that listens on it; `packages` a distribution to its
    version; `disks` a path of the recipe to what holds it; `newest_input` is the last change of a data file;
    `stray_rays` are the process ids of Ray daemons that no job owns; `cuda` is the CUDA release that torch was built
    for; `instructions` are the processor's as Linux names them on x86, empty elsewhere; `backlog` is the kernel's bound
    on connections that wait to be accepted at a port; `compiler` whether there is a C++ compiler. `environment` is what
    the checks read of the variables; `temporary` the user's temporary folder and `sockets` the one that a run uses for
    its sockets (None: there is none); `shadowing` maps a package of the run to the folder on Python's path that holds
    another of its name; `missing_certificates` a variable to the file that it names and that does not exist;
    `interfaces` are the network's.
    """

    ram: int
    ram_free: int
    cores: int
    shm_free: int | None
    open_files: int
    processes: int | None
    now: float
    newest_input: float | None
    environment: Mapping[str, str] = field(default_factory=dict)
    listening: Mapping[int, str] = field(default_factory=dict)
    ephemeral_ports: tuple[int, int] | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    disks: Mapping[Path, Disk] = field(default_factory=dict)
    stray_rays: tuple[int, ...] = ()
    cuda: str | None = None
    python: tuple[int, int] = (3, 12)
    root: bool = False
    instructions: frozenset[str] = frozenset()
    compiler: bool = True
    backlog: int | None = None
    temporary: Path = Path("/tmp")
    sockets: Path | None = Path("/tmp")
    shadowing: Mapping[str, Path] = field(default_factory=dict)
    missing_certificates: Mapping[str, Path] = field(default_factory=dict)
    interfaces: frozenset[str] = frozenset()
    wandb_key: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """The visible GPUs in order, and the host; a described machine has no host."""

    gpus: tuple[Gpu, ...]
    host: Host | None = None
    name: str = "this machine"


def described(text: str) -> Machine:
    """`8x40gb`, `1x80gb`, `cpu`: a machine with such GPUs, all of their memory free. Raises ConfigError."""
    if text == "cpu":
        return Machine(gpus=(), name=text)
    if not (found := re.fullmatch(r"([1-9]\d?)x([1-9]\d{0,3})gb", text.strip().lower())):
        raise ConfigError(f"{text!r} describes no machine", remedy="write its GPUs as 8x40gb or 1x80gb, or cpu")
    count, memory = int(found[1]), int(found[2]) * GIB
    cards = (Gpu(index=index, name=f"{found[2]} GB GPU", total=memory, free=memory) for index in range(count))
    return Machine(gpus=tuple(cards), name=text)
