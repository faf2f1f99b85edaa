"""The settings of LoRA; `s3_agent.agl.lora_weights` merges the adapters."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

UNTRAINED = frozenset({"embed_tokens", "lm_head"})
"""Modules without adapters: the fused log-probs read the output layer's own weight, and the embedding may be tied."""


class Lora(BaseModel):
    """Adapters beside frozen weights: each trained matrix W becomes W + alpha / rank · B·A.

    B has `rank` columns, and A as many rows; vLLM serves adapters of at most 512. `targets` are names of modules, such
    as `q_proj`; None: all linear layers except the output layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=32, ge=1, le=512)
    alpha: int = Field(default=64, ge=1)
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)

    @field_validator("targets")
    @classmethod
    def _has_no_output_layer(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if refused := UNTRAINED.intersection(name.rpartition(".")[2] for name in targets or ()):
            raise ValueError(f"{', '.join(sorted(refused))} can have no adapter here: name linear layers of the blocks")
        return targets
