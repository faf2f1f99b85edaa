"""What crosses rooms and processes: round trips through JSON, and rows that are refused with a reason."""

import ast
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from s3_agent import types
from s3_agent.errors import BoundaryError, ConfigError, PolicyError
from s3_agent.types import Action, ActionKind, Episode, Passage, RewardResult, StopReason, Task, Turn

ROW: dict[str, Any] = {"id": "t1", "question": "Which currency?", "golden_answers": ["Krone", "NOK"]}
PASSAGE = Passage(id="7", title='"A"', text="x\n\x00 \N{GRINNING FACE} </query>")
EPISODE = Episode(
    agent="s3",
    prompt="<question>…",
    initial_passages=(PASSAGE,),
    turns=(
        Turn(
            response="<query>q</query>",
            passages=(),
            action=Action(kind=ActionKind.SEARCH, query="q", marked=(1, 2)),
            observation="\n\n<information></information>\n\n",
            prompt_tokens=10,
            response_tokens=3,
        ),
        Turn(response="x", action=Action(kind=ActionKind.FINISH)),
    ),
    selected=(PASSAGE,),
    stop_reason=StopReason.FINISHED,
)


def test_an_episode_survives_json() -> None:
    assert Episode.model_validate_json(EPISODE.model_dump_json()) == EPISODE


def test_episode_text_and_searches() -> None:
    assert EPISODE.text == "<query>q</query>\n\n<information></information>\n\nx"
    assert EPISODE.searches == 1, "a search that found nothing is a search"


def test_an_episode_of_another_schema_version_is_refused() -> None:
    with pytest.raises(ValidationError, match="schema_version"):
        Episode.model_validate({**EPISODE.model_dump(), "schema_version": 2})


def test_a_prompt_is_a_user_message_behind_its_system_message() -> None:
    user, system = {"role": "user", "content": "u"}, {"role": "system", "content": "s"}
    assert Task.from_row(ROW | {"prompt": [user]}).prompt == "u"
    assert Task.from_row(ROW | {"prompt": [system, user]}).prompt == "s\n\nu"
    for wrong in ([system], [user, user], [user, system], [{"role": "user", "content": None}], ["u"], []):
        with pytest.raises(ConfigError, match="prompt must be a text, or a list of one user message"):
            Task.from_row(ROW | {"prompt": wrong})


def test_a_number_is_an_id() -> None:
    assert Task.from_row(ROW | {"id": 7}).id == "7"


def test_a_task_survives_json_and_ignores_what_is_not_its_own() -> None:
    task = Task.from_row(
        {**ROW, "rag_score": 0, "data_id": "x", "bridge": None, "initial_passages": [PASSAGE.model_dump()]}
    )
    assert task.rag_score == 0.0
    assert task.initial_passages == (PASSAGE,)
    assert Task.from_row(task.model_dump(mode="json")) == task


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"question": ""}, "question"),
        ({"question": " \n"}, "question"),
        ({"question": None}, "`question` is not a text"),
        ({"question": " "}, "`question` is blank"),
        ({"golden_answers": []}, "golden_answers needs at least one answer that is not blank"),
        ({"golden_answers": ["", "  "]}, "golden_answers"),
        ({"golden_answers": "Krone"}, "golden_answers"),
        ({"golden_answers": [1]}, "golden_answers"),
        ({"id": None}, "`id` is not a text"),
        ({"rag_score": "high"}, "rag_score"),
        ({"initial_passages": [{"id": "1"}]}, "initial_passages"),
    ],
)
def test_a_bad_row_names_its_field_and_the_remedy(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        Task.from_row(ROW | change)
    assert "golden_answers" in caught.value.remedy


def test_an_empty_row_names_all_that_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"(?s)id.*question.*golden_answers"):
        Task.from_row({})


def test_values_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        PASSAGE.title = "other"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError):
        Turn.model_validate({"response": "x", "reward": 1})


@pytest.mark.parametrize("prompt", ["Now", [{"role": "user", "content": "Now"}], None])
def test_a_prompt_is_a_text_or_one_user_message(prompt: Any) -> None:
    assert Task.from_row({**ROW, "prompt": prompt}).prompt == (prompt and "Now")


@pytest.mark.parametrize("prompt", [[], [{"role": "system", "content": "x"}], [{"role": "user", "content": "x"}] * 2])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        Task.from_row({**ROW, "prompt": prompt})


def test_every_stop_reason_and_action_kind_is_documented() -> None:
    source = ast.parse(Path(types.__file__).read_text(encoding="utf-8"))
    for name, kinds in (("StopReason", StopReason), ("ActionKind", ActionKind)):
        [body] = [node.body for node in source.body if isinstance(node, ast.ClassDef) and node.name == name]
        documented = [
            value.targets[0].id
            for value, text in pairwise(body)
            if isinstance(value, ast.Assign) and isinstance(value.targets[0], ast.Name) and isinstance(text, ast.Expr)
        ]
        assert documented == [kind.name for kind in kinds]


def test_errors_say_what_to_do_and_name_their_boundary() -> None:
    error = PolicyError("no answer", remedy="start it", status=404)
    assert str(error) == "no answer\n  What to do: start it"
    assert (error.boundary, error.status) == ("policy", 404)
    assert isinstance(error, BoundaryError)
    assert str(ConfigError("wrong")) == "wrong"


def test_a_passage_holds_no_half_of_a_surrogate_pair() -> None:
    """Whoever sends it: a request and a tokenizer take it."""
    passage = Passage.model_validate({"id": "\ud800", "title": "A\udfff", "text": "\ud83d x \N{GRINNING FACE}"})
    assert (passage.id, passage.title, passage.text) == ("?", "A?", "? x \N{GRINNING FACE}")


def test_a_reward_is_finite_and_a_score_that_pandas_lost_is_unknown() -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValidationError, match="finite"):
            RewardResult(value=value)
    row = {"id": "t", "question": "q", "golden_answers": ["a"]}
    assert Task.from_row({**row, "rag_score": float("nan")}).rag_score is None
    with pytest.raises(ConfigError, match="rag_score"):
        Task.from_row({**row, "rag_score": float("inf")})
