"""Everything that the checks look at, gathered once. Whatever is None could not be known and is not checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from s3_agent.agl.cpu.precision import Precision
from s3_agent.clients.servers import Identity
from s3_agent.clients.tokenizer import Tokenizer
from s3_agent.data.naive_rag.cache import Fingerprint, RagCache
from s3_agent.doctor.training import Training
from s3_agent.machine.description import Machine
from s3_agent.machine.model_files import ModelShape
from s3_agent.recipe import Recipe
from s3_agent.types import Task


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model on this machine: where it lies, its shape, and the files that it lacks."""

    name: str
    folder: Path | None
    shape: ModelShape | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """The recipe's corpus and index: passages (or how many are supposed), what keeps the index from being opened."""

    passages: int
    dimension: int
    supposed: bool = False
    problem: str | None = None
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """A recipe, what verl makes of it, the machine, and what lies on it.

    `models` by part (`policy`, `generator`); `unreadable` maps an input of the recipe to why it can not be read, with
    what to do; `pinned` is the tested matrix, a distribution to its version; `first_prompt` are the tokens of a long
    first prompt; `precision` what was measured of this processor, where the recipe asks it for a precision;
    `retrievers` what each of several retrieval servers that answered reports of its index, by address;
    `gateway_answer` what a user's gateway reports about its limit (`s3_agent.clients.gateway_limit`); `written` the
    bytes of checkpoints that a resumed run has already;
    `generator_refused` why the other environment that the recipe names can not serve its generator, with what to do.
    """

    recipe: Recipe
    training: Training | None
    machine: Machine
    models: Mapping[str, ModelFiles] = field(default_factory=dict)
    index: IndexFacts | None = None
    tokenizer: Tokenizer | None = None
    vocabulary: int | None = None
    first_prompt: int | None = None
    train: tuple[Task, ...] | None = None
    validation: tuple[Task, ...] | None = None
    rag_cache: RagCache | None = None
    fingerprint: Fingerprint | None = None
    unreadable: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    refused: tuple[str, str] | None = None
    pinned: Mapping[str, str] = field(default_factory=dict)
    precision: Precision | None = None
    generator_refused: tuple[str, str] | None = None
    gateway_answer: str | None = None
    retrievers: Mapping[str, Identity] | None = None
    written: int = 0

    @property
    def cuda(self) -> bool:
        """Whether the recipe trains on GPUs."""
        return self.recipe.trainer.device == "cuda"

    def shape(self, part: str) -> ModelShape | None:
        """The shape of a part's model, if known."""
        return model.shape if (model := self.models.get(part)) else None

    def placed(self, part: str) -> list[int]:
        """The GPUs that a part of ours may use."""
        numbers = self.recipe.gpus.of(part)
        return list(range(len(self.machine.gpus))) if numbers is None else list(numbers)
