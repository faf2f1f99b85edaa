"""One file that describes a full run, checked before anything starts.

A recipe is YAML (`examples/*/recipes/NAME.yaml`, or any path) merged with `section.field=value` overrides by OmegaConf;
the models below say what it may hold. `${embedded:NAME}` names an embedded asset.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml import YAMLError

from s3_agent import embedded
from s3_agent.agl.verl_config import TrainerRecipe
from s3_agent.clients.generator import GeneratorSettings
from s3_agent.clients.judge import JudgeSettings
from s3_agent.clients.prompts import ContextLayout
from s3_agent.data.sources import SourceSettings
from s3_agent.errors import ConfigError
from s3_agent.rollout.runner import AgentSettings

EXAMPLES = Path(__file__).parents[1] / "examples"


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError(f"{value!r} is not an http address")
    return value.rstrip("/")


Url = Annotated[str, AfterValidator(_url)]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataRecipe(_Section):
    """Corpus, tasks and the naive-RAG cache that filters the training tasks.

    Naive RAG reads `rag_topk` passages, laid out like selected ones or as the original's lines (`rag_layout`);
    `retrieved_topk` are kept. With `sources`, `s3-agent data` makes these files out of published ones; without, they
    are there. What it makes besides lies in `folder` (default: `prepared/data/<name>`). `allow_mismatch` trains with a
    RAG cache that other parts made, and the run's `data.json` says so.
    """

    corpus: Path
    train: Path
    validation: Path
    rag_cache: Path
    rag_topk: int = Field(default=3, ge=1)
    rag_layout: ContextLayout = "selected"
    validation_size: int | None = Field(default=None, ge=1)
    retrieved_topk: int = Field(default=12, ge=1)
    allow_mismatch: bool = False
    folder: Path | None = None
    sources: SourceSettings | None = None

    @model_validator(mode="after")
    def _enough_retrieved(self) -> Self:
        if self.retrieved_topk < self.rag_topk:
            raise ValueError(f"retrieved_topk ({self.retrieved_topk}) is less than rag_topk ({self.rag_topk})")
        return self


class RetrieverRecipe(_Section):
    """Our server over `data.corpus` on `port` (0: any free one), or a running one at `url`.

    `backend` is a YAML file that says what index it is (`docs/retrieval.md`); without it, BM25.
    """

    url: Url | None = None
    port: Port = 3000
    backend: Path | None = None


class GeneratorRecipe(GeneratorSettings):
    """A vLLM server of our own for `model` on `port`, or a running one at `url` (its OpenAI base, ending in /v1)."""

    url: Url | None = None
    port: Port = 8000
    serve: list[str] = Field(default_factory=list)

    @property
    def client(self) -> GeneratorSettings:
        """What a client of it needs."""
        return GeneratorSettings(**self.model_dump(include=set(GeneratorSettings.model_fields)))

    @property
    def hosted(self) -> bool:
        """Whether we start it."""
        return self.url is None and self.kind == "openai"


class PolicyRecipe(_Section):
    """The model to train or to ask: a folder or a hub name.

    `mode=chat` talks to an endpoint that takes no token ids, in evaluation alone; `request` is merged into its requests
    (null takes a field out).
    """

    model: str
    mode: Literal["tokens", "chat"] = "tokens"
    request: dict[str, Any] = Field(default_factory=dict)


class GatewayRecipe(_Section):
    """Our `agl-server` on `port`, or a running one at `url` with its `key`."""

    url: Url | None = None
    key: str | None = None
    port: Port = 8181


class WorkersRecipe(_Section):
    """The worker pool."""

    processes: int = Field(default=1, ge=1)
    concurrency: int = Field(default=16, ge=1)


class RayRecipe(_Section):
    """A Ray of our own, or a running one at `address`."""

    address: str | None = None


class Recipe(_Section):
    """A full run."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = 0
    runs: Path = Path("runs")
    prepared: Path = Path("prepared")
    data: DataRecipe
    agent: AgentSettings = Field(default_factory=AgentSettings)
    policy: PolicyRecipe
    retriever: RetrieverRecipe = Field(default_factory=RetrieverRecipe)
    generator: GeneratorRecipe = Field(default_factory=GeneratorRecipe)
    judge: JudgeSettings = Field(default_factory=JudgeSettings)
    gateway: GatewayRecipe = Field(default_factory=GatewayRecipe)
    workers: WorkersRecipe = Field(default_factory=WorkersRecipe)
    ray: RayRecipe = Field(default_factory=RayRecipe)
    trainer: TrainerRecipe = Field(default_factory=TrainerRecipe)

    @property
    def data_folder(self) -> Path:
        """Where the data stages keep their manifests and what they make."""
        return self.data.folder or self.prepared / "data" / self.name

    @property
    def index_folder(self) -> Path:
        """Where our server's index is: with the data that have a folder of their own."""
        return self.data.folder / "index" if self.data.folder else self.prepared / "index" / self.data.corpus.stem

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        limits, trainer = self.agent.limits, self.trainer
        if limits.max_context_tokens > trainer.response_tokens:
            raise ValueError(
                f"agent.limits.max_context_tokens ({limits.max_context_tokens}) is more than trainer.response_tokens "
                f"({trainer.response_tokens}): the training rows of long episodes would be cut"
            )
        return self


def recipe_path(name: str) -> Path:
    """Where a recipe is: a path as given, or the name of a shipped one. Raises ConfigError naming those there are."""
    if (path := Path(name)).is_file():
        return path
    shipped = {path.stem: path for path in sorted(EXAMPLES.glob("*/recipes/*.yaml"))}
    if name not in shipped:
        known = ", ".join(shipped) or "none beside this installation"
        raise ConfigError(f"there is no recipe {name!r}", remedy=f"give a YAML file, or one of: {known}")
    return shipped[name]


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` with `section.field=value` overrides. Raises ConfigError that names the field at fault."""
    if not OmegaConf.has_resolver("embedded"):
        OmegaConf.register_new_resolver("embedded", lambda asset: str(getattr(embedded, asset)))
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise ConfigError(f"{override!r} is not an override", remedy="write section.field=value")
    path = recipe_path(name)
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        values: Any = OmegaConf.to_container(merged, resolve=True)
        return Recipe.model_validate(values)
    except (OmegaConfBaseException, YAMLError, AttributeError, UnicodeDecodeError) as cause:
        raise ConfigError(f"the recipe {path} can not be read: {cause}", remedy="see examples/s3/recipes") from cause
    except ValidationError as cause:
        problems = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'recipe'}: {item['msg']}" for item in cause.errors())
        raise ConfigError(
            f"the recipe {path} with these overrides does not fit: {problems}", remedy="correct the field"
        ) from cause
