"""The input of all checks, gathered once by `gather`. What is None is unknown, and no check reports it."""

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
from s3_agent.machine.ray_nodes import RayNode
from s3_agent.recipe import Recipe
from s3_agent.types import Task


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model on this machine: its folder, its shape, and the files that are missing."""

    name: str
    folder: Path | None
    shape: ModelShape | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """The recipe's corpus and index: the number of passages (an estimate if `supposed`), and why the index can not be
    opened.
    """

    passages: int
    dimension: int
    supposed: bool = False
    problem: str | None = None
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """A recipe, verl's configuration for it, the machine, and the files on the machine.

    - `models`: by their use (`policy`, `generator`, or a model of the index).
    - `unreadable`: an input of the recipe → why it can not be read, and the remedy.
    - `refused`: why verl's configuration can not be composed, and the remedy.
    - `pinned`: the tested versions, by distribution.
    - `first_prompt`: the tokens of a long first prompt.
    - `precision`: the measurement of this processor, if the recipe asks for a precision.
    - `gateway_answer`: what a user's gateway reports about its limit (`s3_agent.clients.gateway_limit`).
    - `retrievers`: what each of several retrieval servers that answered reports of its index, by address.
    - `ray_nodes`: the nodes of the Ray that trains on several, or why they can not be asked.
    - `generator_refused`: why the environment of `generator.python` can not serve the generator, and the remedy.
    - `written`: the bytes of checkpoints that a resumed run already has.
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
    ray_nodes: list[RayNode] | str | None = None
    written: int = 0

    @property
    def cuda(self) -> bool:
        """Whether the recipe trains on GPUs."""
        return self.recipe.trainer.device == "cuda"

    def shape(self, part: str) -> ModelShape | None:
        """The shape of the model of `part` (`policy` or `generator`), if known."""
        return model.shape if (model := self.models.get(part)) else None

    def placed(self, part: str) -> list[int]:
        """The GPUs that a service or the trainer may use, by number."""
        numbers = self.recipe.gpus.of(part)
        return list(range(len(self.machine.gpus))) if numbers is None else list(numbers)
