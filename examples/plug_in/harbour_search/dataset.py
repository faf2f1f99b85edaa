"""The data set `harbours`: questions and a corpus in one repository of the Hugging Face hub."""

from collections.abc import Iterator

from s3_agent.data.files.tables import Placed, read_rows
from s3_agent.data.published.datasets import DataSet, Fetched, PublishedCorpus
from s3_agent.data.published.hub import Wanted
from s3_agent.data.questions import own_questions

REPOSITORY = "example-org/harbours"


def rows(fetched: Fetched, *, testing: bool) -> Iterator[Placed]:
    """Rows with `id`, `question` and `golden_answers`, each with its place for error messages."""
    [path] = fetched.paths(REPOSITORY, "test.jsonl" if testing else "train.jsonl")
    return own_questions(read_rows(path), data_source="harbours")


DATA_SET = DataSet(
    summary="questions about harbours, and the passages that answer them",
    files=(Wanted(repo=REPOSITORY, patterns=("train.jsonl", "test.jsonl")),),
    rows=rows,
    corpus=PublishedCorpus(files=(Wanted(repo=REPOSITORY, patterns=("passages.jsonl",)),)),
)
