"""Builds the command line of each process of a run from the recipe.

Called by `parts`, `services`, the jobs and the dry run. Everything binds 127.0.0.1 (docs/promises.md, 7).
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel

from retrieval_server.index_kinds import kind_of
from s3_agent.agl.cpu import BRIEF_SPINNING, SEEDED_WORKER
from s3_agent.agl.train import KEY_VARIABLE
from s3_agent.clients.gateway_limit import POLICY_CALLS
from s3_agent.data.files.whole import write_whole
from s3_agent.embedded import generator as embedded_generator
from s3_agent.errors import ConfigError
from s3_agent.names import hydra_value, literal
from s3_agent.processes.run_folder import Run
from s3_agent.processes.serving import generator_on_cpu, has_cpu_vllm
from s3_agent.recipe import EAGER, HOST, GeneratorRecipe, Recipe

CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    **BRIEF_SPINNING,
}
CPU_SERVER = "s3_agent.agl.cpu.vllm_server"
API_SERVER = "vllm.entrypoints.openai.api_server"
SERVER_MODULES = (
    API_SERVER,
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "transformers.models.llama.modeling_llama",
)
"""The modules that a vLLM server on the CPU imports."""


def cpu_environment(settings: GeneratorRecipe | None = None) -> dict[str, str]:
    """The environment variables of a vLLM server on the CPU; `settings`: the generator's, when the server is the
    generator.

    A server that compiles nothing needs no C++ compiler. What `CPU_SERVER` does for the installed release, a release
    from 0.32 on does itself when VLLM_ENABLE_V1_MULTIPROCESSING is 0.
    """
    compiled = settings is not None and settings.compiled
    elsewhere = settings is not None and settings.python is not None
    return {
        **CPU_ENVIRONMENT,
        **({} if compiled else {"TORCHDYNAMO_DISABLE": "1"}),
        **({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if elsewhere else {}),
    }


def cpu_serving(settings: GeneratorRecipe | None = None, *, threads: int | None = None) -> dict[str, Any]:
    """The environment and preloaded modules of a vLLM server process on the CPU. `threads` None: one for each core."""
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    ours = settings is None or settings.python is None
    return {"environment": {**cpu_environment(settings), **limit}, "preload": SERVER_MODULES if ours else ()}


def own_command(command: str, recipe: Path, *overrides: str) -> list[str]:
    """The command that runs one of our own subcommands with a resolved recipe."""
    return [sys.executable, "-m", "s3_agent.cli", command, *overrides, "--recipe", str(recipe)]


def retriever_command(recipe: Recipe, *, port: int) -> list[str]:
    """The command of our retrieval server over the recipe's corpus; a missing BM25 index is built first."""
    kind = kind_of(recipe.retriever.index)
    options = ["--corpus", str(recipe.data.corpus)] * kind.searches_corpus
    options += ["--index", str(recipe.index_folder), "--port", str(port)]
    options += ["--backend", str(backend_file(recipe))] + ["--build"] * kind.built_at_start
    options += [] if recipe.retriever.rerank is None else ["--rerank", str(rerank_file(recipe))]
    return [sys.executable, "-m", "retrieval_server", "--host", HOST, *options]


def backend_file(recipe: Recipe) -> Path:
    """The file with the settings of the recipe's index, in the form that `index build` and the server read."""
    return recipe.index_folder.with_name(recipe.index_folder.name + ".yaml")


def rerank_file(recipe: Recipe) -> Path:
    """The file with the settings of the recipe's reranker, in the form that the server reads."""
    return recipe.index_folder.with_name(recipe.index_folder.name + ".rerank.yaml")


def write_retriever_files(recipe: Recipe) -> None:
    """Write the settings of the recipe's index, and of its reranker, to files next to the index."""
    _write_settings(backend_file(recipe), recipe.retriever.index)
    if recipe.retriever.rerank is not None:
        _write_settings(rerank_file(recipe), recipe.retriever.rerank)


def _write_settings(path: Path, settings: BaseModel) -> None:
    values = settings.model_dump(mode="json")
    write_whole(path, OmegaConf.to_yaml(OmegaConf.create(literal(values))))


def generator_model(recipe: Recipe) -> str:
    """The folder or hub name that vLLM serves; the embedded generator is converted on first use."""
    model = recipe.generator.model
    if model != embedded_generator.NAME:
        return model
    recipe.prepared.mkdir(parents=True, exist_ok=True)
    return str(embedded_generator.prepare_generator(recipe.prepared / model))


def vllm_command(model: str, name: str, *, port: int, options: list[str], python: Path | None = None) -> list[str]:
    """The command of vLLM's OpenAI server, without the sampling defaults of the model's generation_config.

    `python` is the interpreter of another environment. Our changes to vLLM apply only to the release that is installed
    here.
    """
    ours = python is None and has_cpu_vllm()
    # The `vllm` command needs a distribution named vllm, and the CPU build has another name.
    return [
        *(str(python or sys.executable), "-m", CPU_SERVER if ours else API_SERVER),
        *("--model", model, "--served-model-name", name, "--host", HOST, "--port", str(port)),
        *("--generation-config", "vllm", "--disable-uvicorn-access-log"),
        *(("--worker-extension-cls", SEEDED_WORKER) if ours else ()),
        *options,
    ]


def generator_command(recipe: Recipe, *, port: int) -> list[str]:
    """The command of vLLM for the recipe's generator. Raises ConfigError when the generator is hosted elsewhere."""
    settings = recipe.generator
    if not settings.hosted:
        raise ConfigError(
            f"the generator {settings.model} is hosted elsewhere ({settings.url or settings.kind})",
            remedy="remove generator.url and generator.kind to host one here",
        )
    return vllm_command(
        generator_model(recipe),
        settings.model,
        port=port,
        options=generator_options(recipe),
        python=settings.python,
    )


def generator_options(recipe: Recipe) -> list[str]:
    """vLLM's options for the recipe's generator, including its precision.

    On a CPU nothing is compiled unless the recipe asks for it: without compilation, a small generator is ready in two
    thirds of the time, answers as fast, and needs no C++ compiler.
    """
    settings = recipe.generator
    eager = generator_on_cpu(recipe) and not settings.compiled and EAGER not in settings.serve
    return [
        *(() if settings.served_dtype else ("--dtype", settings.dtype)),
        *((EAGER,) if eager else ()),
        *settings.serve,
    ]


def gateway_command(recipe: Recipe, *, port: int, folder: Path) -> list[str]:
    """The command of Agent Lightning's gateway; its key is in the environment, where `ps` does not show it."""
    limit = recipe.gateway.policy_calls
    return [
        *(sys.executable, "-m", "s3_agent.agl.gateway", f"host={HOST}", f"port={port}"),
        *(() if limit is None else (f"+{POLICY_CALLS}={limit}",)),
        f"key=${{oc.env:{KEY_VARIABLE}}}",
        f"default_proxy.model_name={hydra_value(recipe.policy.model)}",
        f"default_proxy.train.temperature={recipe.trainer.temperature}",
        "default_proxy.val.temperature=0.0",
        *(
            f"hydra.run.dir={hydra_value(folder)}",
            "hydra.output_subdir=null",
            "hydra/job_logging=none",
            "hydra/hydra_logging=none",
        ),
    ]


def workers_command(recipe: Recipe, run: Run, *, gateway: str, pool_id: str) -> list[str]:
    """The command of the worker pool for a run's resolved recipe."""
    options = ["--gateway", gateway, "--pool-id", pool_id, "--plain", "--drain-s", "5"]
    options += ["--episodes", str(run.episodes), "--pool-log", str(run.pool_log)]
    local, workers = recipe.local, recipe.workers
    if local.agent_class and local.native:
        options += ["--native-agent", local.agent_class]
    elif local.agent_class:  # one rollout for each process: the same number at a time as with a native agent
        options += ["--processes", str(workers.processes * workers.concurrency)]
    return [*own_command("workers", run.recipe), *options]


def trainer_command(settings: Path, train: Path, validation: Path, metrics: Path, episodes: Path) -> list[str]:
    """The command of the trainer, which calls verl's own `run_ppo` in a separate process."""
    return [sys.executable, "-m", "s3_agent.agl.train", *map(str, (settings, train, validation, metrics, episodes))]


def merge_command(shards: Path, target: Path) -> list[str]:
    """The command of verl's merger, which merges a checkpoint's shards into a Hugging Face folder, in bfloat16."""
    return [sys.executable, "-m", "s3_agent.agl.merge_shards", str(shards), str(target)]
