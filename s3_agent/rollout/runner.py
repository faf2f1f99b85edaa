"""Plays and scores one task: task -> agent -> generator -> reward. `ask` and the worker pool both use it."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from s3_agent.agents.settings import AgentChoice, method_of
from s3_agent.clients.generator import Generator
from s3_agent.clients.judge import Judge
from s3_agent.clients.policy import Policy
from s3_agent.clients.retriever import Retriever
from s3_agent.errors import ConfigError
from s3_agent.rewards.registry import REWARDS, Reward, Scored
from s3_agent.rollout.scoring import score_answer, score_generated
from s3_agent.types import Episode, RewardResult, StopReason, Task


def _registered(name: str) -> str:
    try:
        REWARDS[name]
    except ConfigError as cause:
        raise ValueError(f"{cause.message}. {cause.remedy}") from cause
    return name


RewardName = Annotated[str, AfterValidator(_registered)]
"""The name of a registered reward (`s3-agent rewards`)."""


class AgentSettings(AgentChoice):
    """Which agent plays, who answers, and how the answer is scored.

    `reward` is the name of a registered one (`s3-agent rewards`): `accuracy`, `gbr` and `gbr+accuracy` score the answer
    of whoever `answers` names; `exact_match` and `format` are Search-R1's own, and read its answer tags;
    `evidence_recall` and `evidence_f2` score what was selected, and nobody answers. The default is the method's own
    reward. Each search subtracts `search_cost` from the reward; neither paper has this cost, and
    accuracies do not include it.
    """

    reward: RewardName = "accuracy"
    search_cost: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _own_reward(cls, values: Any) -> Any:
        method = method_of(values)
        if method is None or not (own := method.own_rewards):
            return values
        by_itself = values.get("answers", "policy") == "policy"
        values = {"reward": own[0] if by_itself else "accuracy", **values}
        return {"answers": "policy" if values["reward"] in own else "generator", **values}

    @model_validator(mode="after")
    def _reward_fits(self) -> Self:
        own = self.answers == "policy" and self.reward in self.method.own_rewards
        if not (self.scoring.checks_answer or self.scoring.needs_evidence or own):
            raise ValueError(f"the reward {self.reward} scores a policy's own answer, and {self.name} gives none")
        return self

    @property
    def scoring(self) -> Reward:
        """The reward itself."""
        return REWARDS[self.reward]

    @property
    def asks_generator(self) -> bool:
        """Whether the score needs the generator's answer."""
        return self.answers == "generator" and self.scoring.checks_answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scored episode. `answer` is None when the policy should have given one and did not. Times are in seconds."""

    episode: Episode
    answer: str | None
    reward: RewardResult
    search_s: float
    answer_s: float

    @property
    def record(self) -> dict[str, Any]:
        """The fields that it fills in the rollout's EpisodeRecord, as JSON."""
        return {
            "episode": self.episode.model_dump(mode="json"),
            "answer": self.answer,
            "reward": self.reward.value,
            "accuracy": self.reward.metrics.get("accuracy"),
            "gbr": self.reward.metrics.get("gbr"),
            "metrics": dict(self.reward.metrics),
            "timings": {"search_s": self.search_s, "answer_s": self.answer_s},
        }


async def score_episode(
    task: Task, episode: Episode, settings: AgentSettings, *, generator: Generator, judge: Judge | None = None
) -> tuple[str | None, RewardResult]:
    """The answer of the generator or of the policy, and its reward. Raises GeneratorError and JudgeError."""
    reward = settings.scoring
    if not reward.checks_answer:
        return episode.answer, reward.score(Scored(task, episode, episode.answer, None))
    if settings.asks_generator and episode.stop_reason is not StopReason.INVALID:
        prompt = settings.answer_prompt
        return await score_generated(task, episode, reward=reward, generator=generator, judge=judge, prompt=prompt)
    answer = None if settings.asks_generator else settings.own_answer(episode)
    return answer, await score_answer(task, episode, answer, reward=reward, judge=judge)


async def run_task(
    task: Task,
    settings: AgentSettings,
    *,
    policy: Policy,
    retriever: Retriever,
    generator: Generator,
    judge: Judge | None = None,
) -> Outcome:
    """Play and score one task. Raises the BoundaryError of the service that could not be reached."""
    started = time.monotonic()
    episode = await settings.make().run(task, policy=policy, retriever=retriever)
    searched = time.monotonic()
    answer, reward = await score_episode(task, episode, settings, generator=generator, judge=judge)
    if settings.search_cost:
        charged = reward.value - settings.search_cost * episode.searches
        reward = RewardResult(value=charged, metrics=reward.metrics)
    return Outcome(
        episode=episode,
        answer=answer,
        reward=reward,
        search_s=searched - started,
        answer_s=time.monotonic() - searched,
    )
