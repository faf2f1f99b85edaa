"""The recipe: one file that describes a whole run, and is checked before anything starts. Every command reads one.

A recipe is YAML (a shipped one by its name, or any path); OmegaConf merges it with `section.field=value` overrides. The
models below define its fields. `${embedded:NAME}` stands for the path of an embedded file.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from yaml import YAMLError

from retrieval_server.index_kinds import (
    DEFAULT,
    INDEX_KINDS,
    AnyIndexSettings,
    IndexSettings,
    default_settings,
    kind_of,
)
from retrieval_server.rerankers import RERANKERS, AnyRerankSettings, RerankSettings
from s3_agent import embedded
from s3_agent.agents.settings import AgentName
from s3_agent.agl.verl_config import TrainerRecipe
from s3_agent.clients.generator import GeneratorSettings
from s3_agent.clients.judge import JudgeSettings
from s3_agent.clients.prompts import ContextLayout
from s3_agent.clients.tokenizer import ChatTemplate
from s3_agent.data.published.sources import SourceSettings
from s3_agent.errors import ConfigError, nearest
from s3_agent.rollout.runner import AgentSettings
from s3_agent.shipped import EXAMPLES, shipped_recipes

EAGER = "--enforce-eager"
"""vLLM's option to compile nothing."""
_COMPILING = ("--no-enforce-eager", "--compilation-config", "--optimization-level", "-O", "-cc")
HOST = "127.0.0.1"


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError(f"{value!r} is not an http address")
    return value.rstrip("/")


def _urls(value: Any) -> Any:
    """Several addresses, as a list or separated by commas, as one text separated by commas."""
    urls = value.split(",") if isinstance(value, str) else value
    if not isinstance(urls, list | tuple) or not all(isinstance(url, str) for url in urls):
        return value
    return ",".join(dict.fromkeys(_url(url.strip()) for url in urls)) or None


Url = Annotated[str, AfterValidator(_url)]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataRecipe(_Section):
    """Corpus, tasks and the naive-RAG cache that filters the training tasks.

    Naive RAG reads `rag_topk` passages, in the layout of selected passages or in the lines of the original
    (`rag_layout`); `retrieved_topk` passages of each question are stored. Without a cache every training task is
    played, as in Search-R1. `shuffle` gives each pass over the training tasks a new order, which the recipe's seed
    decides. With `sources`, `s3-agent data` makes these files from published ones; without, they must exist. Its other
    files are in `folder` (default: `prepared/data/<name>`). `allow_mismatch` allows training with a RAG cache that was
    made with other inputs, and the run's `data.json` records this.
    """

    corpus: Path
    train: Path
    validation: Path
    rag_cache: Path | None = None
    shuffle: bool = True
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
    """The retriever: our server over `data.corpus` on `port` (0: any free one), or a running one at `url`.

    `url` may be several, as a list or separated by commas: servers over the same index, which share the requests.
    `index` describes the index that it searches (docs/retrieval.md), and `folder` is its folder; default: `index` in
    `data.folder`, or `prepared/index/CORPUS`. A missing BM25 index is built at the start. A dense index takes hours:
    build it before the run. `rerank` scores the index's best passages again (docs/richer-search.md).
    """

    url: Annotated[str | None, BeforeValidator(_urls)] = None
    port: Port = 3000
    index: AnyIndexSettings = Field(default_factory=default_settings)
    rerank: AnyRerankSettings | None = None
    folder: Path | None = None

    @model_validator(mode="after")
    def _reranks_its_own(self) -> Self:
        if self.url is not None and self.rerank is not None:
            raise ValueError("`rerank` is for our own server: leave it out, or start the server at `url` with --rerank")
        if self.rerank is not None and not kind_of(self.index).searches_corpus:
            raise ValueError(f"passages of `index.kind: {self.index.kind}` are not reranked: leave `rerank` out")
        return self

    def check_topk(self, topk: int) -> None:
        """Raise ValueError if our own server can not return `topk` passages for a query."""
        if self.url is None:
            self.index.check_topk(topk)
            if self.rerank is not None:
                self.rerank.check_topk(topk)
                self.index.check_topk(self.rerank.candidates)

    @field_validator("index", mode="before")
    @classmethod
    def _default_kind(cls, index: Any) -> Any:
        return {"kind": DEFAULT, **index} if isinstance(index, dict) else index


class GeneratorRecipe(GeneratorSettings):
    """The generator: a vLLM server that we start for `model` on `port`, or a running one at `url` (OpenAI base, with
    /v1).

    `serve` has more options of vLLM. `dtype=auto` is the model's own precision; on a CPU that does not compute it
    quickly, float32 (docs/generator.md). On a CPU the model is compiled only if `serve` has `--no-enforce-eager`.
    `python` is the interpreter of another environment, whose vLLM then serves the generator instead of the installed
    one.
    """

    url: Url | None = None
    port: Port = 8000
    python: Path | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    serve: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_dtype(self) -> Self:
        if self.dtype != "auto" and (served := self.served_dtype) not in (None, self.dtype):
            raise ValueError(f"dtype is {self.dtype}, and serve asks for --dtype {served}: take one of them out")
        return self

    @property
    def served_dtype(self) -> str | None:
        """The precision that `serve` asks for; None if it names none."""
        return self._served("--dtype")

    @property
    def served_window(self) -> int | None:
        """The context in tokens that `serve` asks for; None if it names none, or not as a plain number."""
        served = self._served("--max-model-len")
        return int(served) if served and served.isdecimal() else None

    @property
    def compiled(self) -> bool:
        """Whether `serve` asks vLLM to compile the model; on a CPU it is not compiled otherwise."""
        return EAGER not in self.serve and any(option.startswith(_COMPILING) for option in self.serve)

    def _served(self, name: str) -> str | None:
        for option, following in zip_longest(self.serve, self.serve[1:]):
            if option == name:
                return following
            if option.startswith(f"{name}="):
                return option.partition("=")[2]
        return None

    @property
    def client(self) -> GeneratorSettings:
        """The settings that a client of the generator needs."""
        return GeneratorSettings(**self.model_dump(include=set(GeneratorSettings.model_fields)))

    @property
    def hosted(self) -> bool:
        """Whether we start the generator."""
        return self.url is None and self.openai_compatible


class PolicyRecipe(ChatTemplate):
    """The model to train or to ask: a folder or a hub name. Its chat template is described in docs/recipes.md.

    `mode=chat` is for a server that takes no token ids, and only for evaluation; `request` is merged into its requests
    (null removes a field). `context_tokens` is the window of the policy's server, if that does not report it.
    `parameters` is the number of parameters; the dry run needs it before the model is downloaded.
    """

    model: str
    parameters: int | None = Field(default=None, ge=1)
    mode: Literal["tokens", "chat"] = "tokens"
    context_tokens: int | None = Field(default=None, ge=64)
    request: dict[str, Any] = Field(default_factory=dict)

    @property
    def template(self) -> ChatTemplate:
        """Only the settings of the chat template."""
        return ChatTemplate(**self.model_dump(include=set(ChatTemplate.model_fields)))

    @field_validator("request")
    @classmethod
    def _one_answer(cls, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("stream") or request.get("n") not in (None, 1):
            raise ValueError("n and stream can not be set: each call reads one complete answer")
        return request


class GatewayRecipe(_Section):
    """The gateway: ours on `port`, or a running one at `url`, whose key is in `AGL_KEY` or in the file `key_file`.

    `key` is for recipes in files that only you can read; on a command line, `ps` shows it to every user. `policy_calls`
    is how many policy calls the gateway passes at a time: a pool claims no more rollouts than that. Default: no limit
    for our gateway; for a running one the limit that it reports, or 100, the limit of Agent Lightning's own gateway
    (docs/worker-pool.md).
    """

    url: Url | None = None
    key: str | None = None
    key_file: Path | None = None
    port: Port = 8181
    policy_calls: int | None = Field(default=None, ge=1)


class WorkersRecipe(_Section):
    """The worker pool: `processes` worker processes play `concurrency` rollouts each at a time.

    With `external`, your own controller plays the rollouts, and no pool is started.
    """

    processes: int = Field(default=1, ge=1)
    concurrency: int = Field(default=16, ge=1)
    external: bool = False


class LocalRecipe(_Section):
    """Your own class that plays the rollouts instead of `agent`, as in Agent Lightning's `agentlightning.local`.

    Its environment has the same variables as for our own classes (docs/your-own-agent.md), and those of `env_map`.
    `native`: the class is written for our pool, and a process plays many of its rollouts at a time.
    """

    agent_class: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    env_map: dict[str, str] = Field(default_factory=dict)
    native: bool = False


class GpuRecipe(_Section):
    """The GPUs that each process sees, as numbers among the GPUs that the launcher sees.

    If all lists are empty, every process sees all GPUs. Otherwise a process with an empty list sees none.
    """

    trainer: list[int] = Field(default_factory=list)
    retriever: list[int] = Field(default_factory=list)
    generator: list[int] = Field(default_factory=list)

    @model_validator(mode="after")
    def _numbers(self) -> Self:
        for part in GpuRecipe.model_fields:
            numbers = getattr(self, part)
            if len(set(numbers)) < len(numbers) or any(number < 0 for number in numbers):
                raise ValueError(f"{part}: {numbers} must be different numbers, counted from 0")
        return self

    @property
    def placed(self) -> bool:
        """Whether the recipe lists GPUs for any process."""
        return bool(self.trainer or self.retriever or self.generator)

    def of(self, part: str) -> list[int] | None:
        """The GPUs of a process of the run, by its name; None: all GPUs."""
        return getattr(self, part, []) if self.placed else None


class RayRecipe(_Section):
    """A running Ray at `address`; without an address the run starts its own."""

    address: str | None = None


class Price(_Section):
    """US dollars for a million tokens."""

    prompt: float = Field(ge=0)
    response: float = Field(ge=0)


class EvaluationRecipe(_Section):
    """Settings of evaluations: `prices` by the model's name, which is the name at its server or of its folder."""

    prices: dict[str, Price] = Field(default_factory=dict)


class Recipe(_Section):
    """A whole run.

    `agents` and `policies` are for other agents than the recipe's own, by name: `agents.NAME` overrides that agent's
    defaults, and `policies.NAME` is the policy that it starts with. `policies` may also name a class (`module:Class`).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = 0
    runs: Path = Path("runs")
    prepared: Path = Path("prepared")
    data: DataRecipe
    agent: AgentSettings = Field(default_factory=AgentSettings)
    agents: dict[AgentName, dict[str, Any]] = Field(default_factory=dict)
    local: LocalRecipe = Field(default_factory=LocalRecipe)
    policy: PolicyRecipe
    policies: dict[str, PolicyRecipe] = Field(default_factory=dict)
    retriever: RetrieverRecipe = Field(default_factory=RetrieverRecipe)
    generator: GeneratorRecipe = Field(default_factory=GeneratorRecipe)
    judge: JudgeSettings = Field(default_factory=JudgeSettings)
    gateway: GatewayRecipe = Field(default_factory=GatewayRecipe)
    workers: WorkersRecipe = Field(default_factory=WorkersRecipe)
    gpus: GpuRecipe = Field(default_factory=GpuRecipe)
    ray: RayRecipe = Field(default_factory=RayRecipe)
    trainer: TrainerRecipe = Field(default_factory=TrainerRecipe)
    evaluation: EvaluationRecipe = Field(default_factory=EvaluationRecipe)

    def playing(self, name: str) -> AgentSettings:
        """The settings of the agent `name` in this recipe."""
        settings, given = self.agent.played_by(name), self.agents.get(name, {})
        if name == self.agent.name or not given:
            return settings
        own = settings.model_dump(include={"name", "prompt", "limits"})
        return AgentSettings.model_validate({**own, **given, "limits": {**own["limits"], **given.get("limits", {})}})

    def policy_of(self, name: str) -> PolicyRecipe:
        """The policy that the agent `name` (or a class, `module:Class`) starts with."""
        return self.policies.get(name, self.policy)

    def of_agent(self, label: str) -> "Recipe":
        """This recipe with another agent, by name or as `module:Class`; nothing else changes.

        Raises ConfigError for a label that is neither.
        """
        values = self.model_dump() | {"policy": self.policy_of(label).model_dump()}
        if ":" in label:
            values["local"] |= {"agent_class": label}
        else:
            values |= {"agent": self.playing(label).model_dump(), "local": LocalRecipe().model_dump()}
        try:
            return Recipe.model_validate(values)
        except ValidationError as cause:
            problems = "; ".join(_problem(item)[0] for item in cause.errors())
            raise ConfigError(
                f"the recipe {self.name} is not valid with the agent {label}: {problems}",
                remedy="set what the agent needs in `agents` or `policies`",
            ) from cause

    @property
    def trained_window(self) -> int:
        """The window of the trainer's policy server, in tokens: what the trainer sets, or less."""
        longest = self.trainer.prompt_tokens + self.trainer.response_tokens
        values: Any = self.trainer.verl
        for name in ("actor_rollout_ref", "rollout", "max_model_len"):
            values = values.get(name) if isinstance(values, dict) else None
        served = values if isinstance(values, int) else longest
        return min(served, self.policy.context_tokens or served)

    @property
    def retriever_url(self) -> str:
        """Where the retriever is, or will be; several addresses are separated by commas."""
        return self.retriever.url or f"http://{HOST}:{self.retriever.port}"

    @property
    def serves_corpus(self) -> bool:
        """Whether we start a retriever that searches `data.corpus`."""
        return self.retriever.url is None and kind_of(self.retriever.index).searches_corpus

    @property
    def gateway_url(self) -> str:
        """Where the gateway is, or will be."""
        return self.gateway.url or f"http://{HOST}:{self.gateway.port}"

    @property
    def generator_url(self) -> str | None:
        """The OpenAI base address of the generator; None for Claude, whose client knows its address."""
        settings = self.generator
        return settings.url or (f"http://{HOST}:{settings.port}/v1" if settings.hosted else None)

    @property
    def asks_generator(self) -> bool:
        """Whether a run needs the generator; a user's class can also ask it."""
        return self.agent.asks_generator or self.local.agent_class is not None

    @property
    def data_folder(self) -> Path:
        """The folder for the manifests and outputs of the data stages."""
        return self.data.folder or self.prepared / "data" / self.name

    @property
    def index_folder(self) -> Path:
        """The folder of our retriever's index."""
        if self.retriever.folder is not None:
            return self.retriever.folder
        return self.data.folder / "index" if self.data.folder else self.prepared / "index" / self.data.corpus.stem

    @model_validator(mode="after")
    def _agents_fit(self) -> Self:
        for name in self.agents:
            try:
                self.playing(name)
            except (TypeError, ValueError) as cause:
                raise ValueError(f"agents.{name}: {cause}") from cause
        return self

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        limits, trainer = self.agent.limits, self.trainer
        if not self.agent.method.trainable:
            return self
        if limits.max_context_tokens > trainer.response_tokens:
            raise ValueError(
                f"agent.limits.max_context_tokens ({limits.max_context_tokens}) is more than trainer.response_tokens "
                f"({trainer.response_tokens}): the training rows of long episodes would be cut"
            )
        return self

    @model_validator(mode="after")
    def _enough_candidates(self) -> Self:
        self.retriever.check_topk(max(self.agent.most_topk, self.data.retrieved_topk))
        return self

    @model_validator(mode="after")
    def _baseline_is_there(self) -> Self:
        if self.data.rag_cache is None and self.agent.scoring.needs_rag_score:
            raise ValueError(f"the reward {self.agent.reward} needs the naive-RAG scores of data.rag_cache")
        return self

    @model_validator(mode="after")
    def _gpus_are_counted(self) -> Self:
        placed = self.gpus.trainer
        if self.trainer.device == "cuda" and self.gpus.placed and len(placed) != self.trainer.gpus:
            raise ValueError(
                f"gpus.trainer names {len(placed)} GPUs {placed}, trainer.gpus is {self.trainer.gpus}: change one"
            )
        return self


def require_trainable(recipe: Recipe) -> None:
    """Raises ConfigError if the trainer can not learn from the agent's rollouts."""
    method = recipe.agent.method
    if method.trainable or recipe.local.agent_class:
        return
    why = {
        "none": "asks no policy: there are no tokens to learn from",
        "rewriter": "uses a policy that was trained elsewhere, with another reward than ours",
        "instruct": "writes a new prompt for each call: a rollout is not one row of tokens",
    }[method.policy]
    raise ConfigError(
        f"{recipe.agent.name} can not be trained: it {why}", remedy="evaluate it, or set agent.name to s3 or search_r1"
    )


def recipe_path(name: str) -> Path:
    """The path of a recipe, given as a path or as a shipped recipe's name. Raises ConfigError that lists the names."""
    if (path := Path(name)).is_file():
        return path
    shipped = shipped_recipes()
    if name not in shipped:
        raise ConfigError(f"there is no recipe {name!r}", remedy=f"give a YAML file, or one of: {', '.join(shipped)}")
    return shipped[name]


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of a recipe as `section.field`, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models(field.annotation):
            yield from field_paths(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) is dict:
        return  # its keys are names that a user chooses
    if annotation is IndexSettings:
        yield from (kind.settings for kind in INDEX_KINDS.loadable())
    elif annotation is RerankSettings:
        yield from (style.settings for style in RERANKERS.loadable())
    elif (variants := getattr(annotation, "variants", None)) is not None:
        yield from variants()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _problem(item: Any) -> tuple[str, str]:
    path = ".".join(map(str, item["loc"])) or "recipe"
    if item["type"] != "extra_forbidden":
        return f"{path}: {item['msg']}", "correct the field."
    return f"{path}: there is no such field", nearest(path, field_paths(Recipe))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` with `section.field=value` overrides. Raises ConfigError that names the wrong field."""
    if not OmegaConf.has_resolver("embedded"):
        OmegaConf.register_new_resolver("embedded", lambda asset: str(getattr(embedded, asset)))
    path = recipe_path(name)
    try:
        values: Any = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, AttributeError, UnicodeDecodeError) as cause:
        raise ConfigError(f"the recipe {path} can not be read: {cause}", remedy=f"see {EXAMPLES}/s3/recipes") from cause
    return merge_overrides(values, overrides, where=f"the recipe {path}")


def merge_overrides(values: Any, overrides: Sequence[str], *, where: str) -> Recipe:
    """The recipe with these values and overrides. Raises ConfigError that names the wrong field."""
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise ConfigError(f"{override!r} is not an override", remedy="write section.field=value")
    try:
        merged = OmegaConf.merge(values, OmegaConf.from_dotlist(list(overrides)))
        return Recipe.model_validate(OmegaConf.to_container(merged, resolve=True))
    except (OmegaConfBaseException, YAMLError, AttributeError) as cause:
        raise ConfigError(f"{where} can not be read: {cause}", remedy=f"see {EXAMPLES}/s3/recipes") from cause
    except ValidationError as cause:
        problems = [_problem(item) for item in cause.errors()]
        raise ConfigError(
            f"{where} with these overrides is not valid: {'; '.join(told for told, _ in problems)}",
            remedy=" ".join(dict.fromkeys(remedy for _, remedy in problems)),
        ) from cause
