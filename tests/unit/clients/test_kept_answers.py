"""Replies outlive a run where all that they depend on is known, and only there."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from s3_agent.clients.answers.cache import content_address
from s3_agent.clients.chat_model import Message, ModelSettings
from s3_agent.processes import serving
from s3_agent.recipe import Recipe, load_recipe
from s3_agent.types import Task

ASKED: list[Message] = [{"role": "user", "content": "q"}]


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "has_cpu_vllm", lambda: True)
    monkeypatch.setattr(serving, "_weights", lambda recipe: {"of": recipe.generator.model})


def settled(*overrides: str, folder: Path = Path("runs/x"), tasks: Sequence[Task] = ()) -> Recipe:
    return serving.with_answer_cache(load_recipe("cpu", ["generator.dtype=float32", *overrides]), folder, tasks)


def test_a_generator_of_ours_keeps_its_replies_beside_what_was_prepared() -> None:
    recipe = settled("prepared=elsewhere")
    assert recipe.generator.identity
    assert recipe.generator.cache == Path("elsewhere/answers").absolute()
    assert settled("prepared=elsewhere", folder=Path("runs/y")).generator.cache == recipe.generator.cache


def test_replies_about_protected_tasks_stay_in_the_folder_of_the_run() -> None:
    task = Task(id="1", question="q?", golden_answers=("a",))
    marked = task.model_copy(update={"protected": "canary"})
    assert settled("prepared=elsewhere", tasks=[task]).generator.cache == Path("elsewhere/answers").absolute()
    recipe = settled("prepared=elsewhere", tasks=[task, marked])
    assert recipe.generator.cache == Path("runs/x/answers").absolute() and recipe.generator.identity
    assert recipe.judge.cache == Path("runs/x/verdicts").absolute()


@pytest.mark.parametrize(
    "override",
    [
        "generator.dtype=bfloat16",
        "generator.model=another",
        "generator.serve=[--max-model-len,'1024']",
    ],
)
def test_another_way_of_serving_is_another_generator(override: str) -> None:
    assert settled(override).generator.identity != settled().generator.identity


def test_another_processor_or_release_is_another_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = settled().generator.identity
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert settled().generator.identity != ours
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(serving, "_installed", lambda package: "0")
    assert settled().generator.identity != ours


def test_what_is_behind_an_address_is_not_known() -> None:
    recipe = settled("generator.url=http://127.0.0.1:1/v1")
    assert recipe.generator.identity is None
    assert recipe.generator.cache == Path("runs/x/answers").absolute()


def test_a_model_that_is_not_here_yet_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_weights", lambda recipe: None)
    assert settled().generator.cache == Path("runs/x/answers").absolute()


def test_a_recipe_may_vouch_for_what_is_behind_its_address() -> None:
    recipe = settled("generator.url=http://127.0.0.1:1/v1", "generator.identity=qwen-1")
    assert recipe.generator.identity == "qwen-1"
    assert recipe.generator.cache == Path("prepared/answers").absolute()


def test_a_folder_that_the_recipe_names_is_taken() -> None:
    assert settled("generator.cache=/tmp/mine").generator.cache == Path("/tmp/mine")


def test_verdicts_stay_with_the_run() -> None:
    assert settled().judge.cache == Path("runs/x/verdicts").absolute()


def test_replies_of_two_identities_are_two() -> None:
    one, two = (ModelSettings(model="m", identity=identity) for identity in ("a", "b"))
    assert content_address(one, ASKED) != content_address(two, ASKED)
    assert content_address(one, ASKED) == content_address(ModelSettings(model="m", identity="a", patience_s=1), ASKED)
