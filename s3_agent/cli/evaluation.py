"""`s3-agent eval`, `export` and `report`: their options; the work is in `s3_agent.evaluation`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from s3_agent.agents.methods import METHODS
from s3_agent.cli.data import ShowProtected, say
from s3_agent.data.published.datasets import DATA_SETS
from s3_agent.errors import ConfigError

PolicyKey = Annotated[
    str | None,
    typer.Option(
        envvar="S3_AGENT_POLICY_KEY",
        help="The key of the policy's server; `ps` shows it to other users, so export it instead.",
    ),
]
PolicyKeyFile = Annotated[Path | None, typer.Option(help="A file that holds the key of the policy's server.")]

SAMPLE = 100
"""How many questions of a named data set are asked."""


class SamplingOption(StrEnum):
    """How policies are sampled."""

    published = "published"
    greedy = "greedy"


class FormatOption(StrEnum):
    """Whose shapes to write."""

    s3 = "s3"
    search_r1 = "search_r1"
    browsecomp_plus = "browsecomp_plus"
    trec = "trec"


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


def _set_and_overrides(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The data set that the arguments name, and the overrides. Raises ConfigError for an unknown name and for two."""
    names = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    for name in names:
        try:
            DATA_SETS[name]
        except ConfigError as cause:
            raise ConfigError(
                f"{name!r} is not an override (section.field=value), and {cause.message}", remedy=cause.remedy
            ) from cause
    if len(names) > 1:
        raise ConfigError(f"the data sets {', '.join(names)} are named", remedy="evaluate one at a time")
    return next(iter(names), None), [argument for argument in arguments if argument not in names]


def evaluate(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME] [SECTION.FIELD=VALUE]...",
            help="A data set (`s3-agent datasets`), whose questions are fetched if they are not here; and overrides, "
            "e.g. `seed=1`.",
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A YAML file, or the name of a shipped recipe.")] = "cpu",
    agents: Annotated[
        str | None,
        typer.Option(
            help="The agents, separated by commas; default: all of ours except variants. The others are compared with "
            "the first. With NAME:ret the generator answers from the passages that the agent selected, with "
            "NAME:self the policy answers."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A JSONL file of tasks; default: the recipe's validation tasks.")
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(
            min=1, help="Draw this many questions; default: 100 of a data set that is named, all of a file's."
        ),
    ] = None,
    questions_seed: Annotated[int, typer.Option(help="The seed of the draw: equal seeds draw equal questions.")] = 42,
    key_file: Annotated[
        Path | None, typer.Option(help="A file with the key of a data set that is published encrypted.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only this many questions, from the first on.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions that are played at the same time.")] = 64,
    policy: Annotated[
        str,
        typer.Option(
            help="AGENT=ADDRESS or AGENT=FOLDER, separated by commas. Default: the recipe's policy for trained "
            "agents, the generator's model for the others."
        ),
    ] = "",
    policy_key: PolicyKey = None,
    policy_key_file: PolicyKeyFile = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="A finished run: its policy plays its agent with the run's settings.")
    ] = None,
    sampling: Annotated[
        SamplingOption, typer.Option(help="Sample as for the published numbers, or greedily.")
    ] = SamplingOption.published,
    samples: Annotated[
        int,
        typer.Option(
            min=1,
            help="How often each question is played, with another seed each time, by agents whose policy is sampled: "
            "pass@k, the mean and the vote of the majority. More samples later continue from those that are there.",
        ),
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="The output folder; default: runs/evaluation-RECIPE.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of live bars.")] = False,
) -> None:
    """Evaluate agents on the same questions, retriever and generator, and print the table with intervals and tests.

    `s3-agent eval NAME` does this for 100 questions of a data set: it fetches the set if it is not here, and its corpus
    if it brings one. `s3-agent eval embedded` needs no network.

    Every stage is stored in the folder as soon as it is done: after a kill the same command continues, and it prints
    the table immediately when nothing is missing. Services without an address are started and stopped. Exit code 1:
    some results are missing.
    """
    from s3_agent.evaluation.job import EvaluationRequest, evaluate_job
    from s3_agent.processes.keys import given_key
    from s3_agent.recipe import load_recipe

    name, overrides = _set_and_overrides(overrides or [])
    loaded = load_recipe(recipe, overrides)
    if name is not None:
        from retrieval_server.indexing.command import shown_progress
        from s3_agent.preparation.question_sets import prepare_set

        if data is not None:
            raise ConfigError(f"both the data set {name} and --data are given", remedy="leave one of them out")
        with shown_progress() as report:
            prepared = prepare_set(loaded, name, key_file=key_file, say=say, report=report)
        loaded, data = prepared.recipe, prepared.questions
        questions = SAMPLE if questions is None else questions
        out = out or loaded.runs / f"evaluation-{loaded.name}-{name}"
    request = EvaluationRequest(
        agents=_labels(agents),
        data=data,
        drawn=questions,
        draw_seed=questions_seed,
        limit=limit,
        concurrency=concurrency,
        policies=_named(policy),
        policy_key=given_key(policy_key, policy_key_file),
        runs=run or (),
        sampling=sampling.value,
        samples=samples,
        out=out,
        plain=plain,
    )
    raise typer.Exit(evaluate_job(loaded, request))


def export(
    folder: Annotated[Path, typer.Argument(help="The folder of an evaluation.")],
    form: Annotated[FormatOption, typer.Option("--format", help="Whose shapes to write.")] = FormatOption.s3,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: FOLDER/export-FORMAT.")] = None,
    show_protected: ShowProtected = False,
) -> None:
    """Write an evaluation in the published formats, for each agent: output sequences, result file and statistics; or
    TREC run files of what was retrieved, shown, selected and handed on, and of each search, with topics and qrels; or
    BrowseComp-Plus's run files and scores.

    Texts of questions that may not be published in plain text are encrypted or left out, or the format is refused.
    """
    from s3_agent.evaluation.export import export_results

    written = export_results(
        folder, out or folder / f"export-{form.value}", form=form.value, show_protected=show_protected
    )
    for path in written:
        typer.echo(path)


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of evaluations and of training runs.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The file of the report; its ending, .html, .json or .md, decides the format."
        ),
    ] = Path("report.html"),
    show_protected: ShowProtected = False,
) -> None:
    """Make one page about evaluations and training runs: tables, charts, and a viewer of every trajectory.

    The page needs no server and no network. It holds everything that the agents read and wrote: share it only with
    people who may see your data. Texts of questions that may not be published in plain text are withheld.
    """
    from s3_agent.evaluation.report.render import write_report

    write_report(folders, out, show_protected=show_protected)
    typer.echo(out)
