"""Defines a published data set (its files and how its questions are read) and registers all of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from retrieval_server.registry import Registry
from s3_agent.data.files.tables import Placed
from s3_agent.data.published.hub import Wanted
from s3_agent.errors import ConfigError


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
    """The files of a corpus. `keeps_blank`: rows without text are kept, since a published index counts every row."""

    files: tuple[Wanted, ...]
    keeps_blank: bool = False


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
        "wiki-18": f"{_HERE}.corpora:WIKI_18",
        "medcorp": f"{_HERE}.corpora:MEDCORP",
    },
    kind=DataSet,
    error=ConfigError,
)
