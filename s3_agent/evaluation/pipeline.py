"""Evaluates one question in stages (episode, context, answer, verdict) and keeps each result as soon as it exists.

`run` calls it for each agent and question. A kept result is not computed again: a finished evaluation is read without
any service, and a killed one computes only what is missing. If a stage fails, the question has the state `failed`, with
the boundary that failed, and no scores.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from s3_agent.clients.chat_model import ServedModel
from s3_agent.clients.generator import FrozenGenerator
from s3_agent.clients.judge import Judge, JudgeSettings
from s3_agent.clients.policy import Policy
from s3_agent.clients.prompts import read_answer
from s3_agent.clients.retriever import Retriever
from s3_agent.evaluation.contestants import Contestant, question_key
from s3_agent.evaluation.coverage import Coverage
from s3_agent.evaluation.evidence import evidence_at_the_end, evidence_by_turn
from s3_agent.evaluation.records import EvaluatedTask
from s3_agent.evaluation.scores import cost_of, counts_of, holds_answer, recall_by_turn
from s3_agent.evaluation.stages import Made, Stage, code_of, key_of, key_of_each
from s3_agent.recipe import Price
from s3_agent.rewards.accuracy import check_answer
from s3_agent.types import Episode, Passage, StopReason, Task

_CONTEXT_CODE = (
    "s3_agent.clients.generator",
    "s3_agent.clients.model_server",
    "s3_agent.clients.prompts",
    "s3_agent.fitting",
    "s3_agent.guard",
    "s3_agent.tags",
)
_REPLY_CODE = ("s3_agent.clients.chat_model", "s3_agent.clients.model_server", "s3_agent.clients.replies")
_VERDICT_CODE = (
    "s3_agent.rewards.answer_match",
    "s3_agent.clients.judge",
    "s3_agent.clients.judge_forms",
    "s3_agent.clients.replies",
    "s3_agent.guard",
    "s3_agent.rewards.accuracy",
)


@dataclass(frozen=True, slots=True)
class Services:
    """The clients that stages call; `policies` by contestant. `generator` builds prompts even if no server runs."""

    policies: Mapping[str, Policy]
    retriever: Retriever
    generator: FrozenGenerator
    model: ServedModel
    judge: Judge | None


@dataclass(frozen=True, slots=True)
class Conditions:
    """Identities that all contestants share (index, generator, judge), as used in the keys of stages."""

    index: dict[str, Any]
    generator: dict[str, Any]
    generator_model: str
    judge: JudgeSettings
    seed: int
    prices: Mapping[str, Price]
    coverage: Coverage = field(default_factory=Coverage)


class Pipeline:
    """The stages of one evaluation folder. A context manager: it closes their files."""

    def __init__(self, folder: Path, conditions: Conditions) -> None:
        self.conditions = conditions
        self.episodes, self.contexts, self.answers, self.verdicts = (
            Stage(folder / "stages" / f"{name}.jsonl") for name in ("episodes", "contexts", "answers", "verdicts")
        )
        self._contestants: dict[str, str] = {}
        self._judge_key = key_of(
            conditions.judge.model_dump(mode="json", exclude={"cache", "cache_bytes", "patience_s"}),
            code_of(*_VERDICT_CODE),
        )
        self._context_key = key_of(conditions.generator, code_of(*_CONTEXT_CODE))

    def close(self) -> None:
        """Close the files."""
        for stage in (self.episodes, self.contexts, self.answers, self.verdicts):
            stage.close()

    def key(self, contestants: Sequence[Contestant], tasks: Sequence[Task]) -> str:
        """A key of everything that the results of these agents on these questions depend on."""
        agents = [[one.id, one.settings.model_dump(mode="json"), self._contestant_key(one)] for one in contestants]
        prices = {model: price.model_dump() for model, price in self.conditions.prices.items()}
        asked = key_of_each(task.model_dump(mode="json") for task in tasks)
        code = code_of("s3_agent.evaluation", "s3_agent.evaluation.statistics", "s3_agent.evidence")
        return key_of(agents, asked, prices, self._context_key, self._judge_key, code)

    def _contestant_key(self, contestant: Contestant) -> str:
        if contestant.id not in self._contestants:
            key = contestant.key(index=self.conditions.index, seed=self.conditions.seed)
            self._contestants[contestant.id] = key
        return self._contestants[contestant.id]

    async def evaluate(
        self, contestant: Contestant, task: Task, services: Services, *, ask: bool = True
    ) -> EvaluatedTask:
        """The result of one question. Raises BoundaryError, and NotKept if it needs a service and `ask` is false."""

        def asking(make: Callable[[], Awaitable[Made]]) -> Callable[[], Awaitable[Made]] | None:
            return make if ask else None

        settings = contestant.settings

        async def play() -> Made:
            agent, started = settings.make(), time.monotonic()
            policy = services.policies[contestant.id]
            episode = await agent.run(task, policy=policy, retriever=services.retriever)
            return {"episode": episode.model_dump(mode="json"), "seconds": time.monotonic() - started}

        episode_key = key_of(self._contestant_key(contestant), question_key(task))
        played = await self.episodes.once(episode_key, asking(play))
        episode = Episode.model_validate(played["episode"])
        timings: dict[str, float] = {"episode": played["seconds"]}
        shown: tuple[Passage, ...] = ()
        answered: Made = {}
        answer = None if settings.asks_generator else settings.own_answer(episode)
        # If an episode lacks what the method needs, the generator is not called; a missing answer counts as wrong.
        if settings.asks_generator and episode.stop_reason is not StopReason.INVALID:
            prompt = settings.answer_prompt

            async def fit() -> Made:
                started = time.monotonic()
                fitting = await services.generator.fit(task.question, episode.selected, prompt=prompt)
                passages = [passage.model_dump() for passage in fitting]
                return {"shown": passages, "seconds": time.monotonic() - started}

            context = await self.contexts.once(key_of(episode_key, self._context_key, asdict(prompt)), asking(fit))
            shown = tuple(Passage.model_validate(passage) for passage in context["shown"])
            timings["context"] = context["seconds"]
            messages = services.generator.messages(task.question, shown, prompt=prompt)

            async def generate() -> Made:
                started = time.monotonic()
                reply = await services.model.ask(messages)
                return {**asdict(reply), "seconds": time.monotonic() - started}

            if task.answerable:
                # The key is made from the messages: agents that show the same passages get the same answer.
                answered = await self.answers.once(
                    key_of(self.conditions.generator, messages, code_of(*_REPLY_CODE)), asking(generate)
                )
                answer = read_answer(answered["text"], prompt.style)
                timings["answer"] = answered["seconds"]
        # Where there is nothing to compare an answer with, or nobody gives one, there are no scores: it is not wrong.
        scored = task.answerable and settings.answers != "nobody"
        scores: dict[str, float] = dict.fromkeys(("gen_acc", "exact_match", "f1"), 0.0) if scored else {}
        confidence = None
        if scored and answer is not None:
            given = answer

            async def check() -> Made:
                started = time.monotonic()
                accuracy = await check_answer(task, given, judge=services.judge)
                return {"value": accuracy.value, "metrics": accuracy.metrics, "seconds": time.monotonic() - started}

            checked = [task.question, answer, task.golden_answers]
            verdict = await self.verdicts.once(key_of(self._judge_key, checked), asking(check))
            metrics = verdict["metrics"]
            scores = {"gen_acc": verdict["value"], "exact_match": metrics["exact_match"], "f1": metrics["f1"]}
            confidence = metrics.get("confidence")
            timings["judge"] = verdict["seconds"]
        read = shown if settings.asks_generator else episode.selected
        if task.answerable:
            scores["answer_recall"] = float(holds_answer(read, task.golden_answers))
        counts = counts_of(episode, answered)
        models = {"policy": contestant.policy.model} if contestant.policy else {}
        if settings.asks_generator:
            models["generator"] = self.conditions.generator_model
        gold = self.conditions.coverage.gold(task)
        return EvaluatedTask(
            agent=contestant.label,
            task=task,
            state="done",
            sample=contestant.sample,
            episode=episode,
            shown=shown,
            answer=answer,
            confidence=confidence,
            scores=scores,
            counts=counts,
            recall_by_turn=recall_by_turn(episode, task.golden_answers),
            evidence=evidence_at_the_end(gold, episode, shown if settings.asks_generator else None) if gold else {},
            evidence_by_turn=evidence_by_turn(gold, episode) if gold else (),
            timings=timings,
            cost_usd=cost_of(counts, models=models, prices=self.conditions.prices),
        )
