"""Decides which environment variables of the shell, scheduler or container the processes of a run get.

`Stack` starts every process of a run with `inherited`. It leaves out variables that were set for another program and
that Ray, torch, verl or vLLM would read as their own. The doctor reports variables about which only the user can decide
(`s3_agent.doctor.checks.environment`).
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from retrieval_server.proxies import sparing_loopback

LEFT_OUT = {
    "RAY_ADDRESS": "a run joins the Ray that its recipe names, or else starts its own",
    "RAY_TMPDIR": "Ray's session is in the run's own temporary folder",
    "ROCR_VISIBLE_DEVICES": "schedulers set it beside CUDA_VISIBLE_DEVICES, and verl refuses the two together",
    "HIP_VISIBLE_DEVICES": "the same; verl accepts the two only if they are equal",
    "VLLM_API_KEY": "every vLLM of a run would ask its clients for this key",
    "VLLM_RPC_BASE_PATH": "sockets are in the run's own temporary folder",
    **dict.fromkeys(
        (
            *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
            *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
            *("MASTER_ADDR", "MASTER_PORT", "DIST_INIT_METHOD"),
        ),
        "the rank of a job that torchrun or a scheduler started around this one; verl and vLLM set their own",
    ),
}
"""Variables that no process of a run takes over, and why."""

LEFT_OUT_PREFIXES = {
    "TORCHELASTIC_": "torch would wait for the store of the surrounding torchrun instead of making one",
}

_SERVICE_READERS = ("VLLM_", "RAY_", "AGL_", "WANDB_")
_SERVICE_SCHEMES = ("tcp://", "udp://", "sctp://")
"""For a service with the name `vllm`, Kubernetes sets VLLM_PORT to such a value."""

SHORT = 39
"""The largest length of a temporary folder's path in bytes. The path of a socket has at most 107 bytes, and 68 of them
are `/ray/session_` with the time and a process id of 7 digits, and `/sockets/plasma_store`."""

MARK = len("/s3-01234567")
"""How many bytes the folder of a run adds to the path of the temporary folder."""


FALLBACKS = (Path("/tmp"), Path("/var/tmp"))


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environment` that a process of a run gets."""
    return sparing_loopback({name: value for name, value in environment.items() if _is_inherited(name, value)})


def _is_inherited(name: str, value: str) -> bool:
    if name in LEFT_OUT or name.startswith(tuple(LEFT_OUT_PREFIXES)):
        return False
    return not (name.startswith(_SERVICE_READERS) and value.startswith(_SERVICE_SCHEMES))


def temporary_folder(named: Path | None = None) -> Path | None:
    """A folder for a run's sockets: the user's (`named`, or TMPDIR) if its path is short enough, else the system's.

    None when no writable folder has a path that is short enough.
    """
    own = named or Path(tempfile.gettempdir())  # a folder that can be written to
    if _is_short(own):
        return own
    return next((folder for folder in FALLBACKS if _is_short(folder) and os.access(folder, os.W_OK | os.X_OK)), None)


def _is_short(folder: Path) -> bool:
    return len(os.fsencode(folder)) + MARK <= SHORT
