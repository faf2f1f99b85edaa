"""The `s3-agent` command: one subcommand for each job. Slow modules are imported inside the commands, not at the
top."""

import os
import re
import socket
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from retrieval_server.indexing.command import app as index_app
from retrieval_server.proxies import spare_loopback
from s3_agent.cli import evaluation as evaluation_command
from s3_agent.cli.data import app as data_app
from s3_agent.cli.data import prepare
from s3_agent.cli.evaluation import PolicyKey, PolicyKeyFile
from s3_agent.errors import S3AgentError
from s3_agent.guard import printable
from s3_agent.logs import set_up_log
from s3_agent.processes.requirements import (
    missing_module,
    require_retrieval_server,
    require_training_stack,
    require_vllm,
)
from s3_agent.recipe import load_recipe, require_trainable

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="Train and run search agents on Agent Lightning. Start with `s3-agent setup`, then `s3-agent train`: this "
    "machine is enough.",
)
rag_cache_app = typer.Typer(
    no_args_is_help=True, help="Naive-RAG answers, which decide the training tasks that are kept."
)
app.add_typer(rag_cache_app, name="rag-cache")
app.add_typer(index_app, name="index")
app.command("eval")(evaluation_command.evaluate)
app.command()(evaluation_command.export)
app.command()(evaluation_command.report)
app.add_typer(data_app, name="data")

RecipeOption = Annotated[str, typer.Option("--recipe", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Overrides, e.g. `trainer.steps=3`.")
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(version("s3-agent"))
        raise typer.Exit


@app.callback()
def _set_up(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    from s3_agent.processes.keys import shown_keys

    if context.invoked_subcommand != "doctor":  # it reads the environment of the shell
        spare_loopback()
    if shown := shown_keys(sys.argv[1:]):
        names = ", ".join(shown)
        typer.secho(
            f"{names}: every user of this machine can read it with `ps`; export AGL_KEY or S3_AGENT_POLICY_KEY, or "
            "name a file (--key-file, --policy-key-file, gateway.key_file=)",
            err=True,
            fg=typer.colors.YELLOW,
        )
    set_up_log()


class LauncherName(StrEnum):
    """The machines on which worker processes are started."""

    local = "local"
    ray = "ray"


@app.command()
def train(
    overrides: Overrides = None,
    recipe: RecipeOption = "cpu",
    agent: Annotated[
        str | None, typer.Option(help="Another agent for the same recipe: a name, or a class as `module:Class`.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder; default: recipe and time.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue a run that was killed, with its own recipe.")
    ] = None,
    twin: Annotated[
        bool,
        typer.Option("--twin", help="Try a small version of the recipe on this machine's CPU, with the embedded data."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the processes that would start, their files and disk space, and stop."),
    ] = False,
    skip_doctor: Annotated[
        bool, typer.Option("--skip-doctor", help="Start even if `s3-agent doctor` finds errors.")
    ] = False,
    allow_mismatch: Annotated[
        bool,
        typer.Option("--allow-mismatch", help="Use a RAG cache that was made with other inputs; the run records this."),
    ] = False,
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow-changes", help="With --resume: continue although policy, reward, … have changed; this is recorded."
        ),
    ] = False,
) -> None:
    """Train a search agent end to end: retriever, generator, gateway, workers and trainer, each in a separate process.

    A service that already runs elsewhere is used and never stopped: `gateway.url=… retriever.url=… generator.url=…
    ray.address=…`. The run's logs, metrics, episodes, checkpoints and summary are in `runs/<name>/`.
    """
    from s3_agent.doctor.job import dry_run_extra, require_sound
    from s3_agent.training.dry_run import dry_run as show_plan
    from s3_agent.training.twin import load_twin

    overrides = [*(overrides or []), *(["data.allow_mismatch=true"] if allow_mismatch else [])]
    if resume is not None:
        if twin or dry_run or agent:
            raise typer.BadParameter(
                "--resume continues a run unchanged: it can not be used with --twin, --dry-run or --agent"
            )
        require_training_stack("training")
        from s3_agent.training.job import resume_job

        raise typer.Exit(resume_job(resume, overrides, allow_changes=allow_changes, skip_doctor=skip_doctor))
    settings = load_twin(recipe, overrides) if twin else load_recipe(recipe, overrides)
    if agent is not None:
        settings = settings.of_agent(agent)
    require_trainable(settings)
    if dry_run:
        raise typer.Exit(show_plan(settings, extra=dry_run_extra))
    require_training_stack("training")
    from s3_agent.processes.keys import with_gateway_key
    from s3_agent.training.job import train_job

    settings = with_gateway_key(settings)
    if not skip_doctor:
        require_sound(settings)
    raise typer.Exit(train_job(settings, name=name))


@app.command()
def compare(
    agents: Annotated[
        list[str],
        typer.Argument(metavar="AGENT... [SECTION.FIELD=VALUE]...", help="Names, or classes as `module:Class`."),
    ],
    recipe: RecipeOption = "cpu",
    seeds: Annotated[str, typer.Option(help="Each agent is trained once with each of these seeds.")] = "0,1,2",
    at_once: Annotated[int, typer.Option(min=1, help="How many runs are active at the same time.")] = 2,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls", help="Add two runs as controls: shuffled rewards, and learning rate 0."
        ),
    ] = True,
    out: Annotated[Path | None, typer.Option(help="The output folder; default: runs/compare-RECIPE.")] = None,
) -> None:
    """Train agents side by side on one trainer configuration, retriever, generator and data set, and compare them.

    Writes one table with intervals and paired tests, and one page with the curves. Finished runs are kept: the same
    command continues after a stop. Exit code 1: a control failed, so do not trust that the agents learned.
    """
    require_training_stack("training")
    from s3_agent.training.compare import ComparisonRequest, compare_job

    settings = load_recipe(recipe, [argument for argument in agents if "=" in argument])
    if not all(seed.strip().isdigit() for seed in seeds.split(",")):
        raise typer.BadParameter(f"--seeds {seeds}: give numbers separated by commas")
    request = ComparisonRequest(
        agents=[argument for argument in agents if "=" not in argument],
        seeds=[int(seed) for seed in seeds.split(",")],
        at_once=at_once,
        controls=controls,
        out=out or settings.runs / f"compare-{settings.name}",
    )
    if not request.agents:
        raise typer.BadParameter("name at least one agent")
    raise typer.Exit(compare_job(settings, request))


@app.command()
def doctor(
    overrides: Overrides = None,
    recipe: RecipeOption = "cpu",
    machine: Annotated[
        str | None, typer.Option(help="Check for a machine with these GPUs, e.g. `8x40gb`, instead of this one.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print plan and findings as JSON.")] = False,
) -> None:
    """Find problems that would end a run: memory, disk, ports, files, versions, protocol, batches, lengths.

    Prints the memory plan, then each finding with its reason and its fix. Exit code 1: a run can not start.
    """
    from s3_agent.doctor.job import doctor_job
    from s3_agent.processes.keys import with_gateway_key

    raise typer.Exit(
        doctor_job(with_gateway_key(load_recipe(recipe, overrides or [])), machine=machine, as_json=json_output)
    )


@app.command("export-policy")
def export_policy(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to create; it must not exist.")],
    step: Annotated[
        int | None, typer.Option(min=1, help="The step of the checkpoint; default: the last checkpoint.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The policy that validated best, if it was kept.")] = False,
) -> None:
    """Write the policy of a run's checkpoint as a Hugging Face folder, for vLLM, transformers and `s3-agent ask`."""
    from s3_agent.processes.run_folder import Run
    from s3_agent.training.export import best_step
    from s3_agent.training.export import export_policy as export

    if best and step is not None:
        raise typer.BadParameter("--best and --step both name a step: give one of them")
    exported = export(Run(run), output, step=best_step(Run(run)) if best else step)
    typer.echo(f"{output}: the policy after step {exported.step}")
    if exported.note:
        typer.echo(exported.note)


@app.command()
def workers(
    gateway: Annotated[str, typer.Option(help="Address of the Agent Lightning gateway.")],
    key: Annotated[
        str,
        typer.Option(
            envvar="AGL_KEY", help="The gateway's key; `ps` shows it to other users, so export AGL_KEY instead."
        ),
    ] = "",
    key_file: Annotated[Path | None, typer.Option(help="A file that holds the gateway's key.")] = None,
    overrides: Overrides = None,
    recipe: RecipeOption = "cpu",
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: the recipe's.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Rollouts of native agents that each process plays at the same time.")
    ] = None,
    pool_id: Annotated[
        str,
        typer.Option(
            help="A pool that restarts with the same id takes over its earlier rollouts. Default: the host's name."
        ),
    ] = "",
    episodes: Annotated[Path | None, typer.Option(help="Append one JSON line per ended rollout to this file.")] = None,
    pool_log: Annotated[
        Path | None,
        typer.Option(help="Append one JSON line per claim, attempt and end to this file, for `s3-agent rollout`."),
    ] = None,
    allow_agent: Annotated[
        list[str] | None,
        typer.Option(
            help="Run only env-contract classes that match this, e.g. `my_agents.*:*`. Default: any, as AGL does."
        ),
    ] = None,
    native_agent: Annotated[
        list[str] | None,
        typer.Option(help="A `module:Class` to run natively, with many rollouts at the same time in one process."),
    ] = None,
    agent_logs: Annotated[
        Path | None, typer.Option(help="Keep everything that env-contract classes print in this folder.")
    ] = None,
    attempt_timeout_s: Annotated[
        float | None,
        typer.Option(help="Start another attempt when one takes longer; default: the rollout's time limit."),
    ] = None,
    most_attempts: Annotated[
        int | None, typer.Option(min=1, help="Fail a rollout after this many attempts; default: at its deadline.")
    ] = None,
    drain_s: Annotated[
        float, typer.Option(min=0, help="After SIGTERM, rollouts that do not end within this time fail.")
    ] = 600.0,
    plain: Annotated[bool, typer.Option("--plain", help="Print log lines instead of the live view.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics on this port of 127.0.0.1.")
    ] = None,
    launcher: Annotated[
        LauncherName, typer.Option(help="The machines on which the worker processes are started.")
    ] = LauncherName.local,
    ray_address: Annotated[str | None, typer.Option(help="With `--launcher ray`: the cluster to join.")] = None,
) -> None:
    """Run the worker pool against a gateway: claim queued rollouts, play them, report rewards.

    The recipe's agent plays rollouts without an agent class, with the retriever and the generator at their `url` or
    local `port`. A rollout that names a class for AGL's local controller runs that class.
    """

    from s3_agent.processes.keys import given_key
    from s3_agent.rollout.failure_policy import FailurePolicy
    from s3_agent.rollout.pool.launcher import Launcher, LocalLauncher
    from s3_agent.rollout.pool.pool import run_pool
    from s3_agent.rollout.pool.settings import PoolSettings
    from s3_agent.rollout.worker.native import WorkerSettings

    settings = load_recipe(recipe, overrides or [])
    require_trainable(settings)

    def start(worker_settings: WorkerSettings) -> Launcher:
        if launcher is LauncherName.local:
            return LocalLauncher(worker_settings)
        from s3_agent.rollout.pool.ray_launcher import RayLauncher

        return RayLauncher(worker_settings, address=ray_address)

    code = run_pool(
        PoolSettings(
            gateway_url=gateway,
            policy_calls=settings.gateway.policy_calls,
            pool_id=pool_id or re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()),
            processes=processes or settings.workers.processes,
            drain_s=drain_s,
            allowed=tuple(allow_agent or ()),
            failure_policy=FailurePolicy(attempt_timeout_s=attempt_timeout_s, most_attempts=most_attempts),
            episodes=None if episodes is None else str(episodes),
            pool_log=None if pool_log is None else str(pool_log),
            agent_logs=None if agent_logs is None else str(agent_logs),
        ),
        WorkerSettings(
            gateway_key=given_key(key, key_file) or "",
            retriever_url=settings.retriever_url,
            generator_url=settings.generator_url,
            policy_tokenizer=settings.policy.model,
            policy_template=settings.policy.template,
            policy_context_tokens=settings.trained_window,
            concurrency=concurrency or settings.workers.concurrency,
            agent=settings.agent,
            generator=settings.generator.client,
            judge=settings.judge,
            native_agents=tuple(native_agent or ()),
        ),
        launcher=start,
        plain=plain,
        metrics_port=metrics_port,
    )
    raise typer.Exit(code)


@app.command()
def serve(overrides: Overrides = None, recipe: RecipeOption = "cpu") -> None:
    """Run the retrieval server over the recipe's corpus. A missing index is built first."""
    from s3_agent.processes.commands import retriever_command, write_retriever_files

    require_retrieval_server("the retrieval server")
    settings = load_recipe(recipe, overrides or [])
    write_retriever_files(settings)
    _become(retriever_command(settings, port=settings.retriever.port))


@app.command()
def generator(overrides: Overrides = None, recipe: RecipeOption = "cpu") -> None:
    """Serve the recipe's generator with vLLM behind the OpenAI API, on the CPU or on a GPU."""
    from s3_agent.processes.commands import cpu_environment, generator_command
    from s3_agent.processes.serving import generator_on_cpu, with_precision

    loaded = load_recipe(recipe, overrides or [])
    if loaded.generator.python is None:
        require_vllm("the generator")
    settings = with_precision(loaded)
    on_cpu = generator_on_cpu(settings)
    if on_cpu:
        os.environ.update(cpu_environment(settings.generator))
    command = generator_command(settings, port=settings.generator.port)
    if settings.generator.python is not None or not on_cpu:
        _become(command)
    from s3_agent.agl.cpu import vllm_server

    # Run it in this process, which may have loaded vLLM already (s3_agent.preloaded).
    sys.argv = command[2:]
    vllm_server.main()


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    overrides: Overrides = None,
    recipe: RecipeOption = "cpu",
    agent: Annotated[str | None, typer.Option(help="The agent that plays; default: the recipe's.")] = None,
    run: Annotated[Path | None, typer.Option(help="A run's folder; default: the newest finished one.")] = None,
    policy_url: Annotated[
        str | None,
        typer.Option(help="The OpenAI base address of a running policy server; default: start one for the run."),
    ] = None,
    policy_name: Annotated[
        str | None, typer.Option(help="The model's name on that server; default: the first that the server lists.")
    ] = None,
    policy_key: PolicyKey = None,
    policy_key_file: PolicyKeyFile = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the episode as JSON.")] = False,
) -> None:
    """Show one episode of a trained policy: its turns, queries, marked passages and the answer.

    Services that do not run yet are started for the question and stopped after it. For a hosted model that accepts no
    token ids, use `policy.mode=chat`. The generator's model plays agents that consist of a prompt only, unless
    `--policy-url` names another; `s3-agent agents` lists the agents.
    """
    from s3_agent.ask import ask_job
    from s3_agent.processes.keys import given_key

    raise typer.Exit(
        ask_job(
            load_recipe(recipe, overrides or []),
            question,
            agent=agent,
            run=run,
            policy_url=policy_url,
            policy_name=policy_name,
            policy_key=given_key(policy_key, policy_key_file),
            as_json=json_output,
        )
    )


@app.command()
def setup(
    cpu: Annotated[bool, typer.Option("--cpu", help="Install the builds for a machine without a GPU.")] = False,
    cuda: Annotated[
        bool, typer.Option("--cuda", help="Install the builds for NVIDIA GPUs. Default: what nvidia-smi reports.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace packages of a training stack that is already installed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be installed and replaced.")
    ] = False,
) -> None:
    """Install the training stack, in the versions that were tested together, into the environment of this command.

    The versions of Agent Lightning, verl, vLLM, torch and the rest come from the lock file of this release. Exit code
    2: nothing was changed, and the reason was printed.
    """
    from s3_agent.cli.setup import setup_command

    if cpu and cuda:
        raise typer.BadParameter("--cpu or --cuda, not both: the two builds of vLLM are the same import package")
    device = "cpu" if cpu else "cuda" if cuda else None
    setup_command(device=device, replace=replace, dry_run=dry_run).run()


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")]) -> None:
    """Create a folder for your own agent: a recipe, an agent class, documents, questions and a README."""
    from s3_agent.preparation.own_folder import lay_out

    for line in lay_out(folder):
        typer.echo(line)


@app.command()
def recipes(json_output: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List the recipes that `--recipe` takes by name: their purpose, machine and agent."""
    from s3_agent.cli.recipes import list_recipes

    list_recipes(as_json=json_output)


def _lists(sort: str, help_text: str) -> None:
    def command(json_output: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
        from s3_agent.cli.variants import list_variants

        raise typer.Exit(list_variants(sort, as_json=json_output))

    app.command(sort, help=help_text)(command)


_lists("agents", "List the agents: what each does, its limits, which model answers and which policy plays it.")
_lists("rewards", "List the rewards: what each is, and what it needs.")
_lists("backends", "List the kinds of index of the retrieval server, and the fields of their settings.")
_lists("datasets", "List the published data sets that `data.sources` takes by name.")


@app.command()
def rollout(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder or name of a training run or a comparison.")],
    rollout_id: Annotated[
        str | None,
        typer.Argument(
            metavar="ID",
            help="The rollout's id or the start of it. Without it: a list of those that were lost or retried.",
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder of the runs.")] = Path("runs"),
    json_output: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what happened to one rollout: claims, attempts, failures, policy calls, passages, answer, reward and end.

    The command reads the worker pool's logs in the run's folder, during the run or after it. Without ID, it lists the
    rollouts that were lost, failed or retried, with the reason.
    """
    from s3_agent.cli.rollout import show_rollout

    show_rollout(run, rollout_id, runs=runs, as_json=json_output)


@rag_cache_app.command("build")
def rag_cache_build(
    overrides: Overrides = None,
    recipe: RecipeOption = "cpu",
    concurrency: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
    fresh: Annotated[bool, typer.Option("--fresh", help="Also answer the tasks that have an answer already.")] = False,
) -> None:
    """Answer every task with naive RAG, and store the answers with their fingerprint. The older name of `data all`.

    Starts the retriever and the generator when they have no `url`. Answers are kept; after a kill, the same command
    continues.
    """
    prepare(recipe, overrides, concurrency=concurrency, fresh=fresh)


def _become(command: list[str]) -> None:
    os.execv(command[0], command)


def main() -> None:
    """Run the command line; our own errors are printed without a traceback."""
    try:
        app()
    except S3AgentError as error:
        _tell(error)
    except ModuleNotFoundError as cause:
        if (error := missing_module(cause)) is None:
            raise
        _tell(error)


def _tell(error: S3AgentError) -> NoReturn:
    typer.secho(printable(f"{error.boundary}: {error}"), err=True, fg=typer.colors.RED)
    sys.exit(2)
