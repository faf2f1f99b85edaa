"""`s3-agent eval`, `export` and `report`: their options; the work is in `s3_agent.evaluation`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from s3_agent.agents.methods import METHODS
from s3_agent.errors import ConfigError

PolicyKey = Annotated[
    str | None,
    typer.Option(
        envvar="S3_AGENT_POLICY_KEY", help="The key of the policy's server; `ps` shows it to others: export it instead."
    ),
]
PolicyKeyFile = Annotated[Path | None, typer.Option(help="A file that holds the key of the policy's server.")]


class SamplingOption(StrEnum):
    """How policies are sampled."""

    published = "published"
    greedy = "greedy"


class FormatOption(StrEnum):
    """Whose shapes to write."""

    s3 = "s3"
    search_r1 = "search_r1"


def _named(values: str) -> dict[str, str]:
    """`a=x,b=y` as a mapping."""
    found = {}
    for part in filter(None, map(str.strip, values.split(","))):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--policy {part!r} can not be read", remedy="write AGENT=ADDRESS,AGENT=FOLDER,…")
        found[name] = value
    return found


def _labels(agents: str | None) -> list[str]:
    if agents is None:
        return [name for name in METHODS.own if not METHODS[name].variant]
    return [name.strip() for name in agents.split(",") if name.strip()]


def evaluate(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Overrides, e.g. `seed=1`.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A YAML file, or the name of a shipped recipe.")] = "cpu",
    agents: Annotated[
        str | None,
        typer.Option(
            help="Which agents, with commas; default: all of ours but variants. The first is what the others are "
            "compared with. NAME:ret lets the generator answer from what the agent selected, NAME:self takes the "
            "policy's own answer."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A JSONL file of tasks; default: the recipe's validation.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions under way at a time.")] = 64,
    policy: Annotated[
        str,
        typer.Option(
            help="AGENT=ADDRESS or AGENT=FOLDER, with commas. Default: the recipe's policy for trained "
            "agents, the generator's model for the others."
        ),
    ] = "",
    policy_key: PolicyKey = None,
    policy_key_file: PolicyKeyFile = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="A finished run: its policy, with its settings, plays its agent.")
    ] = None,
    sampling: Annotated[
        SamplingOption, typer.Option(help="As the published numbers were sampled, or greedily.")
    ] = SamplingOption.published,
    out: Annotated[Path | None, typer.Option(help="The folder; default: runs/evaluation-RECIPE.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of live bars.")] = False,
) -> None:
    """Evaluate agents on the same questions, retriever and generator, and print the table with intervals and tests.

    Every stage is kept in the folder as soon as it is done: the same command goes on after a kill, and prints the table
    at once when nothing is missing. Services without an address are started and stopped. Exit code 1: some are missing.
    """
    from s3_agent.evaluation.job import EvaluationRequest, evaluate_job
    from s3_agent.processes.keys import given_key
    from s3_agent.recipe import load_recipe

    request = EvaluationRequest(
        agents=_labels(agents),
        data=data,
        limit=limit,
        concurrency=concurrency,
        policies=_named(policy),
        policy_key=given_key(policy_key, policy_key_file),
        runs=run or (),
        sampling=sampling.value,
        out=out,
        plain=plain,
    )
    raise typer.Exit(evaluate_job(load_recipe(recipe, overrides or []), request))


def export(
    folder: Annotated[Path, typer.Argument(help="The folder of an evaluation.")],
    form: Annotated[FormatOption, typer.Option("--format", help="Whose shapes to write.")] = FormatOption.s3,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: FOLDER/export-FORMAT.")] = None,
) -> None:
    """Write an evaluation in the published shapes: output sequences, result file and statistics, for each agent."""
    from s3_agent.evaluation.export import export_results

    for path in export_results(folder, out or folder / f"export-{form.value}", form=form.value):
        typer.echo(path)


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Of evaluations and of training runs.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The report; its ending, .html, .json or .md, is its form.")
    ] = Path("report.html"),
) -> None:
    """Make one page of evaluations and training runs: tables, charts, and a viewer of every trajectory.

    The page needs no server and no network. It holds what the agents read and wrote: share it as you share your data.
    """
    from s3_agent.evaluation.report.render import write_report

    write_report(folders, out)
    typer.echo(out)
