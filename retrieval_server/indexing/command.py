"""`s3-agent index …` and `python -m retrieval_server index …`: build, verify, convert and plan indexes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from retrieval_server.config import read_index_settings
from retrieval_server.corpus import Report
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import INDEX_KINDS, default_settings

app = typer.Typer(no_args_is_help=True, help="Build, verify, convert and plan indexes of the retrieval server.")

CorpusOption = Annotated[Path, typer.Option(help="JSONL with id and contents, or title and text.")]
IndexOption = Annotated[Path, typer.Option(help="Folder of the index.")]
BackendOption = Annotated[
    Path | None, typer.Option(help="YAML: `kind` and the fields of that kind; `s3-agent backends` lists them.")
]


@contextmanager
def shown_progress() -> Iterator[Report]:
    """A progress bar with the time left; each stage has a line."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        tasks: dict[str, object] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for earlier in progress.tasks:
                    progress.update(earlier.id, total=earlier.total or 1, completed=earlier.total or 1)
                tasks[stage] = progress.add_task(stage, total=total or None)
            progress.update(tasks[stage], completed=done)  # pyright: ignore[reportArgumentType]

        yield report


def _run[T](job: Callable[[Report], T]) -> T:
    """The job's result; a RetrievalError ends the command with exit code 1."""
    try:
        with shown_progress() as report:
            return job(report)
    except RetrievalError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


@app.command()
def build(corpus: CorpusOption, index: IndexOption, backend: BackendOption = None) -> None:
    """Build an index: BM25, or the kind in the settings file. A build that was killed continues."""
    from retrieval_server.corpus import Corpus
    from retrieval_server.indexing import build_index

    def job(report: Report) -> None:
        settings = read_index_settings(backend) if backend else default_settings()
        build_index(Corpus(corpus, lines=index, report=report), index, settings, report=report)

    _run(job)
    typer.echo(f"built {index}")


@app.command()
def verify(
    corpus: CorpusOption,
    index: IndexOption,
    backend: Annotated[
        Path | None, typer.Option(help="YAML: the settings of the index, to verify a copy in another place.")
    ] = None,
) -> None:
    """Read every byte of the corpus and of the index, and compare hashes and counts with the manifest."""
    from retrieval_server.corpus import Corpus
    from retrieval_server.indexing import verify_index

    def job(report: Report) -> dict[str, Any]:
        settings = read_index_settings(backend) if backend else None
        return verify_index(Corpus(corpus, report=report), index, report, settings=settings)

    manifest = _run(job)
    typer.echo(f"{index} is whole: {manifest['backend']}, {manifest['passages']} passages, corpus {manifest['corpus']}")


@app.command()
def convert(
    corpus: CorpusOption,
    source: Annotated[Path, typer.Option("--from", help="An index folder, or a FAISS file.")],
    index: IndexOption,
    backend: Annotated[Path, typer.Option(help="YAML: `kind: dense` with the new layout.")],
) -> None:
    """Build another layout from existing vectors, without encoding the corpus again."""
    from retrieval_server.corpus import Corpus
    from retrieval_server.indexing.build import convert_index

    def job(report: Report) -> None:
        convert_index(Corpus(corpus, report=report), source, index, read_index_settings(backend), report=report)

    _run(job)
    typer.echo(f"built {index}")


@app.command()
def plan(
    passages: Annotated[int, typer.Option(min=1, help="Passages in the corpus.")],
    dimension: Annotated[int, typer.Option(min=1, help="Numbers a vector.")] = 768,
    candidates: Annotated[int | None, typer.Option(min=8, help="Candidates that a compressed index re-ranks.")] = None,
) -> None:
    """What each kind of index needs (RAM, disk, GPU memory, time), and what to expect of it, from measured costs."""
    console = Console()
    for name in INDEX_KINDS:
        found = INDEX_KINDS[name].plan(passages=passages, dimension=dimension, candidates=candidates)
        if found is None:
            continue
        table = Table(title=found.title)
        for number, column in enumerate(found.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in found.rows:
            table.add_row(*row)
        console.print(table)
        console.print(found.note, highlight=False, markup=False)
