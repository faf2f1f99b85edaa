"""The settings of LLDS; `s3_agent.agl.losses` computes it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LldsGate = Literal["action", "response", "token"]


class Llds(BaseModel):
    """A penalty for responses with an advantage of 0 or more that an update makes less likely (arXiv 2512.04220).

    `weight` is the paper's λ (0.2; 0.3 for Qwen2.5-7B-Instruct). With the gate `action` the tokens of an action count
    if the whole action became less likely, with `response` if the response did, with `token` always. `answer_weight` is
    the weight of the last action, which holds the answer; less than 1 keeps a model from answering without a search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=0.2, gt=0)
    gate: LldsGate = "action"
    answer_weight: float = Field(default=1.0, ge=0, le=1)
