"""What is seen while an evaluation runs: bars on a terminal, lines elsewhere, running means in both."""

import io

import pytest
from rich.console import Console

from s3_agent.evaluation import progress as evaluation_progress
from s3_agent.evaluation.progress import EvaluationProgress
from s3_agent.evaluation.records import SCORES, EvaluatedTask, Failure
from s3_agent.types import Task

TASK = Task(id="t", question="q?", golden_answers=("a",))
RIGHT = EvaluatedTask(
    agent="s3", task=TASK, state="done", scores=dict.fromkeys(SCORES, 1.0), counts={"searches": 3, "turns": 4}
)
WRONG = RIGHT.model_copy(update={"scores": dict.fromkeys(SCORES, 0.0), "counts": {"searches": 1, "turns": 2}})
FAILED = EvaluatedTask(agent="s3", task=TASK, state="failed", failure=Failure(boundary="policy", message="gone"))


def seen(*, terminal: bool, plain: bool = False) -> str:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=200)
    progress = EvaluationProgress(console, {"s3": 4, "rag": 4}, plain=plain)
    progress(RIGHT)
    progress.resumed()
    for result in (WRONG, FAILED):
        progress(result)
    progress.close()
    return written.getvalue()


def test_bars_with_running_means_on_a_terminal() -> None:
    shown = seen(terminal=True)
    assert "GenAcc 0.500, 2.0 searches, 1 failed" in shown
    assert "3/4" in shown and "0/4" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_with_the_time_that_is_left(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_progress, "PLAIN_EVERY_S", 0.0)
    last = seen(terminal=terminal, plain=True).splitlines()[-1]
    assert "3/8 questions" in last and "s left. s3: GenAcc 0.500, 2.0 searches, 1 failed" in last
