"""s3's own metrics of a step, from the records of its rollouts."""

from typing import Any

import pytest

from s3_agent.rollout.episode_log import EpisodeRecord, FailedAttempt
from s3_agent.rollout.step_metrics import Batch, batch_metrics, step_metrics
from s3_agent.types import Action, ActionKind, Episode, Passage, StopReason, Task, Turn

PASSAGE = Passage(id="1", title="t", text="x")
SEARCH = Turn(response="r", action=Action(kind=ActionKind.SEARCH, query="q"), passages=(PASSAGE,))
INVALID = Turn(response="r", action=Action(kind=ActionKind.INVALID))
FINISH = Turn(response="r", action=Action(kind=ActionKind.FINISH))


def record(*turns: Turn, is_train: bool = True, **fields: Any) -> EpisodeRecord:
    episode = Episode(
        agent="s3",
        prompt="p",
        initial_passages=(),
        turns=turns,
        selected=(PASSAGE,) * len(turns),
        stop_reason=StopReason.FINISHED,
    )
    values: dict[str, Any] = {
        "rollout_id": "r",
        "attempt_id": "a",
        "attempts": 1,
        "is_train": is_train,
        "state": "succeeded",
        "task": Task(id="1", question="q?", golden_answers=("a",), rag_score=0.0),
        "episode": episode,
        "started_at": 0.0,
        "finished_at": 1.0,
    }
    return EpisodeRecord.model_validate({**values, **fields})


def test_a_reward_by_evidence_has_its_measures_and_no_accuracy() -> None:
    records = [
        record(FINISH, metrics={"evidence_recall": 1.0, "evidence_answer_recall": 1.0}),
        record(FINISH, metrics={"evidence_recall": 0.5}),
    ]
    found = step_metrics(records)
    assert found["s3/train/evidence_recall"] == 0.75 and found["s3/train/evidence_answer_recall"] == 1.0
    assert "s3/train/accuracy" not in found


def test_means_are_over_what_succeeded_and_counts_over_all() -> None:
    lost = FailedAttempt(attempt_id="x", boundary="retriever", message="")
    odd = FailedAttempt(attempt_id="y", boundary="tea", message="")
    found = step_metrics(
        [
            record(SEARCH, SEARCH, FINISH, accuracy=1.0, gbr=1.0, metrics={"answer_kept": 1.0, "context_cut": 0.0}),
            record(INVALID, accuracy=0.0, gbr=-1.0, metrics={"answer_kept": 0.0}, failures=[lost, odd]),
            record(FINISH, state="failed", episode=None, failures=[lost]),
        ]
    )
    expected = {
        "accuracy": 0.5,
        "gbr": 0.0,
        "rag_baseline": 0.0,
        "searches": 1.0,
        "turns": 2.0,
        "selected": 2.0,
        "invalid_actions": 0.25,
        "answers_kept": 0.5,
        "contexts_cut": 0.0,
        "rollouts": 3.0,
        "failed": 1.0,
        "retries/retriever": 2.0,
        "retries/tea": 1.0,
        "retries/policy": 0.0,
    }
    assert {f"s3/train/{name}": value for name, value in expected.items()}.items() <= found.items()
    assert not any(name.startswith("s3/val/") for name in found)
    assert "s3/train/judge_unclear" not in found, "nobody judged"


def test_training_and_validation_are_told_apart() -> None:
    found = step_metrics([record(FINISH, accuracy=1.0), record(FINISH, accuracy=0.0, is_train=False)])
    assert (found["s3/train/accuracy"], found["s3/val/accuracy"]) == (1.0, 0.0)


def test_untrained_answers_are_added_up_over_training_rollouts() -> None:
    lost = [record(FINISH, metrics={"answers_untrained": count}) for count in (2.0, 3.0)]
    found = step_metrics([*lost, record(FINISH), record(FINISH, is_train=False)])
    assert found["s3/train/answers_untrained"] == 5.0
    assert "s3/val/answers_untrained" not in found, "validation trains nothing"


def test_a_step_whose_rollouts_all_failed_has_counts_alone() -> None:
    found = step_metrics([record(FINISH, state="failed", episode=None)])
    assert found["s3/train/failed"] == pytest.approx(1.0)
    assert "s3/train/accuracy" not in found


def test_nothing_played_says_nothing() -> None:
    assert step_metrics([]) == {}


STEP = {
    "training/n_rollouts": 480,
    "training/n_sample_trained": 240,
    "training/n_sample_dropped/marked": 1,
    "training/n_sample_dropped/same_reward": 38,
    "training/n_sample_dropped/random": 200,
    "training/n_groups": 111,
    "training/rollout_level_advantage/n_rollouts": 240,
}


def test_what_was_not_trained_is_counted_in_rows_rollouts_and_groups() -> None:
    assert batch_metrics(STEP, batch=Batch(120, 4, spare=0), groups_of_one=35) == {
        "s3/train/rows_dropped": 239.0,
        "s3/train/rollouts_untrained": 240.0,
        "s3/train/groups_gone": 9.0,
        "s3/train/groups_of_one": 35.0,
    }


def test_what_is_not_known_of_a_step_is_left_out() -> None:
    bare = {name: value for name, value in STEP.items() if "rollout_level" not in name}
    assert batch_metrics(bare, batch=None, groups_of_one=None) == {"s3/train/rows_dropped": 239.0}
    assert batch_metrics({"val/n_rollouts": 3}, batch=Batch(120, 4, spare=0), groups_of_one=0) == {}


@pytest.mark.parametrize(
    ("dropped", "trained", "groups", "told"),
    [
        (8, 32, 9, (0.0, 0.0, 0.0)),
        (7, 32, 8, (0.0, 0.0, 0.0)),  # one lost: a spare rollout takes its place
        (15, 16, 7, (7.0, 16.0, 1.0)),  # nine lost: the second update is lost
    ],
)
def test_what_is_dropped_for_spare_questions_is_not_untrained(
    dropped: int, trained: int, groups: int, told: tuple[float, ...]
) -> None:
    """Ten questions with four rollouts are played, and two updates of four questions made of them."""
    config: dict[str, Any] = {
        "data": {"train_batch_size": 10},
        "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 4}, "rollout": {"n": 4}},
        "agentlightning": {"max_ppo_update_times": 2},
    }
    assert Batch.of_config({**config, "agentlightning": {}}) == Batch(10, 4, spare=0)
    step = {
        "training/n_rollouts": 40,
        "training/n_sample_trained": trained,
        "training/n_sample_dropped/same_reward": dropped,
        "training/n_groups": groups,
        "training/rollout_level_advantage/n_rollouts": trained,
    }
    assert (batch := Batch.of_config(config)) == Batch(10, 4, spare=2)
    names = ("rows_dropped", "rollouts_untrained", "groups_gone")
    expected = {f"s3/train/{name}": value for name, value in zip(names, told, strict=True)}
    assert batch_metrics(step, batch=batch, groups_of_one=None) == expected


def test_the_share_of_questions_without_a_gradient() -> None:
    def of(question: str, *rewards: float) -> list[EpisodeRecord]:
        task = Task(id=question, question="q?", golden_answers=("a",))
        return [record(FINISH, task=task, reward=reward) for reward in rewards]

    found = step_metrics([*of("1", 1.0, 1.0), *of("2", 0.0, 1.0, 0.0), *of("3", 0.0, 0.0, 0.0), *of("4", 1.0)])
    assert found["s3/train/groups_without_gradient"] == pytest.approx(2 / 3)
    assert "s3/train/groups_without_gradient" not in step_metrics(of("4", 1.0))
