"""Reads question sets as FlashRAG publishes them: for each a folder with a JSON-lines file per split."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from s3_agent.data.files.tables import Placed, read_rows
from s3_agent.data.published.datasets import DataSet, Fetched
from s3_agent.data.published.hub import Wanted
from s3_agent.data.questions import flashrag_questions
from s3_agent.errors import DataError

FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"


def _rows(fetched: Fetched, *, testing: bool, name: str) -> Iterator[Placed]:
    # The test split if it exists, else dev, else train, as s3 evaluates.
    found = {path.name: path for path in fetched.paths(FLASHRAG, f"{name}/*.jsonl")}
    splits = ("test.jsonl", "dev.jsonl", "train.jsonl") if testing else ("train.jsonl",)
    path = next((found[split] for split in splits if split in found), None)
    if path is None:
        raise DataError(f"{FLASHRAG} has no training set for {name}", remedy="take it out of data.sources.train")
    return flashrag_questions(read_rows(path), data_source=name)


def flashrag_set(name: str, summary: str = "questions that FlashRAG publishes") -> DataSet:
    """The data set in any folder of FlashRAG."""
    return DataSet(
        summary=summary, files=(Wanted(repo=FLASHRAG, patterns=(f"{name}/*.jsonl",)),), rows=partial(_rows, name=name)
    )


def _set(name: str, summary: str, test: str = "test") -> DataSet:
    data_set = flashrag_set(name, summary)
    return replace(data_set, test_files=(Wanted(repo=FLASHRAG, patterns=(f"{name}/{test}.jsonl",)),))


NQ = _set("nq", "questions that people asked a search engine")
TRIVIAQA = _set("triviaqa", "trivia questions")
POPQA = _set("popqa", "questions about entities of any popularity")
HOTPOTQA = _set("hotpotqa", "questions over two articles", "dev")
TWO_WIKI = _set("2wikimultihopqa", "questions over two to four articles, from templates", "dev")
MUSIQUE = _set("musique", "questions composed of two to four others", "dev")
BAMBOOGLE = _set("bamboogle", "125 two-hop questions that a search engine does not answer")
