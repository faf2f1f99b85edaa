"""The settings that choose an agent: its name, and values that replace its method's defaults."""

from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from s3_agent.agents.base import Agent, Limits
from s3_agent.agents.methods import METHODS, Answers, Method
from s3_agent.clients.prompts import AnswerPrompt, ContextLayout
from s3_agent.errors import ConfigError
from s3_agent.selection import SelectionRule
from s3_agent.types import Episode

_LENGTHS = {"max_new_tokens", "max_observation_tokens", "max_context_tokens"}


def _registered(name: str) -> str:
    try:
        METHODS[name]
    except ConfigError as cause:
        raise ValueError(f"{cause.message}. {cause.remedy}") from cause
    return name


AgentName = Annotated[str, AfterValidator(_registered)]
"""The name of a registered agent (`s3-agent agents`)."""


def method_of(values: Any) -> Method | None:
    """The method that the values of settings name; None if it is not registered, which the field `name` reports."""
    name = values.get("name", AgentChoice.model_fields["name"].default) if isinstance(values, dict) else None
    return METHODS.get(str(name))


class AgentChoice(BaseModel):
    """An agent by name. A value that is not given is the default of that agent.

    `answers` says who gives the answer that is scored, `layout` how the generator reads the passages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AgentName = "s3"
    prompt: str = "instruct"
    selection: SelectionRule = "marked-first"
    limits: Limits = Field(default_factory=Limits)
    layout: ContextLayout = "selected"
    answers: Answers = "generator"

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, values: Any) -> Any:
        if (method := method_of(values)) is None:
            return values
        given = values.get("limits", {})
        if isinstance(given, dict):
            given = {**method.limits.model_dump(), **given}
        own = {
            "prompt": method.prompts[0],
            "selection": method.selection,
            "layout": method.answer_prompt.layout,
            "answers": method.answers[0],
        }
        return {**own, **values, "limits": given}

    @field_validator("prompt")
    @classmethod
    def _has_the_prompt(cls, prompt: str, info: ValidationInfo) -> str:
        method = method_of(info.data) if "name" in info.data else None  # report only the name if it is refused
        if method is not None and prompt not in method.prompts:
            raise ValueError(
                f"the agent {info.data['name']} has no prompt `{prompt}`; it has {', '.join(method.prompts)}"
            )
        return prompt

    @model_validator(mode="after")
    def _agent_takes_it(self) -> Self:
        method = self.method
        if self.answers not in method.answers:
            possible = " or ".join(f"`{one}`" for one in method.answers)
            raise ValueError(
                f"the agent {self.name} can not be answered by `{self.answers}`: answers must be {possible}"
            )
        for field in sorted(Limits.model_fields.keys() - method.uses):
            if getattr(self.limits, field) != (own := getattr(method.limits, field)):
                raise ValueError(f"the agent {self.name} does not use it: limits.{field} must be {own}")
        return self

    @property
    def method(self) -> Method:
        """What the named agent is."""
        return METHODS[self.name]

    @property
    def most_topk(self) -> int:
        """The most passages that the agent asks for at a time; 0 for one that does not search."""
        asked = self.method.uses & {"topk", "initial_topk"}
        return max((getattr(self.limits, field) for field in asked), default=0)

    @property
    def answer_prompt(self) -> AnswerPrompt:
        """How to ask the generator for the answer."""
        return replace(self.method.answer_prompt, layout=self.layout)

    def played_by(self, name: str) -> Self:
        """The same policy playing `name`: its prompt and lengths stay if both need a policy that was trained on their
        protocol; all other values are the named agent's defaults.
        """
        if name == self.name:
            return self
        values: dict[str, Any] = {"name": name}
        if self.method.policy == METHODS[name].policy == "protocol":
            prompts = METHODS[name].prompts
            prompt = self.prompt if self.prompt in prompts else prompts[0]
            values |= {"prompt": prompt, "limits": self.limits.model_dump(include=_LENGTHS)}
        return self.model_validate(values)

    def own_answer(self, episode: Episode) -> str | None:
        """The policy's own answer as "(self)" rows score it (docs/originals.md#e8)."""
        return self.method.own_answer(episode)

    def make(self) -> Agent:
        """The agent that these settings describe."""
        method = self.method
        given: dict[str, Any] = {"limits": self.limits, "selection": self.selection} if method.uses else {}
        return method.make(**given, **({"prompt": self.prompt} if len(method.prompts) > 1 else {}))
