"""The summary and the closing table, from two training steps and two validation passes written by hand."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from s3_agent.agl.guard import GuardReport
from s3_agent.errors import S3AgentError
from s3_agent.evaluation.comparison import read_run
from s3_agent.evaluation.summary import Summary, logprob_gap, reward_curve, summarize, validation_passes
from s3_agent.evaluation.views.closing import closing_table
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.types import Task

TASKS = [
    Task(id="a", question="?", golden_answers=("x",), hops=1, rag_score=1.0),
    Task(id="b", question="?", golden_answers=("x",), hops=1, rag_score=0.0),
    Task(id="c", question="?", golden_answers=("x",), hops=2, rag_score=0.0),
    Task(id="d", question="?", golden_answers=("x",), hops=2, rag_score=0.0),
]
Records = list[EpisodeRecord]


def record(task: Task, at: float, score: float | None, *, train: bool = False) -> EpisodeRecord:
    """An ended rollout; `None` as score is a failed one."""
    return EpisodeRecord(
        rollout_id=f"{task.id}-{at}",
        attempt_id="attempt",
        attempts=1,
        is_train=train,
        state="failed" if score is None else "succeeded",
        task=task,
        reward=score,
        accuracy=score,
        started_at=at - 1,
        finished_at=at,
    )


def validation(start: float, scores: str) -> Records:
    """One pass over TASKS; a score is 0, 1 or x for a failed rollout."""
    return [
        record(task, start + i, None if s == "x" else float(s))
        for i, (task, s) in enumerate(zip(TASKS, scores, strict=True))
    ]


def training(start: float, scores: str) -> Records:
    """One step of training rollouts."""
    return [record(TASKS[0], start + i, None if s == "x" else float(s), train=True) for i, s in enumerate(scores)]


def logged_at(number: int) -> float:
    """The time at which a step was logged: after its rollouts below, and before those of the next step."""
    return 5.0 + 170.0 * number


def step(number: int, **changes: Any) -> dict[str, Any]:
    """What the trainer logs of a healthy step of four rollouts."""
    data = {
        "training/reward": 0.5,
        "training/n_sample": 4,
        "training/n_rollouts": 4,
        "training/n_truncated_sample": 0,
        "s3/train/rows_dropped": 0.0,
        "actor/grad_norm": 0.1 * number,
        "rollout_corr/log_ppl_abs_diff": 1e-4 * number,
    }
    return {
        "step": number,
        "at": logged_at(number),
        "data": {**data, **{key.replace("__", "/"): value for key, value in changes.items()}},
    }


HEALTHY = [
    *validation(0, "1000"),
    *training(100, "1100"),
    *training(200, "1110"),
    *validation(300, "1110"),
]
METRICS = [{"step": 0, "at": logged_at(0), "data": {"val/reward": 0.25}}, step(1), step(2)]


@pytest.fixture
def build() -> Callable[..., Summary]:
    """`summarize` with the run's constants."""

    def build(records: Records = HEALTHY, metrics: list[dict[str, Any]] = METRICS, **given: Any) -> Summary:
        return summarize(
            records=records,
            metrics=metrics,
            validation=TASKS,
            rollouts_per_step=4,
            wall_seconds=60.0,
            start_up_seconds={},
            versions={"python": "3"},
            **{"steps": 2, **given},
        )

    return build


def test_cut_contexts_and_unclear_verdicts_are_counted(build: Callable[..., Summary]) -> None:
    strange = [item.model_copy(update={"metrics": {"context_cut": 1.0, "judge_unclear": 0.0}}) for item in HEALTHY[:3]]
    unclear = HEALTHY[3].model_copy(update={"metrics": {"judge_unclear": 1.0}})
    summary = build([*strange, unclear, *HEALTHY[4:]])
    assert (summary.contexts_cut, summary.judge_unclear, summary.answers_cut) == (3, 1, 0)
    assert (build().contexts_cut, build().judge_unclear) == (0, 0)
    cut = [item.model_copy(update={"metrics": {"answer_cut": 1.0}}) for item in HEALTHY[:2]]
    assert build([*cut, *HEALTHY[2:]]).answers_cut == 2


def test_a_healthy_run(build: Callable[..., Summary]) -> None:
    summary = build()
    assert (summary.steps, summary.rollouts, summary.lost_rollouts, summary.rows_per_rollout) == (2, 16, 0, 1.0)
    assert (summary.dropped_rows, summary.truncated_rows, summary.skipped_steps) == (0, 0, 0)
    assert summary.reward_curve == [0.5, 0.75]
    assert summary.grad_norm_max == pytest.approx(0.2)
    assert summary.logprob_gap_max == pytest.approx(2e-4)
    assert (summary.val_n, summary.val_before, summary.val_after, summary.naive_rag) == (4, 0.25, 0.75, 0.25)
    assert summary.p_value == 0.5  # two gained, none lost
    assert (summary.val_gain, summary.val_missing, summary.nonfinite_steps) == (0.5, 0, 0)
    assert summary.trainer_reward_curve == [0.5, 0.5]
    assert summary.gbr_after == 0.5
    assert summary.by_hops["1"] == {"n": 2, "naive_rag": 0.5, "before": 0.5, "after": 1.0}
    assert summary.by_hops["2"] == {"n": 2, "naive_rag": 0.0, "before": 0.0, "after": 0.5}


def test_rollouts_in_play_at_the_end_are_unfinished_and_not_lost(build: Callable[..., Summary]) -> None:
    left = training(400, "xxx1")
    stopped = [item.model_copy(update={"boundary": "stopped"}) for item in left[:2]]
    summary = build([*HEALTHY, *stopped, left[3]])
    assert (summary.lost_rollouts, summary.unfinished_rollouts, summary.rollouts) == (0, 2, 17)
    assert summary.reward_curve == [0.5, 0.75], "of the steps that were trained"
    assert build([*HEALTHY, left[2]]).lost_rollouts == 1


def test_a_failed_validation_rollout_is_missing_not_wrong(build: Callable[..., Summary]) -> None:
    summary = build([*validation(0, "10x0"), *training(100, "11001110"), *validation(300, "1110")])
    assert (summary.val_n, summary.val_missing, summary.lost_rollouts) == (3, 1, 1)
    assert summary.val_before == pytest.approx(1 / 3)
    assert summary.val_after == pytest.approx(2 / 3)
    assert summary.by_hops["2"]["n"] == 1


def test_first_and_last_of_three_passes_are_compared(build: Callable[..., Summary]) -> None:
    summary = build([*HEALTHY[:8], *validation(150, "1111"), *HEALTHY[8:]])
    assert (summary.val_before, summary.val_after) == (0.25, 0.75)


def test_passes_go_by_time_not_by_file_order() -> None:
    first, last = validation_passes(HEALTHY[::-1])
    assert [first[key].accuracy for key in "abcd"] == [1.0, 0.0, 0.0, 0.0]
    assert [last[key].accuracy for key in "abcd"] == [1.0, 1.0, 1.0, 0.0]


def test_one_pass_is_refused(build: Callable[..., Summary]) -> None:
    with pytest.raises(S3AgentError, match="1 validation passes"):
        build(HEALTHY[:12])


def test_trouble_is_counted(build: Callable[..., Summary]) -> None:
    metrics = [
        METRICS[0],
        step(1, training__n_sample=6, training__n_truncated_sample=1),
        step(3, s3__train__rows_dropped=2.0),
    ]
    summary = build(metrics=metrics, steps=3)
    assert summary.rows_per_rollout == 10 / 8
    assert (summary.truncated_rows, summary.dropped_rows, summary.skipped_steps) == (1, 2, 1)


def test_a_training_rollout_without_a_record_is_lost(build: Callable[..., Summary]) -> None:
    assert build([*HEALTHY[:4], *HEALTHY[5:]]).lost_rollouts == 1


def test_the_gap_after_a_step_leaves_out_what_was_before() -> None:
    metrics = [step(1, rollout_corr__log_ppl_abs_diff=0.9), step(2)]
    assert logprob_gap(metrics) == 0.9
    assert logprob_gap(metrics, after_step=1) == pytest.approx(2e-4)
    assert logprob_gap([METRICS[0]]) is None


def test_no_training_is_an_empty_curve() -> None:
    assert reward_curve(validation(0, "1111"), rollouts_per_step=4) == []


def test_the_closing_table_says_what_the_summary_holds(build: Callable[..., Summary]) -> None:
    output = io.StringIO()
    Console(file=output, width=160).print(closing_table(build()))
    text = output.getvalue()
    for expected in (
        "4 held-out questions",
        "naive RAG",
        "1 hop ",
        "2 hops",
        "+0.500",
        "p = 0.5",
        "0 lost",
        "1.00 rows",
    ):
        assert expected in text


def test_a_failed_rollout_does_not_shift_later_steps() -> None:
    records = [*training(0, "1x11"), *training(100, "0000"), *training(200, "xxxx")]
    assert reward_curve(records, rollouts_per_step=4) == [1.0, 0.0, None]


def test_a_gradient_that_is_no_number_is_counted_not_fatal(build: Callable[..., Summary]) -> None:
    metrics = [METRICS[0], step(1), step(2, actor__grad_norm=None, rollout_corr__log_ppl_abs_diff=None)]
    summary = build(metrics=metrics)
    assert (summary.nonfinite_steps, summary.grad_norm_max) == (1, 0.1)
    assert summary.logprob_gap_max == pytest.approx(1e-4)


def test_nothing_scored_twice_is_an_error_of_ours(build: Callable[..., Summary]) -> None:
    with pytest.raises(S3AgentError, match="scored both before and after"):
        build([*validation(0, "xxxx"), *HEALTHY[4:]])


def test_a_stopped_run_is_judged_by_the_policy_that_was_kept(build: Callable[..., Summary]) -> None:
    records = [*HEALTHY, *training(400, "0000"), *validation(500, "0000")]
    metrics = [METRICS[0], step(1), step(2, val__reward=0.75), step(3, val__reward=0.0)]
    guard = GuardReport(reason="it fell", step=3, stopped=True, best_step=2, best_validation=0.75)
    summary = build(records, metrics, steps=9, guard=guard)
    assert (summary.val_after, summary.steps, summary.skipped_steps) == (0.75, 3, 0)
    output = io.StringIO()
    Console(file=output, width=160).print(closing_table(summary))
    assert "guard, after step 3: it fell; the policy of step 2 is kept" in output.getvalue()
    assert (summary.best_step, summary.kept_validation) == (2, 0.75)
    assert build(records, metrics, steps=3).val_after == 0.0


@pytest.mark.parametrize(
    ("results", "best", "line"),
    [
        ((0.25, 0.75, 0.5), 1, "validation was best after step 1: 0.750; of the kept policy 0.500; if it was kept,"),
        ((0.75, None, 0.5), 0, "validation was best before the first step: 0.750; of the kept policy 0.500"),
        ((0.25, 0.5, 0.5), 1, None),
        ((0.25, 0.5, 0.75), 2, None),
    ],
)
def test_an_earlier_policy_that_validated_better_is_named_in_one_line(
    build: Callable[..., Summary], results: tuple[float | None, ...], best: int, line: str | None
) -> None:
    rows = [{"step": 0, "data": {"val/reward": results[0]}}]
    rows += [step(number, **({} if (of := results[number]) is None else {"val__reward": of})) for number in (1, 2)]
    summary = build(metrics=rows)
    assert (summary.best_step, summary.best_validation, summary.kept_validation) == (
        best,
        max(filter(None, results)),
        results[2],
    )
    output = io.StringIO()
    Console(file=output, width=200).print(closing_table(summary))
    assert output.getvalue().count("validation was best") == (line is not None)
    assert line is None or line in output.getvalue()


def test_a_pass_that_a_killed_run_did_not_log_moves_no_other(build: Callable[..., Summary]) -> None:
    unlogged = validation(180, "0001")  # the run was killed between the checkpoint of step 2 and its row
    records = [*HEALTHY[:8], *unlogged, *HEALTHY[8:], *training(400, "0000"), *validation(500, "0000")]
    best, last = step(3, val__reward=0.75), step(4, val__reward=0.0)
    metrics = [METRICS[0], step(1), {**best, "at": logged_at(2)}, {**last, "at": logged_at(3)}]
    guard = GuardReport(reason="it fell", step=4, stopped=True, best_step=3, best_validation=0.75)
    assert build(records, metrics, steps=9, guard=guard).val_after == 0.75


def test_a_run_that_is_stopped_before_its_second_validation_keeps_its_start(build: Callable[..., Summary]) -> None:
    records = HEALTHY[:12]
    guard = GuardReport(reason="no actions", step=2, stopped=True, best_step=0, best_validation=0.25)
    summary = build(records, METRICS, steps=9, guard=guard)
    assert (summary.val_before, summary.val_after, summary.val_gain, summary.steps) == (0.25, 0.25, 0.0, 2)
    with pytest.raises(S3AgentError, match="1 validation passes"):
        build(records, METRICS)


def test_a_comparison_takes_the_policy_that_a_stopped_run_keeps(build: Callable[..., Summary], tmp_path: Path) -> None:
    records = [*HEALTHY, *training(400, "0000"), *validation(500, "0000")]
    metrics = [METRICS[0], step(1), step(2, val__reward=0.75), step(3, val__reward=0.0)]
    guard = GuardReport(reason="it fell", step=3, stopped=True, best_step=2, best_validation=0.75)
    for name, rows in (("episodes", [record.model_dump() for record in records]), ("metrics", metrics)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for found, after in ((guard, 0.75), (guard.model_copy(update={"stopped": False}), 0.0), (None, 0.0)):
        summary = build(records, metrics, steps=3, guard=found)
        (tmp_path / "summary.json").write_text(summary.model_dump_json())
        run = read_run(tmp_path, label="s3", seed=0, moved=0.1)
        assert (sum(run.after.values()) / len(run.after), run.guard) == (after, found)


def test_unknown_hops_have_a_row() -> None:
    output = io.StringIO()
    summary = summarize(
        records=[record(task, at, 1.0) for at in (1.0, 2.0) for task in TASKS],
        metrics=METRICS,
        validation=[task.model_copy(update={"hops": None}) for task in TASKS],
        steps=2,
        rollouts_per_step=4,
        wall_seconds=1.0,
        start_up_seconds={},
        versions={},
    )
    Console(file=output, width=160).print(closing_table(summary))
    assert "hops unknown" in output.getvalue()
