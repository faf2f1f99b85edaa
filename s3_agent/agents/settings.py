"""Which agent plays: the agents by name, each with the defaults of its own method."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s3_agent.agents import s3, search_r1
from s3_agent.agents.base import Agent, Limits
from s3_agent.selection import SelectionRule

AgentName = Literal["s3", "search_r1", "search_r1_agl_chat"]
PromptName = Literal["instruct", "bm25", "compact", "data"]

_DEFAULTS: dict[str, tuple[Limits, SelectionRule]] = {
    "s3": (s3.LIMITS, "marked-first"),
    "search_r1": (search_r1.LIMITS, "chronological"),
    "search_r1_agl_chat": (search_r1.AGL_CHAT_LIMITS, "chronological"),
}


class AgentChoice(BaseModel):
    """An agent by name. Limits and selection that are not given are the named agent's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AgentName = "s3"
    prompt: PromptName = "instruct"
    selection: SelectionRule = "marked-first"
    limits: Limits = Field(default_factory=Limits)

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or (name := values.get("name", "s3")) not in _DEFAULTS:
            return values
        limits, selection = _DEFAULTS[name]
        given = values.get("limits", {})
        if isinstance(given, dict):
            given = {**limits.model_dump(), **given}
        return {"selection": selection, **values, "limits": given}

    @model_validator(mode="after")
    def _agent_takes_it(self) -> Self:
        if self.prompt == "bm25" and self.name != "s3":
            raise ValueError(f"the agent {self.name} has no prompt `bm25`; it has instruct, compact and data")
        if self.limits.initial_topk and self.name != "s3":
            raise ValueError(f"the prompt of {self.name} shows no passages: limits.initial_topk must be 0")
        return self

    def played_by(self, name: AgentName) -> Self:
        """The same policy playing `name`: its prompt and lengths stay, all else is the named agent's own."""
        if name == self.name:
            return self
        lengths = {"max_new_tokens", "max_observation_tokens", "max_context_tokens"}
        prompt = "instruct" if self.prompt == "bm25" else self.prompt
        return self.model_validate({"name": name, "prompt": prompt, "limits": self.limits.model_dump(include=lengths)})

    def make(self) -> Agent:
        """The agent that these settings describe."""
        if self.name == "s3":
            return s3.S3Agent(limits=self.limits, prompt=self.prompt, selection=self.selection)
        assert self.prompt != "bm25"
        return search_r1.SearchR1Agent(
            limits=self.limits,
            prompt=self.prompt,
            selection=self.selection,
            agl_chat=self.name == "search_r1_agl_chat",
        )
