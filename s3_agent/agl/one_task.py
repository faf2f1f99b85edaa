"""Plays one task in a process that another program starts and ends: AGL's stock controllers, a Kubernetes Job, AGL 0.x.

Used by `entry` and `legacy`. The settings come from environment variables; in our own pool they come from the recipe.
It does not import agentlightning, so it works with any version.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Self

import httpx
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from s3_agent.clients.connections import async_client
from s3_agent.clients.generator import GeneratorSettings
from s3_agent.clients.judge import JudgeSettings
from s3_agent.clients.make import make_services
from s3_agent.clients.policy import CompletionsPolicy, Policy
from s3_agent.clients.tokenizer import ChatTemplate, policy_tokenizer
from s3_agent.errors import ConfigError
from s3_agent.rollout.runner import AgentSettings, Outcome, run_task
from s3_agent.types import Task

PREFIX = "S3_AGENT_"
_YAML = ("agent", "generator", "judge", "policy_template", "patience_s")
SHORTEST_TIMEOUT_S = 300.0
# No read timeout: a policy call can wait long in the policy server's queue, and the gateway would record a repeated
# call twice. The program that started this process ends it at the rollout's deadline.
POLICY_TIMEOUT = httpx.Timeout(None, connect=10.0)


class OneTaskSettings(BaseModel):
    """What an agent needs in addition to its task and its policy.

    `policy_context_tokens` is the window of the policy's server. `patience_s` limits the retries of each call, in
    seconds, except retries that wait for a paused gateway: those last until the program that started this process ends
    it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    retriever_url: str
    generator_url: str | None = None
    policy_tokenizer: str
    policy_template: ChatTemplate = Field(default_factory=ChatTemplate)
    policy_context_tokens: int | None = Field(default=None, ge=1)
    agent: AgentSettings = Field(default_factory=AgentSettings)
    generator: GeneratorSettings = Field(default_factory=GeneratorSettings)
    judge: JudgeSettings = Field(default_factory=JudgeSettings)
    patience_s: float = Field(default=120.0, gt=0)

    @property
    def timeout(self) -> httpx.Timeout:
        """How long a service may take to answer."""
        return httpx.Timeout(max(SHORTEST_TIMEOUT_S, self.patience_s), connect=10.0)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, *, agent: str | None = None) -> Self:
        """The settings in `S3_AGENT_*` variables; `AGENT`, `GENERATOR` and `JUDGE` are a recipe's sections as YAML.

        `agent` is the name of the agent that plays, whatever agent the variable names. Raises ConfigError that names
        the wrong variable.
        """
        values: dict[str, Any] = {}
        for field in cls.model_fields:
            name = PREFIX + field.upper()
            if not (text := environment.get(name)):
                continue
            try:
                values[field] = yaml.safe_load(text) if field in _YAML else text
            except yaml.YAMLError as cause:
                raise ConfigError(f"{name} is not YAML: {cause}", remedy="write it as {field: value}") from cause
        try:
            settings = cls.model_validate(values)
            played = settings.agent if agent is None else settings.agent.played_by(agent)
        except (ValidationError, TypeError, ValueError) as cause:
            raise ConfigError(
                f"the {PREFIX}* variables are not valid: {cause}",
                remedy=f"set {PREFIX}RETRIEVER_URL, {PREFIX}GENERATOR_URL and {PREFIX}POLICY_TOKENIZER",
            ) from cause
        patience = {"patience_s": settings.patience_s}
        return settings.model_copy(
            update={
                "agent": played,
                "generator": settings.generator.model_copy(update=patience),
                "judge": settings.judge.model_copy(update=patience),
            }
        )


def task_from_environment(environment: Mapping[str, str] = os.environ) -> Task:
    """The task in `S3_AGENT_TASK`, a dataset row as JSON. Raises ConfigError."""
    name = PREFIX + "TASK"
    try:
        row = json.loads(environment.get(name, ""))
    except ValueError as cause:
        raise ConfigError(
            f"{name} does not contain JSON", remedy=f"map the task to it: env_map {{{name}: input}}"
        ) from cause
    return Task.from_row(row if isinstance(row, dict) else {})


def policy_at(client: httpx.AsyncClient, settings: OneTaskSettings, url: str, **sampling: Any) -> CompletionsPolicy:
    """The policy at the OpenAI base address `url`. `sampling` can have model, temperature and top_p.

    A call whose answer was lost is repeated, because nobody starts a new attempt here, and the trainer would count a
    failed rollout as reward 0.
    """
    return CompletionsPolicy(
        client,
        url,
        policy_tokenizer(settings.policy_tokenizer, settings.policy_template),
        patience_s=settings.patience_s,
        repeatable=True,
        context_tokens=settings.policy_context_tokens,
        **sampling,
    )


async def play_one(task: Task, settings: OneTaskSettings, *, policy: Policy) -> Outcome:
    """Play and score one task. Raises the BoundaryError of the service that could not be reached."""
    async with async_client(timeout=settings.timeout) as client:
        services = make_services(
            client,
            retriever_url=settings.retriever_url,
            generator_url=settings.generator_url,
            generator=settings.generator,
            judge=settings.judge,
            patience_s=settings.patience_s,
        )
        return await run_task(
            task,
            settings.agent,
            policy=policy,
            retriever=services.retriever,
            generator=services.generator,
            judge=services.judge,
        )
