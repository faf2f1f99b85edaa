"""Agents that the pool plays natively: coroutines, many at a time in one process, whose clients live as long as it.

The recipe's agent is one of them, and its worker's clients are made here. The others are classes of a user, named on
the command line and created once in each process.
"""

import importlib
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import httpx
from pydantic import BaseModel, ConfigDict, Field

from s3_agent.agents.methods import METHODS
from s3_agent.clients.connections import async_client
from s3_agent.clients.generator import GeneratorSettings
from s3_agent.clients.http import bearer
from s3_agent.clients.judge import JudgeSettings
from s3_agent.clients.make import make_services
from s3_agent.clients.policy import CompletionsPolicy
from s3_agent.clients.tokenizer import ChatTemplate, load_tokenizer, policy_tokenizer
from s3_agent.errors import ConfigError
from s3_agent.rollout.jobs import Job
from s3_agent.rollout.runner import AgentSettings, run_task
from s3_agent.types import Task

RECIPE_AGENT = "s3_agent.agl.entry:EnvironmentAgent"
"""The class that plays the recipe's agent under the stock controller, whatever that agent's name is."""


@cache
def own_agents() -> dict[str | None, str | None]:
    """The agents by the class that plays them under the stock controller; here they need no process of their own.

    None stands for the recipe's agent: a rollout that names no class gets it.
    """
    named: dict[str | None, str | None] = {None: None, RECIPE_AGENT: None}
    for name in METHODS.own:
        with suppress(ConfigError):  # a package that claims one of our names stops only the runs of that agent
            if entry := METHODS[name].entry:
                named[entry] = name
    return named


class WorkerSettings(BaseModel):
    """Everything a native worker process needs; it crosses the process boundary as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gateway_key: str
    retriever_url: str
    generator_url: str | None
    policy_tokenizer: str
    policy_template: ChatTemplate = Field(default_factory=ChatTemplate)
    policy_context_tokens: int | None = None
    concurrency: int = Field(default=8, ge=1)
    agent: AgentSettings = Field(default_factory=AgentSettings)
    generator: GeneratorSettings = Field(default_factory=GeneratorSettings)
    judge: JudgeSettings = Field(default_factory=JudgeSettings)
    native_agents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Played:
    """A scored attempt: a finite reward, and in `record` fields of the rollout's EpisodeRecord, which JSON can hold."""

    reward: float
    record: dict[str, Any] = field(default_factory=dict)


class NativeAgent(Protocol):
    """An agent made once in each worker process as `Class(settings)`, which plays many jobs at a time."""

    async def play(self, job: Job) -> Played | float:
        """Play and score one attempt. Raises BoundaryError for an unreachable service: then it is tried again.

        Return a finite Python number, or a Played with one: with anything else the attempt fails and is tried again.
        """
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


@cache
def _tls() -> ssl.SSLContext:
    # It costs 15 ms and 1 MB. Built once before forking, so workers share its memory.
    return httpx.create_ssl_context()


def http_client(*, read_s: float | None = 300.0, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """A client of a worker; an answer may take `read_s` seconds, None: as long as the attempt that waits for it."""
    return async_client(timeout=httpx.Timeout(read_s, connect=10.0), headers=headers, verify=_tls())


class RecipeAgent:
    """The recipe's agent with its policy, retriever and generator."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._http = http_client()
        # A policy call waits for its turn in the policy server, and must not be made twice: only the end of the attempt
        # ends it.
        self._policy_http = http_client(read_s=None, headers=bearer(settings.gateway_key))
        self._tokenizer = policy_tokenizer(settings.policy_tokenizer, settings.policy_template)
        self._services = make_services(
            self._http,
            retriever_url=settings.retriever_url,
            generator_url=settings.generator_url,
            generator=settings.generator,
            judge=settings.judge,
        )

    @staticmethod
    def preload(settings: WorkerSettings) -> None:
        """Load what all worker processes share."""
        policy_tokenizer(settings.policy_tokenizer, settings.policy_template)
        if settings.generator.tokenizer:
            load_tokenizer(settings.generator.tokenizer)
        _tls()

    async def play(self, job: Job) -> Played:
        task = Task.from_row(job.input if isinstance(job.input, dict) else {})
        name = own_agents().get(job.agent_class)  # a user's agent derived from this one has none of our names
        outcome = await run_task(
            task,
            self._settings.agent.played_by(name) if name else self._settings.agent,
            policy=CompletionsPolicy(
                self._policy_http,
                job.policy_url,
                self._tokenizer,
                seed=job.seed,
                context_tokens=self._settings.policy_context_tokens,
            ),
            retriever=self._services.retriever,
            generator=self._services.generator,
            judge=self._services.judge,
        )
        record = outcome.record
        return Played(reward=record.pop("reward"), record=record)

    async def close(self) -> None:
        await self._http.aclose()
        await self._policy_http.aclose()


def is_native(agent_class: str | None, settings: WorkerSettings) -> bool:
    """Whether rollouts of that class are played without a process of their own."""
    return agent_class in own_agents() or agent_class in settings.native_agents


@cache
def native_class(agent_class: str | None) -> Any:
    """The class behind a native agent's name. Raises ConfigError when there is none."""
    if agent_class is None or agent_class in own_agents():
        return RecipeAgent
    module_name, _, class_name = agent_class.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as cause:
        raise ConfigError(
            f"the native agent {agent_class} can not be loaded: {cause}",
            remedy="give `module:Class`, importable where the pool runs",
        ) from cause
