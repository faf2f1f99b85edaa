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
from s3_agent.evaluation.coverage import Coverage, read_coverage
from s3_agent.evaluation.records import EvaluationSetting, read_json, results_of
from s3_agent.evaluation.report.anchors import anchor_of
from s3_agent.evaluation.report.packed import Packed
from s3_agent.evaluation.report.signs import signs_of
from s3_agent.evaluation.scores import counts_of, recall_by_turn
from s3_agent.evaluation.summary import validation_passes
from s3_agent.evaluation.table import Numbers, numbers_of, table_of
from s3_agent.evidence import GoldDocuments
from s3_agent.rollout.episode_log import read_records
from s3_agent.types import Action, Episode, Passage, Task, Turn

Outcome = str
"""`right`, `wrong`, `failed`, or `unscored` if there was no answer to compare with a gold one.

Only the first two have a score: what is missing is never counted as wrong.
"""


_EVIDENCE = ("retrieved_recall", "shown_recall", "selected_recall", "selected_precision", "handed_on_recall")


WITHHELD = "(withheld)"


def withheld_note(questions: int) -> str:
    """What a report says if texts of this many questions are left out; empty for none."""
    if not questions:
        return ""
    return (
        f"The texts of {questions} question{'s' * (questions > 1)} are withheld: what was asked, searched, read and "
        "answered. Their data set is published encrypted and asks that nothing of it is published in plain text. "
        "`s3-agent report --show-protected` shows them, for your own eyes."
    )


class Episodes:
    """Trajectories in the order in which they were added, each in a group: an agent or a phase of one folder.

    Of a protected task only the id and numbers are kept, and of its passages the ids, unless `show_protected`.
    `withheld` counts these tasks.
    """

    def __init__(self, *, show_protected: bool = False) -> None:
        self.withheld = 0
        self._show_protected = show_protected
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
            withheld = self._withholds(task)
            self.withheld += withheld
            named = (one.id if withheld else one.title or one.id for one in task.evidence or ())
            evidence = [name for name in named if name]
            self.tasks.append(
                {
                    "id": task.id,
                    "question": f"{WITHHELD}: {task.data_source} {task.id}" if withheld else task.question,
                    "golds": [WITHHELD] if withheld else list(task.golden_answers),
                    "source": task.data_source,
                    **({"evidence": evidence} if evidence else {}),
                }
            )
        return self._asked[key]

    def _withholds(self, task: Task) -> bool:
        return task.protected is not None and not self._show_protected

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
        evidence: Mapping[str, float] | None = None,
        gold: GoldDocuments | None = None,
    ) -> None:
        """Add one trajectory; fields that it lacks are left out of the row. Passages of `gold` documents are marked."""
        if withheld := self._withholds(task):
            answer = answer and WITHHELD
            failure = failure and (failure[0], WITHHELD)  # a server's message may quote what it was sent
            shown = _without_texts(shown)
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
            "evidence": {name: round((evidence or {})[name], 4) for name in _EVIDENCE if name in (evidence or {})},
        }
        if episode is not None:
            episode = _numbers_only(episode) if withheld else episode
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
        if episode is not None and gold is not None:
            found = (passage for turn in episode.turns for passage in turn.passages or ())
            read = (*episode.initial_passages, *found, *episode.selected, *shown)
            row["gold"] = sorted({*self._numbers(one for one in read if gold.document(one) in gold.names)})
        self.rows.append({name: value for name, value in row.items() if value not in (None, [], {})})


def _without_texts(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """The documents by id: the ids are published in plain text, and a text may hold the answer."""
    return tuple(Passage(id=passage.id, title=passage.id, text="") for passage in passages)


def _numbers_only(episode: Episode) -> Episode:
    """The episode without what was read and written: only the fields that are named here."""
    turns = tuple(
        Turn(
            response=WITHHELD,
            passages=None if turn.passages is None else _without_texts(turn.passages),
            action=turn.action and Action(kind=turn.action.kind, marked=turn.action.marked),
            prompt_tokens=turn.prompt_tokens,
            response_tokens=turn.response_tokens,
        )
        for turn in episode.turns
    )
    return Episode(
        agent=episode.agent,
        prompt="",
        initial_passages=_without_texts(episode.initial_passages),
        turns=turns,
        selected=_without_texts(episode.selected),
        stop_reason=episode.stop_reason,
    )


def _outcome(score: float | None) -> Outcome:
    return "unscored" if score is None else "right" if score > 0.5 else "wrong"


def _evaluation(folder: Path, name: str, episodes: Episodes) -> dict[str, Any]:
    try:
        setting = EvaluationSetting.model_validate_json((folder / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ConfigError(f"{folder}/evaluation.json can not be read: {cause}", remedy="run the evaluation") from cause
    groups = {agent: episodes.group(folder=name, agent=agent, kind="evaluation") for agent in setting.agents}
    numbers: list[Numbers] = []
    known = read_coverage(folder)
    for result in results_of(folder / "results.jsonl"):
        if result.agent not in groups:
            raise ConfigError(
                f"{folder}/results.jsonl has the agent {result.agent}, which evaluation.json does not name",
                remedy="run the evaluation again",
            )
        numbers.append(numbers_of(result))
        score = result.scores.get("gen_acc")
        episodes.add(
            groups[result.agent],
            result.task,
            outcome="failed" if result.state == "failed" else _outcome(score),
            episode=result.episode,
            answer=result.answer,
            scores=result.scores,
            counts=result.counts,
            recall=result.recall_by_turn,
            shown=result.shown,
            failure=None if result.failure is None else (result.failure.boundary, result.failure.message),
            evidence=result.evidence,
            gold=known.gold(result.task),
        )
    coverage = setting.data.get("evidence") or {}
    table = table_of(numbers, list(setting.agents), coverage=coverage if coverage.get("questions") else None)
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
        failed = record.state == "failed"
        boundary = record.boundary or (record.failures[-1].boundary if record.failures else "rollout")
        episode = record.episode
        # An episode of ours without an accuracy has a reward of another kind: nobody checked its answer.
        score = record.reward if episode is None and record.accuracy is None else record.accuracy
        episodes.add(
            groups[phase],
            record.task,
            outcome="failed" if failed else _outcome(score),
            episode=episode,
            answer=record.answer,
            scores=record.metrics,
            counts={} if episode is None else counts_of(episode, {}),
            recall=() if episode is None else recall_by_turn(episode, record.task.golden_answers),
            reward=record.reward,
            failure=(boundary, record.error or "") if failed else None,
            gold=Coverage().gold(record.task),
        )
    return {"name": name, "summary": summary, "steps": steps, "signs": signs_of(steps, guard)}


def gather(folders: Sequence[Path], *, show_protected: bool = False) -> dict[str, Any]:
    """Everything that a report shows; `passages` and `episodes` are Packed.

    Texts of protected tasks are left out unless `show_protected`. Raises ConfigError for a folder with neither an
    evaluation nor a training run.
    """
    episodes = Episodes(show_protected=show_protected)
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
        "withheld": withheld_note(episodes.withheld),
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
