"""The live line of the main job: the processes that are starting, the current step, and the last reward."""

import json
import time
from pathlib import Path

from rich.console import Console
from rich.status import Status

from s3_agent.processes.stack import Stack
from s3_agent.rollout.episode_log import GrowingFile, has_failed

PLAIN_EVERY_S = 15.0
LOOK_EVERY_S = 1.0


class Progress:
    """Called at every tick of the stack; on a terminal a spinner line, elsewhere a plain line from time to time."""

    def __init__(self, console: Console, stack: Stack, *, steps: int, metrics: Path, episodes: Path) -> None:
        self._console, self._stack, self._steps = console, stack, steps
        self._metrics, self._episodes = GrowingFile(metrics), GrowingFile(episodes)
        self._started = self._looked = self._told = time.monotonic()
        self._step, self._rollouts, self._failed = 0, 0, 0
        self._reward = ""
        self._last = ""
        self._status: Status | None = console.status("starting") if console.is_terminal else None
        if self._status:
            self._status.start()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        self._read()
        line = self._line()
        elapsed = f"{now - self._started:4.0f} s  "
        if self._status:
            self._status.update(elapsed + line)
        elif now - self._told >= PLAIN_EVERY_S and line != self._last:
            self._console.print(elapsed + line, highlight=False)
            self._told, self._last = now, line

    def close(self) -> None:
        """End the live line."""
        if self._status:
            self._status.stop()

    def _read(self) -> None:
        for line in self._metrics.lines():
            row = json.loads(line)
            self._step = row["step"]
            if (reward := row["data"].get("training/reward")) is not None:
                self._reward = f", reward {reward:.2f}"
        for line in self._episodes.lines():
            self._rollouts += 1
            self._failed += has_failed(line)

    def _line(self) -> str:
        starting = self._stack.starting
        rollouts = f"{self._rollouts} rollouts" + (f", {self._failed} failed" if self._failed else "")
        if starting and not self._rollouts:
            return "starting " + ", ".join(starting)
        if not self._rollouts:
            return "all processes started; the trainer loads the policy"
        return f"step {self._step}/{self._steps}, {rollouts}{self._reward}"
