"""The `s3-agent` command: every job of the project, one subcommand each. Heavy modules load inside the commands."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from retrieval_server.indexing.command import app as index_app
from s3_agent.errors import S3AgentError
from s3_agent.recipe import load_recipe

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="Train and run search agents on Agent Lightning. Start with `s3-agent train`: this machine is enough.",
)
rag_cache_app = typer.Typer(no_args_is_help=True, help="Naive-RAG answers, by which training tasks are filtered.")
app.add_typer(rag_cache_app, name="rag-cache")
app.add_typer(index_app, name="index")

RecipeOption = Annotated[str, typer.Option("--recipe", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Overrides, e.g. `trainer.steps=3`.")
]


@app.command()
def train(
    overrides: Overrides = None,
    recipe: RecipeOption = "cpu",
    name: Annotated[str | None, typer.Option(help="Name of the run's folder; default: recipe and time.")] = None,
) -> None:
    """Train a search agent end to end: retriever, generator, gateway, workers and trainer, each a process of its own.

    A part that already runs elsewhere is used and never stopped: `gateway.url=… retriever.url=… generator.url=…
    ray.address=…`. The run's logs, metrics, episodes, checkpoint and summary are in `runs/<name>/`.
    """
    from s3_agent.launch.job import train_job

    raise typer.Exit(train_job(load_recipe(recipe, overrides or []), name=name))


@app.command()
def workers(
    gateway: Annotated[str, typer.Option(help="Address of the Agent Lightning gateway.")],
    key: Annotated[str, typer.Option(envvar="AGL_KEY", help="The gateway's key.")] = "",
    overrides: Overrides = None,
    recipe: RecipeOption = "cpu",
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: the recipe's.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Rollouts at a time in each process.")] = None,
    pool_id: Annotated[
        str, typer.Option(help="A pool started again under its id adopts the rollouts it had.")
    ] = "pool",
    episodes: Annotated[Path | None, typer.Option(help="Append one JSON line per ended rollout here.")] = None,
) -> None:
    """Run the worker pool against a gateway: claim queued rollouts, play them, report rewards.

    The retriever and the generator are the recipe's, at their `url` or local `port`.
    """
    from s3_agent.launch.commands import generator_url, retriever_url
    from s3_agent.rollout.pool import WorkerPool
    from s3_agent.rollout.worker import WorkerSettings

    settings = load_recipe(recipe, overrides or [])
    pool = WorkerPool(
        WorkerSettings(
            gateway_url=gateway,
            gateway_key=key,
            retriever_url=retriever_url(settings),
            generator_url=generator_url(settings),
            policy_tokenizer=settings.policy.model,
            pool_id=pool_id,
            concurrency=concurrency or settings.workers.concurrency,
            agent=settings.agent,
            generator=settings.generator.client,
            episodes=None if episodes is None else str(episodes),
        ),
        processes=processes or settings.workers.processes,
    )
    raise typer.Exit(pool.run())


@app.command()
def serve(overrides: Overrides = None, recipe: RecipeOption = "cpu") -> None:
    """Run the retrieval server over the recipe's corpus. Its index is built when it is missing."""
    from s3_agent.launch.commands import retriever_command

    settings = load_recipe(recipe, overrides or [])
    _become(retriever_command(settings, port=settings.retriever.port))


@app.command()
def generator(overrides: Overrides = None, recipe: RecipeOption = "cpu") -> None:
    """Host the recipe's generator with vLLM behind the OpenAI API, on the CPU or on a GPU."""
    from s3_agent.launch.commands import CPU_ENVIRONMENT, generator_command, has_cpu_vllm

    settings = load_recipe(recipe, overrides or [])
    if has_cpu_vllm():
        os.environ.update(CPU_ENVIRONMENT)
    _become(generator_command(settings, port=settings.generator.port))


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    overrides: Overrides = None,
    recipe: RecipeOption = "cpu",
    run: Annotated[Path | None, typer.Option(help="A run's folder; default: the newest finished one.")] = None,
    policy_url: Annotated[
        str | None, typer.Option(help="A running policy server; default: start one for the run.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the episode as JSON.")] = False,
) -> None:
    """Show one episode of a trained policy: its turns, queries, marked passages and the generator's answer.

    Services that do not run yet are started for the question and stopped after it.
    """
    from s3_agent.launch.ask import ask_job

    raise typer.Exit(
        ask_job(load_recipe(recipe, overrides or []), question, run=run, policy_url=policy_url, as_json=json_output)
    )


@rag_cache_app.command("build")
def rag_cache_build(
    overrides: Overrides = None,
    recipe: RecipeOption = "cpu",
    concurrency: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
) -> None:
    """Answer every task with naive RAG and store the answers with their fingerprint.

    Starts the retriever and the generator when they have no `url`.
    """
    from s3_agent.launch.rag_cache import build_rag_cache

    raise typer.Exit(build_rag_cache(load_recipe(recipe, overrides or []), concurrency=concurrency))


def _become(command: list[str]) -> None:
    os.execv(command[0], command)


def main() -> None:
    """Run the command line; an error of ours is told without a traceback."""
    try:
        app()
    except S3AgentError as error:
        typer.secho(f"{error.boundary}: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)


if __name__ == "__main__":
    main()
