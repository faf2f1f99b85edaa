"""Made-up evaluations and training runs for tests of what is computed from them; no server is asked."""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from s3_agent.agl.guard import GuardReport
from s3_agent.evaluation.evidence import evidence_at_the_end, evidence_by_turn
from s3_agent.evaluation.records import EvaluatedTask, EvaluationSetting, Failure
from s3_agent.evidence import GoldDocuments
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.types import Action, ActionKind, Episode, Evidence, Passage, StopReason, Task, Turn

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><b>bold</b> \u2028 {{x}}"
SOURCES = ("nq", "hotpotqa")


def _passage(number: int) -> Passage:
    return Passage(id=str(number), title=f"Town {number}", text=f"Town {number} lies in Land {number % 7}. " * 3)


def _task(number: int, *, question: str, evidence: bool = False) -> Task:
    needed = (Evidence(title=f"Town {number}"), Evidence(title=f"Town {number + 1}", answer=True))
    return Task(
        id=f"q{number}",
        question=question,
        golden_answers=(f"Land {number % 7}",),
        data_source=SOURCES[number % 2],
        evidence=needed if evidence else None,
    )


def _episode(
    agent: str, draw: random.Random, *, searches: int, text: str, passages: int = 500, first: int = 0
) -> Episode:
    """Passages are drawn from so many towns, from the `first` one on."""
    found = [tuple(_passage(first + draw.randrange(passages)) for _ in range(3)) for _ in range(searches + 1)]
    turns = [
        Turn(
            response=f"<query>where is it, try {number}</query>{text}",
            action=Action(kind=ActionKind.SEARCH, query=f"where is it, try {number}", marked=(1,)),
            passages=found[number + 1],
            prompt_tokens=100,
            response_tokens=draw.randrange(8, 60),
        )
        for number in range(searches)
    ]
    last = Turn(response="<search_complete>True", action=Action(kind=ActionKind.FINISH, marked=(2,)), response_tokens=9)
    return Episode(
        agent=agent,
        prompt="…",
        initial_passages=found[0],
        turns=(*turns, last),
        selected=found[-1][:2],
        stop_reason=StopReason.FINISHED,
    )


def results(
    agents: Sequence[str],
    questions: int,
    *,
    hostile: bool = False,
    passages: int = 500,
    samples: int = 1,
    evidence: bool = False,
) -> Iterator[EvaluatedTask]:
    """Every agent on every question: a later agent is better; the first fails at the last of each hundred.

    With `evidence`, each question needs two towns; about one in five is found.
    """
    for rank, agent in enumerate(agents):
        for number, sample in product(range(questions), range(samples)):
            draw = random.Random(f"{agent} {number}" + (f" {sample}" if sample else ""))
            text = HOSTILE if hostile else ""
            task = _task(number, question=f"In which land lies town {number}?{text}", evidence=evidence)
            if rank == 0 and number % 100 == 99:
                failure = Failure(boundary="retriever", message="connection refused" + text)
                yield EvaluatedTask(agent=agent, sample=sample, task=task, state="failed", failure=failure)
                continue
            searches = draw.randrange(0, 4)
            right = float(draw.random() < 0.3 + 0.15 * rank)
            towns = {"first": number, "passages": 10} if evidence else {"passages": passages}
            episode = _episode(agent, draw, searches=searches, text=text, **towns)
            gold = GoldDocuments(task.evidence or ())
            yield EvaluatedTask(
                agent=agent,
                sample=sample,
                task=task,
                state="done",
                episode=episode,
                shown=episode.selected,
                answer=f"It lies in Land {number % 7}.{text}" if right else f"I do not know.{text}",
                scores={"gen_acc": right, "exact_match": 0.0, "f1": right / 2, "answer_recall": right},
                counts={"searches": searches, "turns": searches + 1, "policy_response_tokens": 40 + searches * 20},
                recall_by_turn=tuple(at / 3 >= draw.random() for at in range(searches + 1)),
                evidence=evidence_at_the_end(gold, episode, episode.selected) if evidence else {},
                evidence_by_turn=evidence_by_turn(gold, episode) if evidence else (),
                timings={"episode": 0.5, "answer": 0.2},
            )


def write_evaluation(
    folder: Path,
    *,
    agents: Sequence[str] = ("rag", "search_r1", "s3"),
    questions: int = 60,
    hostile: bool = False,
    passages: int = 500,
    samples: int = 1,
    evidence: bool = False,
) -> Path:
    """The folder of an evaluation, as `s3-agent eval` leaves it."""
    folder.mkdir(parents=True)
    setting = EvaluationSetting(
        agents={
            agent: {"settings": {"name": agent}, "policy": {"model": "a-7b"}, "answers": "generator"}
            for agent in agents
        },
        services={"retriever": {"backend": "bm25", "passages": 500}, "generator": {"model": "fake"}},
        data={"path": "questions.jsonl", "questions": questions},
        seed=0,
        versions={"s3-agent": "test"},
        started_at=0.0,
    )
    (folder / "evaluation.json").write_text(setting.model_dump_json(), encoding="utf-8")
    with (folder / "results.jsonl").open("w", encoding="utf-8") as file:
        for result in results(
            agents, questions, hostile=hostile, passages=passages, samples=samples, evidence=evidence
        ):
            file.write(result.model_dump_json() + "\n")
    return folder


def write_collapse(folder: Path, *, steps: int = 40, stopped: bool = True) -> Path:
    """The folder of a training run that collapsed: `write_run` with such metrics, and what the guard found at the end.

    The log-prob of correct responses falls from step 10, the reward from step 20; validations every 4 steps.
    """
    write_run(folder, steps=4)
    rows = []
    for step in range(steps + 1):
        data: dict[str, float | None] = {}
        late = max(0.0, (step - 20) / 20)
        if step:
            data = {
                "training/n_sample": 12,
                "training/reward": round(0.3 + 0.01 * min(step, 20) - 0.45 * late, 4),
                "actor/log_prob/correct": -0.1 - 0.02 * max(0, step - 10),
                "actor/log_prob/incorrect": None if step == 7 else -0.15 - 0.03 * max(0, step - 10),
                "actor/sampled_entropy": 0.4 - 0.01 * step,
                "s3/train/searches": 1.2 + late,
                "s3/train/invalid_actions": 0.6 * late,
            }
        if step % 4 == 0:
            data |= {"val/reward": 0.9, "s3/val/accuracy": round(0.4 + 0.01 * min(step, 20) - 0.4 * late, 4)}
        rows.append({"step": step, "data": data})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = GuardReport(reason="validation fell", step=steps, stopped=stopped, best_step=20, best_validation=0.6)
    (folder / "guard.json").write_text(report.model_dump_json(), encoding="utf-8")
    return folder


def protect(folder: Path) -> None:
    """Mark every task of a folder of an evaluation or a run as protected."""
    for path in (folder / "results.jsonl", folder / "episodes.jsonl"):
        if path.exists():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            marked = [{**row, "task": {**row["task"], "protected": "the canary"}} for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in marked), encoding="utf-8")


def write_run(folder: Path, *, steps: int = 6, questions: int = 12) -> Path:
    """The folder of a training run that did not end: no summary, two validation passes, one failed rollout."""
    folder.mkdir(parents=True)
    rows = [{"step": 0, "data": {"val/reward": 0.3}}]
    rows += [
        {
            "step": step,
            "data": {
                "training/reward": 0.3 + 0.05 * step,
                "training/n_sample": questions,
                "training/n_turns": questions * 2,
                "training/n_rollouts": questions,
                "response_length/training/avg_by_turn": 20.0 + step,
            },
        }
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with (folder / "episodes.jsonl").open("w", encoding="utf-8") as file:
        for number in range(questions * (steps + 2)):
            draw = random.Random(number)
            train = questions <= number < questions * (steps + 1)
            failed = number == questions + 1
            record = EpisodeRecord(
                rollout_id=str(number),
                attempt_id=str(number),
                attempts=1,
                is_train=train,
                state="failed" if failed else "succeeded",
                task=_task(number % questions, question=f"In which land lies town {number % questions}?"),
                episode=None if failed else _episode("s3", draw, searches=draw.randrange(3), text=""),
                answer=None if failed else "It lies there.",
                reward=None if failed else float(number % 2),
                accuracy=None if failed else float(number % 2),
                error="the generator was gone" if failed else None,
                boundary="generator" if failed else None,
                started_at=float(number),
                finished_at=float(number) + 0.5,
            )
            file.write(record.model_dump_json() + "\n")
    return folder
