"""Extends verl's tracking: it adds our metrics of each step, and writes a JSONL file that a resumed run appends to.

Agent Lightning has metrics only of rewards and token counts, and no way to add others. So our metrics are computed from
the pool's episode log when a step is logged. verl loads this module at the end of `import verl`
(VERL_USE_EXTERNAL_MODULES), before Agent Lightning's trainer reads the class.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import verl.utils.tracking as verl_tracking

from s3_agent.agl.run_files import EPISODES_VARIABLE, METRICS_VARIABLE
from s3_agent.data.files.appended import AppendedLines
from s3_agent.rollout.episode_log import GrowingFile, read_record
from s3_agent.rollout.step_metrics import Batch, batch_metrics, likelihood_metrics, step_metrics

PATIENCE_S = 10.0
POLL_S = 0.1


class AppendedJsonl:
    """A `file` tracker that appends to its file; verl's own overwrites it.

    `at` is the time of the row in Unix seconds. A step is logged after its checkpoint is complete and before the next
    step starts, so this time separates the step's rollouts from later ones (`s3_agent.training.resume`).
    """

    def __init__(self, path: Path) -> None:
        self._lines = AppendedLines(path)

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Write one line for the step. Raises DataError when the disk is full."""
        row = {"step": step, "at": time.time(), "data": data}
        self._lines.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")

    def finish(self) -> None:
        """Close the file."""
        self._lines.close()


def _without_key(config: Any) -> Any:
    """The configuration without the gateway's key, because a tracker may publish it."""
    if not isinstance(config, Mapping) or "agentlightning" not in config:
        return config
    return {**config, "agentlightning": {**config["agentlightning"], "agl_key": "(not shown)"}}


class RunTracking(verl_tracking.Tracking):
    """Logs each step to the recipe's trackers and to `metrics.jsonl`. The trainer creates it before its first step."""

    def __init__(
        self, project_name: str, experiment_name: str, default_backend: Any = "console", config: Any = None
    ) -> None:
        # Imported here, because every process of a run loads this module, but only the trainer's needs the estimator.
        from s3_agent.agl.advantages import COMPARED

        self._compared = COMPARED
        self._batch = Batch.of_config(config) if isinstance(config, Mapping) and "data" in config else None
        backends = [default_backend] if isinstance(default_backend, str) else list(default_backend)
        others = [backend for backend in backends if backend != "file"]
        super().__init__(project_name, experiment_name, others, _without_key(config))
        if "file" in backends:
            self.logger["file"] = AppendedJsonl(Path(os.environ[METRICS_VARIABLE]))
        path = Path(os.environ[EPISODES_VARIABLE])
        self._episodes = GrowingFile(path, at=path.stat().st_size if path.exists() else 0)
        self._ahead = 0

    def log(self, data: Mapping[str, Any], step: int, backend: Any = None) -> None:
        """Log a step, with the metrics of its rollouts and of the rows that were not trained."""
        lost = batch_metrics(data, batch=self._batch, groups_of_one=self._compared.groups_of_one)
        super().log({**likelihood_metrics(data), **self._of_rollouts(data), **lost}, step, backend)

    def _of_rollouts(self, data: Mapping[str, Any]) -> dict[str, float]:
        """The metrics of the rollouts that ended since the last step; waits briefly, because the pool writes a rollout
        after its end.

        An asynchronous trainer also trains rollouts that ended during an earlier step: they were read then. Pools on
        other machines write to other files: then `s3/*/rollouts` shows that only some rollouts were read.
        """
        expected = data.get("training/n_rollouts", 0) + data.get("val/n_rollouts", 0) - self._ahead
        lines, deadline = self._episodes.lines(), time.monotonic() + PATIENCE_S
        while len(lines) < expected and time.monotonic() < deadline:
            time.sleep(POLL_S)
            lines += self._episodes.lines()
        self._ahead = max(0, len(lines) - expected)
        return step_metrics([read_record(line, where=f"a line of {self._episodes.path}") for line in lines])


verl_tracking.Tracking = RunTracking
