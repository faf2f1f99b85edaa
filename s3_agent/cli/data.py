"""`s3-agent data …`: runs one stage of preparing data or all of them, and imports and exports files."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from s3_agent.data.published.rows import Form
from s3_agent.guard import printable
from s3_agent.recipe import load_recipe

app = typer.Typer(no_args_is_help=True, help="Make a training set, from published data or from your own files.")

RecipeOption = Annotated[str, typer.Option("--recipe", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Overrides, e.g. `data.rag_topk=3`.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be downloaded, written and done.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read every byte again instead of trusting modification times.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Questions at a time.")]
ShowProtected = Annotated[
    bool,
    typer.Option(
        "--show-protected",
        help="Write the texts of questions that may not be published in plain text. Keep what it writes to yourself.",
    ),
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Answer every question of the RAG cache again.")]


def say(line: str) -> None:
    """Print one line of a job that prepares data."""
    typer.echo(printable(f"data: {line}"), err=True)  # it may hold names from the data


STAGES = {
    "download": "Download what the recipe's `data.sources` names.",
    "corpus": "Check the corpus; convert a published one.",
    "index": "Build the index, or join the pieces of a published one.",
    "questions": "Make the task files from published questions; check your own.",
    "retrieve": "Retrieve and store the top passages of every question.",
    "rag-cache": "Answer every question with naive RAG.",
    "tasks": "Write the filtered training set and the test sets.",
    "all": "Run every stage that is not done.",
}


def prepare(
    recipe_name: str,
    overrides: list[str] | None,
    *,
    wanted: str = "all",
    dry_run: bool = False,
    verify: bool = False,
    concurrency: int = 16,
    fresh: bool = False,
) -> None:
    """Run the stages of a recipe that are not done, or only one of them. Raises S3AgentError."""
    from retrieval_server.indexing.command import shown_progress
    from s3_agent.data.files.stages import Ledger, run_stages
    from s3_agent.preparation.stages import DataStages

    recipe = load_recipe(recipe_name, overrides or [])
    ledger = Ledger(recipe.data_folder, verify=verify)
    prepared = DataStages(recipe, ledger, concurrency=concurrency, fresh=fresh)
    stages = prepared.all()
    if wanted != "all":
        stages = [stage for stage in stages if stage.name == wanted]
        if not stages:
            typer.echo(f"data: {wanted}: nothing to do (the recipe {recipe.name} has no data.sources)", err=True)
    if fresh and not dry_run:
        ledger.path("rag-cache").unlink(missing_ok=True)
    with shown_progress() as report:
        worked = run_stages(
            ledger,
            stages,
            say=say,
            report=report,
            dry_run=dry_run,
        )
    if worked == 0:
        typer.echo("data: everything is up to date; no work was done", err=True)


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        overrides: Overrides = None,
        recipe: RecipeOption = "cpu",
        dry_run: DryRun = False,
        verify: Verify = False,
        concurrency: Concurrency = 16,
        fresh: FreshOption = False,
    ) -> None:
        prepare(recipe, overrides, wanted=name, dry_run=dry_run, verify=verify, concurrency=concurrency, fresh=fresh)

    return command


for _name, _text in STAGES.items():
    app.command(_name, help=_text)(_stage_command(_name))


@app.command("import")
def import_command(
    corpus: Annotated[
        Path,
        typer.Option(
            help="A .jsonl, .csv or .parquet file, or a folder of such files or of text, markdown or PDF files."
        ),
    ],
    questions: Annotated[Path, typer.Option(help="A .jsonl, .json, .csv or .parquet file of questions and answers.")],
    into: Annotated[Path, typer.Option(help="The folder to create; its recipe.yaml is the recipe for your data.")],
    validation: Annotated[Path | None, typer.Option(help="Questions to validate on; default: a share of them.")] = None,
    validation_share: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share to validate on.")] = 0.2,
    qrels: Annotated[
        Path | None,
        typer.Option(
            help="TREC qrels with the ids of questions and documents; with them --questions may also be TREC topics."
        ),
    ] = None,
    words: Annotated[int, typer.Option(min=20, help="The most words in a passage; longer documents are split.")] = 180,
    recipe: RecipeOption = "cpu",
    overrides: Overrides = None,
) -> None:
    """Make a corpus, tasks and a recipe from your own files; the other stages then run with that recipe."""
    from s3_agent.preparation.own_data import import_own

    for line in import_own(
        corpus,
        questions,
        into,
        validation=validation,
        validation_share=validation_share,
        qrels=qrels,
        words=words,
        base=recipe,
        overrides=overrides or [],
    ):
        say(line)


class Kind(StrEnum):
    """A published file."""

    rows = "rows"
    rag_cache = "rag-cache"
    sequences = "sequences"
    topics = "topics"
    qrels = "qrels"


@app.command("read")
def read_command(
    kind: Annotated[
        Kind, typer.Argument(help="`rows`: Parquet of s3 or Search-R1; one of s3's JSON files; TREC topics or qrels.")
    ],
    source: Annotated[Path, typer.Argument(help="The published file.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    tasks: Annotated[
        list[Path] | None, typer.Option(help="Task files; the entries get their ids, or the tasks get their qrels.")
    ] = None,
    data_source: Annotated[str, typer.Option(help="For `sequences` and `topics`: the data set of the questions.")] = "",
    qrels: Annotated[Path | None, typer.Option(help="For `topics`: the file that says what is relevant.")] = None,
) -> None:
    """Convert a published file into our format: task rows, a RAG cache, or retrieved passages. Nothing is lost.

    `topics` with --qrels makes tasks without gold answers, by which what is found can be measured; `qrels` with --tasks
    adds the evidence to tasks.
    """
    from s3_agent.data.published.exchange import read_published

    lines = read_published(kind, source, target, task_files=tasks or [], data_source=data_source, qrels=qrels)
    for line in lines:
        say(line)


@app.command("write")
def write_command(
    kind: Annotated[Kind, typer.Argument(help="What to write.")],
    source: Annotated[Path, typer.Argument(help="Our file.")],
    target: Annotated[Path, typer.Argument(help="The published form.")],
    tasks: Annotated[list[Path] | None, typer.Option(help="Task files with the gold answers for `sequences`.")] = None,
    form: Annotated[
        Form | None, typer.Option(help="For `rows`; default: the form in which they were imported, else that of s3.")
    ] = None,
    show_protected: ShowProtected = False,
) -> None:
    """Write task rows, a RAG cache or retrieved passages as published, or tasks as TREC topics or qrels."""
    from s3_agent.data.published.exchange import write_published

    lines = write_published(kind, source, target, task_files=tasks or [], form=form, show_protected=show_protected)
    for line in lines:
        say(line)
