"""The GPUs that each process of a run sees. The recipe's numbers count among the GPUs that the launcher itself may
use."""

import os
from collections.abc import Mapping

from s3_agent.errors import ConfigError
from s3_agent.recipe import Recipe

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpu_environment(recipe: Recipe, part: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables that give a process its GPUs; empty when the recipe places no process.

    A scheduler that gives this job only some GPUs of the machine lists them in CUDA_VISIBLE_DEVICES: number 0 of the
    recipe is the first of that list. Raises ConfigError when the list is too short.
    """
    numbers = recipe.gpus.of(part)
    if numbers is None:
        return {}
    names = [str(number) for number in numbers]
    if given := environment.get(VISIBLE, ""):
        visible = given.split(",")
        if numbers and max(numbers) >= len(visible):
            raise ConfigError(
                f"gpus.{part} names GPU {max(numbers)}, but {VISIBLE}={given} gives this process {len(visible)}",
                remedy=f"ask the scheduler for more, or number gpus.* from 0 to {len(visible) - 1}",
            )
        names = [visible[number] for number in numbers]
    return {VISIBLE: ",".join(names)}


def shared_with(recipe: Recipe, part: str) -> list[str]:
    """The other processes that share a GPU with this one."""
    mine = set(recipe.gpus.of(part) or ())
    return [
        other for other in type(recipe.gpus).model_fields if other != part and mine & set(getattr(recipe.gpus, other))
    ]
