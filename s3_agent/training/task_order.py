"""The task files of a run, in the order in which the trainer reads them. Written by the main job."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from s3_agent.data.files.whole import keep_private, write_whole
from s3_agent.data.tasks import in_training_order
from s3_agent.errors import ConfigError
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import Recipe
from s3_agent.types import Task


def write_tasks(
    recipe: Recipe, run: Run, train: Sequence[Task], validation: Sequence[Task], *, generation: int = 0, done: int = 0
) -> None:
    """The run's own task files; the trainer reads them from the first line to the last, from the position after `done`
    steps.

    Only the seed decides the order, so a resumed run, or one with more steps, plays the same tasks as an uninterrupted
    one. With `async_questions`, each generation of the run begins with that many questions more, because those that
    were in play when the run was killed are not played again. Raises ConfigError when the folder holds another order.
    """
    trainer = recipe.trainer
    ordered = in_training_order(
        train,
        steps=max(trainer.steps + trainer.steps_ahead * (generation + 1), _steps_to_the_end(recipe, run, done=done)),
        questions_per_step=trainer.questions_played,
        seed=recipe.seed if recipe.data.shuffle else None,
    )
    if any(task.protected for task in (*train, *validation)):
        keep_private(run.folder)
    for path, tasks in ((run.train, ordered), (run.validation, validation)):
        rows = [task.model_dump_json(exclude={"initial_passages"}) for task in tasks]
        _refuse_another(path, rows)
        write_whole(path, "".join(row + "\n" for row in rows))


def _steps_to_the_end(recipe: Recipe, run: Run, *, done: int) -> int:
    """How many steps of this recipe the file must hold, if steps were larger before or more questions were in play.

    The generation before left at most the tasks in the file without those that it still wanted to play; what the
    steps that are left now need comes after them.
    """
    if not (done and run.train.exists() and run.trainer.exists()):
        return 0
    before = json.loads(run.trainer.read_text(encoding="utf-8"))
    lines = run.train.read_bytes().count(b"\n")
    unplayed = (before["steps"] - done) * (before["questions_per_step"] + before.get("spare_questions", 0))
    trainer = recipe.trainer
    wanted = (trainer.steps - done + trainer.steps_ahead) * trainer.questions_played
    return -(-(lines - unplayed + wanted) // trainer.questions_played)


def _refuse_another(path: Path, rows: Sequence[str]) -> None:
    if not path.exists():
        return
    before = path.read_text(encoding="utf-8").split("\n")[:-1]
    for number, (old, new) in enumerate(zip_longest(before, rows), 1):
        if old is not None and new is not None and old != new and not _same_task(old, new):
            raise ConfigError(
                f"{path}:{number}: the run was started with other tasks, or in another order",
                remedy="resume it with the data, the seed and the batch sizes that it was started with",
            )


def _same_task(old: str, new: str) -> bool:
    """Whether two lines hold the same task: an earlier version wrote no fields that tasks did not have yet."""
    try:
        return Task.model_validate_json(old) == Task.model_validate_json(new)
    except ValueError:
        return False
