"""The one composition: task -> agent -> generator -> reward. `ask` and the worker pool both go through it."""

import time
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from s3_agent.agents.base import Limits
from s3_agent.agents.s3 import PromptName, S3Agent
from s3_agent.clients.generator import Generator
from s3_agent.clients.policy import Policy
from s3_agent.clients.retriever import Retriever
from s3_agent.rewards.gain_beyond_rag import RewardMode, gain_beyond_rag
from s3_agent.selection import SelectionRule
from s3_agent.types import Episode, RewardResult, Task


class AgentSettings(BaseModel):
    """Which agent plays, and how its episode is scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptName = "instruct"
    selection: SelectionRule = "marked-first"
    reward: RewardMode = "accuracy"
    limits: Limits = Field(default_factory=Limits)

    def make(self) -> S3Agent:
        """The agent that these settings describe."""
        return S3Agent(limits=self.limits, prompt=self.prompt, selection=self.selection)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scored episode. Times are in seconds."""

    episode: Episode
    answer: str
    reward: RewardResult
    search_s: float
    answer_s: float


async def run_task(
    task: Task, settings: AgentSettings, *, policy: Policy, retriever: Retriever, generator: Generator
) -> Outcome:
    """Play and score one task. Raises the BoundaryError of whatever could not be reached."""
    started = time.monotonic()
    episode = await settings.make().run(task, policy=policy, retriever=retriever)
    searched = time.monotonic()
    answer = await generator.answer(task.question, episode.selected)
    answered = time.monotonic()
    return Outcome(
        episode=episode,
        answer=answer,
        reward=gain_beyond_rag(task, answer, mode=settings.reward),
        search_s=searched - started,
        answer_s=answered - searched,
    )
