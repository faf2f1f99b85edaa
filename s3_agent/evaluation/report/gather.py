"""Reads folders of evaluations and training runs into one structure, from which every form of the report is made.

Each passage is stored once and referred to by number. Episodes and passages are packed as they come: a report of
100,000 episodes is never in memory as a whole.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3_agent.agl.guard import GuardReport
from s3_agent.data.tasks import read_jsonl
from s3_agent.errors import ConfigError
from s3_agent.evaluation.records import EvaluationSetting, read_json, results_of
from s3_agent.evaluation.report.anchors import anchor_of
from s3_agent.evaluation.report.packed import Packed
from s3_agent.evaluation.report.signs import signs_of
from s3_agent.evaluation.scores import counts_of, recall_by_turn
from s3_agent.evaluation.summary import validation_passes
from s3_agent.evaluation.table import Numbers, numbers_of, table_of
from s3_agent.rollout.episode_log import read_records
from s3_agent.types import Episode, Passage, Task

Outcome = str
"""`right`, `wrong`, or `failed`: a failed episode has no score and is never counted as wrong."""


class Episodes:
    """Trajectories in the order in which they were added, each in a group: an agent or a phase of one folder."""

    def __init__(self) -> None:
        self.passages = Packed()
        self.tasks: list[dict[str, Any]] = []
        self.groups: list[dict[str, str]] = []
        self.rows = Packed()
        self._known: dict[bytes, int] = {}
        self._asked: dict[tuple[str, str], int] = {}

    def group(self, *, folder: str, agent: str, kind: str) -> int:
        """Add a group and return its number. `kind` is `evaluation`, `validation` or `training`."""
        self.groups.append({"folder": folder, "agent": agent, "kind": kind})
        return len(self.groups) - 1

    def _numbers(self, passages: Iterable[Passage]) -> list[int]:
        numbers = []
        for passage in passages:
            text = f"{passage.title}\0{passage.text}".encode(errors="surrogatepass")
            key = hashlib.blake2b(text, digest_size=16).digest()
            number = self._known.setdefault(key, len(self.passages))
            if number == len(self.passages):
                self.passages.append((passage.title, passage.text))
            numbers.append(number)
        return numbers

    def _task(self, task: Task) -> int:
        key = (task.id, task.question)
        if key not in self._asked:
            self._asked[key] = len(self.tasks)
            self.tasks.append(
                {
                    "id": task.id,
                    "question": task.question,
                    "golds": list(task.golden_answers),
                    "source": task.data_source,
                }
            )
        return self._asked[key]

    def add(
        self,
        group: int,
        task: Task,
        *,
        outcome: Outcome,
        episode: Episode | None,
        answer: str | None,
        scores: Mapping[str, float],
        counts: Mapping[str, int],
        recall: Sequence[bool],
        shown: Sequence[Passage] = (),
        reward: float | None = None,
        step: int | None = None,
        failure: tuple[str, str] | None = None,
    ) -> None:
        """Add one trajectory; fields that it lacks are left out of the row."""
        row: dict[str, Any] = {
            "group": group,
            "task": self._task(task),
            "outcome": outcome,
            "answer": answer,
            "scores": {name: round(value, 4) for name, value in scores.items()},
            "counts": dict(counts),
            "recall": [int(found) for found in recall],
            "shown": self._numbers(shown),
            "reward": reward,
            "step": step,
            "failure": failure,
        }
        if episode is not None:
            row["initial"] = self._numbers(episode.initial_passages)
            row["selected"] = self._numbers(episode.selected)
            row["stop"] = episode.stop_reason.value
            row["turns"] = [
                {
                    "response": turn.response,
                    "action": turn.action.kind.value if turn.action else None,
                    "query": turn.action.query if turn.action else None,
                    "marked": turn.action.marked if turn.action else None,
                    "passages": None if turn.passages is None else self._numbers(turn.passages),
                    # The text of an observation without passages; one with passages is stored as their numbers.
                    "said": turn.observation if turn.passages is None else None,
                }
                for turn in episode.turns
            ]
        self.rows.append({name: value for name, value in row.items() if value not in (None, [], {})})


def _evaluation(folder: Path, name: str, episodes: Episodes) -> dict[str, Any]:
    try:
        setting = EvaluationSetting.model_validate_json((folder / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ConfigError(f"{folder}/evaluation.json can not be read: {cause}", remedy="run the evaluation") from cause
    groups = {agent: episodes.group(folder=name, agent=agent, kind="evaluation") for agent in setting.agents}
    numbers: list[Numbers] = []
    for result in results_of(folder / "results.jsonl"):
        if result.agent not in groups:
            raise ConfigError(
                f"{folder}/results.jsonl has the agent {result.agent}, which evaluation.json does not name",
                remedy="run the evaluation again",
            )
        numbers.append(numbers_of(result))
        right = result.scores.get("gen_acc", 0.0) > 0.5
        episodes.add(
            groups[result.agent],
            result.task,
            outcome="failed" if result.state == "failed" else "right" if right else "wrong",
            episode=result.episode,
            answer=result.answer,
            scores=result.scores,
            counts=result.counts,
            recall=result.recall_by_turn,
            shown=result.shown,
            failure=None if result.failure is None else (result.failure.boundary, result.failure.message),
        )
    table = table_of(numbers, list(setting.agents))
    anchors = {agent: anchor_of(one, setting.services).model_dump() for agent, one in setting.agents.items()}
    return {
        "name": name,
        "setting": setting.model_dump(mode="json"),
        "table": table.model_dump(mode="json"),
        "anchors": anchors,
    }


def _run(folder: Path, name: str, episodes: Episodes) -> dict[str, Any]:
    records = read_records(folder / "episodes.jsonl")
    summary = read_json(folder / "summary.json") or None
    found = read_json(folder / "guard.json") or (summary or {}).get("guard")
    guard = GuardReport.model_validate(found) if found else None
    steps = [{"step": row["step"], **row["data"]} for row in read_jsonl(folder / "metrics.jsonl")]
    passes = validation_passes(records)
    phase_of = {
        id(record): f"validation {number + 1} of {len(passes)}"
        for number, found in enumerate(passes)
        for record in found.values()
    }
    groups: dict[str, int] = {}
    for record in records:
        if record.task is None:
            continue
        phase = phase_of.get(id(record), "training")
        if phase not in groups:
            kind = "training" if phase == "training" else "validation"
            groups[phase] = episodes.group(folder=name, agent=phase, kind=kind)
        score = record.accuracy if record.accuracy is not None else record.reward
        failed = record.state == "failed"
        boundary = record.boundary or (record.failures[-1].boundary if record.failures else "rollout")
        episode = record.episode
        episodes.add(
            groups[phase],
            record.task,
            outcome="failed" if failed else "right" if (score or 0.0) > 0.5 else "wrong",
            episode=episode,
            answer=record.answer,
            scores=record.metrics,
            counts={} if episode is None else counts_of(episode, {}),
            recall=() if episode is None else recall_by_turn(episode, record.task.golden_answers),
            reward=record.reward,
            failure=(boundary, record.error or "") if failed else None,
        )
    return {"name": name, "summary": summary, "steps": steps, "signs": signs_of(steps, guard)}


def gather(folders: Sequence[Path]) -> dict[str, Any]:
    """Everything that a report shows; `passages` and `episodes` are Packed.

    Raises ConfigError for a folder with neither an evaluation nor a training run.
    """
    episodes = Episodes()
    evaluations, runs = [], []
    names = _names(folders)
    for folder, name in zip(folders, names, strict=True):
        if (folder / "results.jsonl").is_file():
            evaluations.append(_evaluation(folder, name, episodes))
        elif (folder / "episodes.jsonl").is_file() and (folder / "metrics.jsonl").is_file():
            runs.append(_run(folder, name, episodes))
        else:
            raise ConfigError(
                f"{folder} holds no evaluation (results.jsonl) and no training run (episodes.jsonl, metrics.jsonl)",
                remedy="give a folder that `s3-agent eval` or `s3-agent train` has written",
            )
    return {
        "evaluations": evaluations,
        "runs": runs,
        "groups": episodes.groups,
        "tasks": episodes.tasks,
        "passages": episodes.passages,
        "episodes": episodes.rows,
    }


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with the parent's name where two are equal."""
    if not folders:
        raise ConfigError("no folder was given", remedy="name at least one: s3-agent report RUN… -o report.html")
    plain = [folder.resolve().name for folder in folders]
    return [
        name if plain.count(name) == 1 else f"{folder.resolve().parent.name}/{name}"
        for folder, name in zip(folders, plain, strict=True)
    ]
