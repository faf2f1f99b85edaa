"""`s3-agent data …`: each stage of preparing data, all of them, and files in and out."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from s3_agent.data.published.rows import Form
from s3_agent.guard import printable
from s3_agent.recipe import load_recipe

app = typer.Typer(no_args_is_help=True, help="From nothing, or from your own files, to a training set.")

RecipeOption = Annotated[str, typer.Option("--recipe", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Overrides, e.g. `data.rag_topk=3`.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched, written and done.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read every byte again instead of trusting times of change.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Questions at a time.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Answer every question of the RAG cache again.")]


def _say(line: str) -> None:
    typer.echo(printable(f"data: {line}"), err=True)  # it may hold names out of the data


STAGES = {
    "download": "Fetch what the recipe's `data.sources` name.",
    "corpus": "Check the corpus; convert a published one.",
    "index": "Build the index, or join a published one from its pieces.",
    "questions": "Make the task files of published questions; check your own.",
    "retrieve": "Keep the top passages of every question.",
    "rag-cache": "Answer every question with naive RAG.",
    "tasks": "Write the filtered training set and the test sets.",
    "all": "Every stage that is not done.",
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
            say=_say,
            report=report,
            dry_run=dry_run,
        )
    if worked == 0:
        typer.echo("data: everything is there; no work was done", err=True)


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
        Path, typer.Option(help="A .jsonl, .csv or .parquet file, a folder of them, or of text, markdown, PDF.")
    ],
    questions: Annotated[Path, typer.Option(help="A .jsonl, .json, .csv or .parquet file of questions and answers.")],
    into: Annotated[Path, typer.Option(help="The folder to make; its recipe.yaml is the recipe of your data.")],
    validation: Annotated[Path | None, typer.Option(help="Questions to validate on; default: a share of them.")] = None,
    validation_share: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share to validate on.")] = 0.2,
    words: Annotated[int, typer.Option(min=20, help="Longer documents are cut into pieces of at most so many.")] = 180,
    recipe: RecipeOption = "cpu",
    overrides: Overrides = None,
) -> None:
    """Make corpus, tasks and a recipe of your own files; the other stages then run with that recipe."""
    from s3_agent.preparation.own_data import import_own

    for line in import_own(
        corpus,
        questions,
        into,
        validation=validation,
        validation_share=validation_share,
        words=words,
        base=recipe,
        overrides=overrides or [],
    ):
        _say(line)


class Kind(StrEnum):
    """A published file."""

    rows = "rows"
    rag_cache = "rag-cache"
    sequences = "sequences"


@app.command("read")
def read_command(
    kind: Annotated[Kind, typer.Argument(help="`rows`: Parquet of s3 or Search-R1; or one of s3's JSON files.")],
    source: Annotated[Path, typer.Argument(help="The published file.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    tasks: Annotated[list[Path] | None, typer.Option(help="Task files, whose ids the entries get.")] = None,
    data_source: Annotated[str, typer.Option(help="For `sequences`: whose questions they are.")] = "",
) -> None:
    """Read a published file into ours: task rows, a RAG cache, or retrieved passages. Nothing of it is lost."""
    from s3_agent.data.published.exchange import read_published

    for line in read_published(kind, source, target, task_files=tasks or [], data_source=data_source):
        _say(line)


@app.command("write")
def write_command(
    kind: Annotated[Kind, typer.Argument(help="What to write.")],
    source: Annotated[Path, typer.Argument(help="Our file.")],
    target: Annotated[Path, typer.Argument(help="The published form.")],
    tasks: Annotated[list[Path] | None, typer.Option(help="Task files, for the golds of `sequences`.")] = None,
    form: Annotated[Form | None, typer.Option(help="For `rows`; default: as they came, else s3's.")] = None,
) -> None:
    """Write task rows, a RAG cache or retrieved passages in their published form."""
    from s3_agent.data.published.exchange import write_published

    for line in write_published(kind, source, target, task_files=tasks or [], form=form):
        _say(line)
