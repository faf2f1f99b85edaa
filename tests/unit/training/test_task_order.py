"""The order of play depends on the seed and the tasks alone, so that a resumed run plays what it would have played."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.data.tasks import in_training_order, load_tasks
from s3_agent.errors import ConfigError
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import load_recipe
from s3_agent.training.task_order import write_tasks
from s3_agent.types import Task

CPU = load_recipe("cpu")


def tasks(count: int) -> list[Task]:
    return [Task(id=str(number), question=f"q{number}?", golden_answers=("a",)) for number in range(count)]


def order(count: int, *, steps: int, questions: int, seed: int | None) -> list[str]:
    chosen = in_training_order(tasks(count), steps=steps, questions_per_step=questions, seed=seed)
    return [task.id for task in chosen]


@given(
    count=st.integers(4, 30),
    questions=st.integers(1, 4),
    steps=st.integers(1, 20),
    more=st.integers(0, 20),
    seed=st.integers(0, 3),
)
def test_more_steps_go_on_where_fewer_stopped(count: int, questions: int, steps: int, more: int, seed: int) -> None:
    short = order(count, steps=steps, questions=questions, seed=seed)
    long = order(count, steps=steps + more, questions=questions, seed=seed)
    assert len(short) == steps * questions
    assert long[: len(short)] == short
    for start in range(0, len(long), questions):
        assert len(set(long[start : start + questions])) == questions, "a task twice in a step"


def test_each_pass_has_an_order_of_its_own_and_every_task_once() -> None:
    both = order(12, steps=6, questions=4, seed=1)
    assert sorted(both[:12]) == sorted(both[12:])
    assert both[:12] != both[12:]
    assert both != order(12, steps=6, questions=4, seed=2)


def test_without_a_seed_the_file_is_the_order() -> None:
    assert order(5, steps=4, questions=2, seed=None) == ["0", "1", "2", "3", "0", "1", "2", "3"]


def test_a_run_is_not_resumed_with_other_tasks(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create()
    recipe = load_recipe("cpu", ["trainer.steps=2", "trainer.questions_per_step=4"])
    write_tasks(recipe, run, tasks(9), tasks(3))
    before = run.train.read_text()
    longer = load_recipe("cpu", ["trainer.steps=5", "trainer.questions_per_step=4"])
    write_tasks(longer, run, tasks(9), tasks(3))
    assert run.train.read_text().startswith(before)
    other = load_recipe("cpu", ["trainer.steps=5", "trainer.questions_per_step=4", "seed=7"])
    with pytest.raises(ConfigError, match=r"train.jsonl:\d+: the run was started with other tasks"):
        write_tasks(other, run, tasks(9), tasks(3))


@pytest.mark.parametrize(("ahead", "more"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_each_generation_of_an_asynchronous_run_has_the_questions_that_it_is_ahead(
    ahead: int, more: int, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    run.create()
    sizes = ["trainer.steps=2", "trainer.questions_per_step=4", "trainer.seeded=false"]
    recipe = load_recipe("cpu", [*sizes, f"trainer.async_questions={ahead}"])
    for generation in range(3):
        write_tasks(recipe, run, tasks(9), tasks(3), generation=generation)
        assert len(run.train.read_text().splitlines()) == 4 * (2 + more * (generation + 1))


@given(
    generations=st.lists(
        st.fixed_dictionaries(
            {
                "steps": st.integers(1, 9),
                "questions": st.integers(1, 5),
                "spare": st.integers(0, 2),
                "ahead": st.integers(0, 6),
                "played": st.integers(0, 9),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_generation_of_a_run_comes_to_the_end_of_the_tasks(generations: list[dict[str, int]]) -> None:
    """The trainer would begin with the first again. Batch sizes may change between the generations."""
    done = position = 0
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        run.create()
        for number, this in enumerate(generations):
            sizes = {"steps": done + this["steps"], "questions_per_step": this["questions"]}
            sizes |= {"spare_questions": this["spare"], "async_questions": this["ahead"], "seeded": False}
            trainer = CPU.trainer.model_copy(update=sizes)
            recipe = CPU.model_copy(update={"trainer": trainer})
            write_tasks(recipe, run, tasks(500), tasks(3), generation=number, done=done)
            run.trainer.write_text(trainer.model_dump_json())
            wanted = position + (this["steps"] + trainer.steps_ahead) * trainer.questions_played
            assert len(run.train.read_bytes().splitlines()) >= wanted
            played = min(this["played"], this["steps"])
            done += played
            position += (played + trainer.steps_ahead * bool(played)) * trainer.questions_played


def test_smaller_steps_go_on_where_larger_ones_stopped(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create()
    recipe = load_recipe("cpu", ["trainer.steps=4", "trainer.questions_per_step=4"])
    write_tasks(recipe, run, tasks(40), tasks(3))
    run.trainer.write_text(recipe.trainer.model_dump_json())
    before = run.train.read_bytes()
    write_tasks(recipe, run, tasks(40), tasks(3), generation=1, done=3)
    assert run.train.read_bytes() == before, "nothing has changed"
    smaller = load_recipe("cpu", ["trainer.steps=6", "trainer.questions_per_step=2"])
    write_tasks(smaller, run, tasks(40), tasks(3), generation=1, done=3)
    after = run.train.read_bytes()
    assert after.startswith(before) and len(after.splitlines()) == 3 * 4 + 3 * 2


def test_a_run_of_an_earlier_version_is_resumed_with_its_tasks(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create()
    recipe = load_recipe("cpu", ["trainer.steps=1", "trainer.questions_per_step=2"])
    write_tasks(recipe, run, tasks(4), tasks(2))
    now = run.train.read_text()
    rows = [json.loads(line) for line in now.splitlines()]
    for row in rows:
        del row["protected"], row["evidence"]  # which tasks did not have
    run.train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tasks(recipe, run, tasks(4), tasks(2))
    assert run.train.read_text() == now
    run.train.write_text(json.dumps({**rows[0], "question": "another?"}) + "\n")
    with pytest.raises(ConfigError, match="with other tasks"):
        write_tasks(recipe, run, tasks(4), tasks(2))


def test_a_run_that_plays_protected_tasks_is_private_and_keeps_the_mark(tmp_path: Path) -> None:
    recipe = load_recipe("cpu", ["trainer.steps=1", "trainer.questions_per_step=2"])
    marked = [task.model_copy(update={"protected": "the canary"}) for task in tasks(2)]
    for name, validation in (("open", tasks(2)), ("private", marked)):
        run = Run(tmp_path / name)
        run.create()
        write_tasks(recipe, run, tasks(4), validation)
        mode = run.folder.stat().st_mode & 0o077
        assert (mode == 0) == (run.folder / ".gitignore").exists() == (name == "private")
    assert [task.protected for task in load_tasks(run.validation)] == ["the canary"] * 2
