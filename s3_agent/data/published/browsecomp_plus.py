"""BrowseComp-Plus: 830 questions that need many searches, published encrypted, over 100,195 web documents (arXiv
2508.06600).

The corpus and the ids of documents are published in plain text. Questions, answers and trajectories are protected:
see `Task.protected`.
"""

import re
from collections.abc import Iterator

from s3_agent.data.files.tables import Placed, Row, parquet_rows
from s3_agent.data.published.canary import decrypted
from s3_agent.data.published.datasets import DataSet, Fetched, PublishedCorpus
from s3_agent.data.published.hub import Wanted
from s3_agent.data.questions import own_questions
from s3_agent.errors import DataError

QUESTIONS = "Tevatron/browsecomp-plus"
CORPUS = "Tevatron/browsecomp-plus-corpus"
KEY_VARIABLE = "BROWSECOMP_PLUS_KEY"
_FILES = (Wanted(repo=QUESTIONS, patterns=("data/test-*.parquet",)),)
_HEAD = re.compile(r"\A---\r?\ntitle:[ \t]*(.*)\r?\n")


def _wanted(column: str) -> bool:
    """The columns that a task needs: the texts of the documents are 2.8 GB, and the corpus holds them too."""
    name, _, field = column.partition(".")
    return name in ("query_id", "query", "answer") or (
        name in ("gold_docs", "evidence_docs") and field.endswith("docid")
    )


def _rows(fetched: Fetched, *, testing: bool, key: str) -> Iterator[Placed]:
    if not testing:
        raise DataError("browsecomp_plus has no training set", remedy="take it out of data.sources.train")
    for path in fetched.paths(QUESTIONS, "data/test-*.parquet"):
        for place, row in parquet_rows(path, wanted=_wanted):
            yield from own_questions([(place, _task(row, key, place))], data_source="browsecomp_plus")


def _task(row: Row, key: str, place: str) -> Row:
    """The row in plain text, with its evidence: gold documents are those that hold the answer."""
    plain = {name: decrypted(value, key, place=place) for name, value in row.items() if name != "query_id"}
    gold, evidence = ([document["docid"] for document in plain[name]] for name in ("gold_docs", "evidence_docs"))
    names = dict.fromkeys((*evidence, *gold))
    return {
        "query_id": row["query_id"],
        "query": plain["query"],
        "answer": plain["answer"],
        "evidence": [{"id": name, "answer": name in gold} for name in names],
    }


def _unquoted(title: str) -> str:
    return title[1:-1] if len(title) > 1 and title[0] == title[-1] and title[0] in "\"'" else title


def _with_title(row: Row) -> Row:
    """A document whose title is moved out of the head of its text; without a head it stays as it is."""
    text = row.get("text")
    found = _HEAD.match(text) if isinstance(text, str) else None
    if found is None or not (title := _unquoted(found[1].strip())):
        return row
    return {**row, "title": title, "text": "---\n" + row["text"][found.end() :]}


BROWSECOMP_PLUS = DataSet(
    summary="830 questions that need many searches, and 100,195 web documents with the evidence for each",
    files=_FILES,
    rows=_rows,
    corpus=PublishedCorpus(files=(Wanted(repo=CORPUS, patterns=("data/train-*.parquet",)),), row=_with_title),
    key_variable=KEY_VARIABLE,
)
