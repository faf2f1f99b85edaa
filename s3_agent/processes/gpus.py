"""Which GPUs a part of the run sees: the recipe's numbers, read among those that the launcher itself may use."""

import os
from collections.abc import Mapping

from s3_agent.errors import ConfigError
from s3_agent.recipe import Recipe

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpu_environment(recipe: Recipe, part: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a part must find in its environment; nothing when the recipe places no part.

    A scheduler that gave this job some GPUs of the machine named them in CUDA_VISIBLE_DEVICES: the recipe's 0 is the
    first of those. Raises ConfigError when there are fewer.
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
    """The other parts that are placed on a GPU of this one."""
    mine = set(recipe.gpus.of(part) or ())
    return [
        other for other in type(recipe.gpus).model_fields if other != part and mine & set(getattr(recipe.gpus, other))
    ]
