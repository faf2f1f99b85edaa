"""One task, played where another program starts and ends the process: AGL's stock controllers, Kubernetes Jobs, AGL
0.x.

What the recipe says in our own pool comes as environment variables here. It imports no agentlightning, so that it runs
beside any version of it.
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
# A policy call waits for its turn in the policy server, and is recorded each time that it is made: whoever started the
# process ends it at the rollout's deadline, and the call with it.
POLICY_TIMEOUT = httpx.Timeout(None, connect=10.0)


class OneTaskSettings(BaseModel):
    """What an agent needs besides its task and its policy.

    `policy_context_tokens` is the window of the policy's server. `patience_s` bounds the retries of each call, in
    seconds, but for those that wait for a gateway which is paused: whoever started this process ends it with the
    rollout.
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
        """How long an answer may take."""
        return httpx.Timeout(max(SHORTEST_TIMEOUT_S, self.patience_s), connect=10.0)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, *, agent: str | None = None) -> Self:
        """The settings in `S3_AGENT_*` variables; `AGENT`, `GENERATOR` and `JUDGE` are a recipe's sections as YAML.

        `agent` plays whichever agent the variable describes. Raises ConfigError that names the variable at fault.
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
                f"the {PREFIX}* variables do not fit: {cause}",
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
        raise ConfigError(f"{name} holds no JSON", remedy=f"map it: env_map {{{name}: input}}") from cause
    return Task.from_row(row if isinstance(row, dict) else {})


def policy_at(client: httpx.AsyncClient, settings: OneTaskSettings, url: str, **sampling: Any) -> CompletionsPolicy:
    """The policy behind the OpenAI base address `url`. `sampling` holds model, temperature and top_p.

    A call whose answer was lost is repeated: whoever starts this process begins no new attempt, and a rollout that
    fails would be taught as a zero.
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
    """Play and score one task. Raises the BoundaryError of whatever could not be reached."""
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
