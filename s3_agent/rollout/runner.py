"""The one composition: task -> agent -> generator -> reward. `ask` and the worker pool both go through it."""

import time
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import model_validator

from s3_agent.agents.settings import AgentChoice
from s3_agent.clients.generator import Generator
from s3_agent.clients.judge import Judge
from s3_agent.clients.policy import Policy
from s3_agent.clients.retriever import Retriever
from s3_agent.rollout.scoring import score_generated, score_own
from s3_agent.types import Episode, RewardResult, Task

RewardName = Literal["accuracy", "gbr", "gbr+accuracy", "exact_match", "format"]


class AgentSettings(AgentChoice):
    """Which agent plays, and how its episode is scored.

    `accuracy`, `gbr` and `gbr+accuracy` score the frozen generator's answer from the selected passages; `exact_match`
    and `format` the policy's own answer, which Search-R1 gives and s3 does not. The default is the method's own.
    """

    reward: RewardName = "accuracy"

    @model_validator(mode="before")
    @classmethod
    def _own_reward(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name", "s3") != "s3":
            return {"reward": "exact_match", **values}
        return values

    @model_validator(mode="after")
    def _reward_fits(self) -> Self:
        if self.name == "s3" and not self.asks_generator:
            raise ValueError(f"the reward {self.reward} scores an agent's own answer, and s3 gives none")
        return self

    @property
    def asks_generator(self) -> bool:
        """Whether the score needs the generator's answer."""
        return self.reward not in ("exact_match", "format")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scored episode. `answer` is None when the policy was to give one and did not. Times are in seconds."""

    episode: Episode
    answer: str | None
    reward: RewardResult
    search_s: float
    answer_s: float


async def run_task(
    task: Task,
    settings: AgentSettings,
    *,
    policy: Policy,
    retriever: Retriever,
    generator: Generator,
    judge: Judge | None = None,
) -> Outcome:
    """Play and score one task. Raises the BoundaryError of whatever could not be reached."""
    started = time.monotonic()
    episode = await settings.make().run(task, policy=policy, retriever=retriever)
    searched = time.monotonic()
    if settings.reward == "exact_match" or settings.reward == "format":
        answer, reward = score_own(task, episode, form=settings.reward == "format")
    else:
        answer, reward = await score_generated(task, episode, mode=settings.reward, generator=generator, judge=judge)
    return Outcome(
        episode=episode,
        answer=answer,
        reward=reward,
        search_s=searched - started,
        answer_s=time.monotonic() - searched,
    )
