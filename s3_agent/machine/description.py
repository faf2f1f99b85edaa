"""Describes a machine as far as a run depends on it: this machine (`host.this_machine`), or one given as `8x40gb`.

Used by the doctor. A machine that is only described has GPUs and no host: the doctor checks nothing that it does not
know, and its report says so.
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
    """Everything except the GPUs. Sizes are in bytes, times in seconds since 1970; None: the system does not report it.

    - `listening`: a port that is in use → the process that listens on it.
    - `packages`: a distribution → its version.
    - `disks`: a path of the recipe → its file system.
    - `newest_input`: the last change of any data file.
    - `stray_rays`: the process ids of Ray daemons whose job has ended.
    - `cuda`: the CUDA release that torch was built for.
    - `instructions`: those of the processor, as Linux names them on x86; empty on other processors.
    - `backlog`: how many connections the kernel lets wait at a port until they are accepted.
    - `ray_token`: whether Ray joins a cluster with a token.
    - `compiler`: whether there is a C++ compiler.
    - `environment`: the variables that the checks read.
    - `temporary`, `sockets`: the user's temporary folder, and the one for a run's sockets (None: no folder will do).
    - `shadowing`: a package of the run → a folder on Python's path with another package of that name.
    - `missing_certificates`: a variable → the file that it names, which does not exist.
    - `interfaces`: the names of the network interfaces.
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
    ray_token: bool = False


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
        raise ConfigError(f"{text!r} does not describe a machine", remedy="write its GPUs as 8x40gb or 1x80gb, or cpu")
    count, memory = int(found[1]), int(found[2]) * GIB
    cards = (Gpu(index=index, name=f"{found[2]} GB GPU", total=memory, free=memory) for index in range(count))
    return Machine(gpus=tuple(cards), name=text)
