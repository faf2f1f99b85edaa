"""Shows the progress of an evaluation: each agent's finished questions, its running means, and the time left."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from s3_agent.evaluation.records import EvaluatedTask

PLAIN_EVERY_S = 15.0


class _Means:
    def __init__(self) -> None:
        self.done = self.failed = self.scored = self.sought = 0
        self.right = self.searches = self.found = 0.0

    def add(self, result: EvaluatedTask) -> None:
        if result.state == "failed":
            self.failed += 1
            return
        self.done += 1
        self.scored += "gen_acc" in result.scores
        self.right += result.scores.get("gen_acc", 0.0)
        self.sought += bool(result.evidence)
        self.found += result.evidence.get("selected_recall", 0.0)
        self.searches += result.counts.get("searches", 0)

    def __str__(self) -> str:
        means = [f"GenAcc {self.right / self.scored:.3f}"] if self.scored else []
        means += [f"evidence {self.found / self.sought:.3f}"] if self.sought else []
        failed = f", {self.failed} failed" if self.failed else ""
        return ", ".join([*means, f"{self.searches / max(self.done, 1):.1f} searches"]) + failed


class EvaluationProgress:
    """A bar for each agent on a terminal; elsewhere, or if `plain`, a line at intervals."""

    def __init__(self, console: Console, questions: Mapping[str, int], *, plain: bool) -> None:
        self._console = console
        self._questions = questions
        self._means = {label: _Means() for label in questions}
        self._started = self._told = time.monotonic()
        self._kept = 0
        self._live: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        if console.is_terminal and not plain:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[means]}"),
                console=console,
            )
            self._bars = {label: self._live.add_task(label, total=n, means="") for label, n in questions.items()}
            self._live.start()

    def __call__(self, result: EvaluatedTask) -> None:
        """Count one more result."""
        means = self._means[result.agent]
        means.add(result)
        if self._live is not None:
            self._live.update(self._bars[result.agent], advance=1, means=str(means))
        elif time.monotonic() - self._told >= PLAIN_EVERY_S:
            self._told = time.monotonic()
            self._console.print(self._line(), highlight=False)

    def resumed(self) -> None:
        """Mark the results so far as kept by earlier calls; the time left is estimated only from new ones."""
        self._kept = self._counted
        self._started = time.monotonic()
        for label, bar in self._bars.items():
            assert self._live is not None
            done = self._means[label].done
            self._live.reset(bar, total=self._questions[label], completed=done, means=str(self._means[label]))

    def close(self) -> None:
        """End the live lines."""
        if self._live is not None:
            self._live.stop()

    @property
    def _counted(self) -> int:
        return sum(means.done + means.failed for means in self._means.values())

    def _line(self) -> str:
        elapsed, new = time.monotonic() - self._started, self._counted - self._kept
        left = sum(self._questions.values()) - self._counted
        ahead = f", about {left * elapsed / new:.0f} s left" if new else ""
        shown = "; ".join(f"{label}: {means}" for label, means in self._means.items() if means.done or means.failed)
        return f"{elapsed:4.0f} s  {self._counted}/{sum(self._questions.values())} questions{ahead}. {shown}"
