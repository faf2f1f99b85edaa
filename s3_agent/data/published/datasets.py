"""Defines a published data set (its files and how its questions are read) and registers all of them."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from retrieval_server.registry import Registry
from s3_agent.data.files.tables import Placed, Row
from s3_agent.data.published.hub import Wanted
from s3_agent.errors import ConfigError, DataError


class Fetched(Protocol):
    """The downloaded files of a data set."""

    def paths(self, repo: str, pattern: str = "*") -> list[Path]:
        """The matching hub files of one repository, ordered by name. Raises DataError for one that was not fetched."""
        ...

    def raw_path(self, name: str) -> Path:
        """A file that is in no hub."""
        ...


@dataclass(frozen=True, slots=True)
class PublishedCorpus:
    """The files of a corpus: in the hub, or with a package (`here`).

    `keeps_blank`: rows without text are kept, since a published index counts every row. `row` reads a row that has
    another form than those of `retrieval_server.passages`.
    """

    files: tuple[Wanted, ...]
    keeps_blank: bool = False
    here: tuple[Path, ...] = ()
    row: Callable[[Row], Row] | None = None


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set: questions, or a corpus, or both.

    `rows(fetched, testing=…)` gives each row of the test or of the training split with its place, as (`file:line`,
    row); a row has `id`, `question`, `golden_answers` and `data_source`. It raises DataError for a split that does not
    exist. A set of questions in the hub, as a package of your own would register it:

        def _rows(fetched, *, testing):
            [path] = fetched.paths("me/my-questions", "test.jsonl" if testing else "train.jsonl")
            return read_rows(path)

        DATA_SET = DataSet(
            summary="questions about our products",
            files=(Wanted(repo="me/my-questions", patterns=("*.jsonl",)),),
            rows=_rows,
        )
    """

    summary: str
    files: tuple[Wanted, ...] = ()
    raw: Mapping[str, str] = field(default_factory=dict)
    """Files of questions outside the hub: a name for each, and its address below `github_raw`."""
    rows: Callable[..., Iterator[Placed]] | None = None
    corpus: PublishedCorpus | None = None
    test_files: tuple[Wanted, ...] = ()
    """The files that the test split needs; empty: all of `files`."""
    key_variable: str | None = None
    """For a set that is published encrypted: the environment variable that holds its key, which `rows` gets as `key`.
    Its questions are marked as protected (`Task.protected`)."""

    def questions(self, fetched: Fetched, *, testing: bool, key: str | None = None) -> Iterator[Placed]:
        """The rows of a split. `key` None: from the environment. Raises DataError, also for a key that is missing."""
        assert self.rows is not None
        if self.key_variable is None:
            yield from self.rows(fetched, testing=testing)
            return
        key = self.require_key(key)
        for place, row in self.rows(fetched, testing=testing, key=key):
            yield place, {**row, "protected": key}

    def require_key(self, key: str | None = None) -> str | None:
        """The key of an encrypted set, given or from the environment; None for other sets. Raises DataError."""
        if self.key_variable is None:
            return None
        if not (key := key or os.environ.get(self.key_variable)):
            raise DataError(
                "this data set is published encrypted, and its key was not given",
                remedy=f"export {self.key_variable}='…', or name a file that holds it (docs/evaluation.md); the key is "
                "the canary text that is published with the data set",
            )
        return key


_HERE = "s3_agent.data.published"
DATA_SETS: Registry[DataSet] = Registry(
    "data set",
    group="s3_agent.datasets",
    own={
        "nq": f"{_HERE}.flashrag:NQ",
        "triviaqa": f"{_HERE}.flashrag:TRIVIAQA",
        "popqa": f"{_HERE}.flashrag:POPQA",
        "hotpotqa": f"{_HERE}.flashrag:HOTPOTQA",
        "2wikimultihopqa": f"{_HERE}.flashrag:TWO_WIKI",
        "musique": f"{_HERE}.flashrag:MUSIQUE",
        "bamboogle": f"{_HERE}.flashrag:BAMBOOGLE",
        "medqa": f"{_HERE}.mirage:MEDQA",
        "medmcqa": f"{_HERE}.mirage:MEDMCQA",
        "pubmedqa": f"{_HERE}.mirage:PUBMEDQA",
        "bioasq": f"{_HERE}.mirage:BIOASQ",
        "mmlu": f"{_HERE}.mirage:MMLU",
        "s3": f"{_HERE}.released_rows:S3",
        "search-r1": f"{_HERE}.released_rows:SEARCH_R1",
        "browsecomp_plus": f"{_HERE}.browsecomp_plus:BROWSECOMP_PLUS",
        "embedded": f"{_HERE}.embedded:EMBEDDED",
        "wiki-18": f"{_HERE}.corpora:WIKI_18",
        "medcorp": f"{_HERE}.corpora:MEDCORP",
    },
    kind=DataSet,
    error=ConfigError,
)
