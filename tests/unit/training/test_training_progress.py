"""The progress line reads growing files and says little where nobody watches a terminal."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from s3_agent.processes.stack import Part, Stack
from s3_agent.rollout.episode_log import EpisodeLog, GrowingFile
from s3_agent.training import progress as progress_module
from s3_agent.training.progress import Progress


class Clock:
    """`time.monotonic` under the test's hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_plain_lines_come_rarely_and_only_on_change(tmp_path: Path, clock: Clock) -> None:
    output = io.StringIO()
    stack = Stack([Part(name="generator", command=[], log=tmp_path / "log")], run_id="none")
    metrics, episodes = tmp_path / "metrics.jsonl", tmp_path / "episodes.jsonl"
    progress = Progress(Console(file=output, width=200), stack, steps=3, metrics=metrics, episodes=episodes)
    for second in range(60):
        clock.now = float(second)
        progress()
    [line] = output.getvalue().splitlines()
    assert "starting generator" in line

    metrics.write_text(json.dumps({"step": 2, "data": {"training/reward": 0.25}}) + '\n{"step": 3, "da')
    log = EpisodeLog(str(episodes))
    for state in ("succeeded", "failed"):
        log.write({"rollout_id": state, "state": state, "answer": '"state": "failed"'})
    log.close()
    clock.now = 80.0
    progress()
    progress.close()
    assert output.getvalue().splitlines()[-1].endswith("step 2/3, 2 rollouts, 1 failed, reward 0.25")


def test_a_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "growing"
    tail = GrowingFile(file)
    assert tail.lines() == []
    file.write_bytes(b"one\ntw")
    assert tail.lines() == [b"one"]
    assert tail.lines() == []
    with file.open("ab") as more:
        more.write(b"o\nthree\n")
    assert tail.lines() == [b"two", b"three"]
