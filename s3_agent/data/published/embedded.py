"""The embedded questions and corpus as a data set, which needs no network."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from s3_agent.data.files.tables import Placed, read_rows
from s3_agent.data.published.datasets import DataSet, Fetched, PublishedCorpus

_ASSETS = Path(str(files("s3_agent") / "embedded" / "assets"))  # the room `embedded` stands above this one


def _rows(fetched: Fetched, *, testing: bool) -> Iterator[Placed]:
    return read_rows(_ASSETS / ("val.jsonl" if testing else "train.jsonl"))


EMBEDDED = DataSet(
    summary="the embedded questions about places, and their corpus: no network is needed",
    rows=_rows,
    corpus=PublishedCorpus(files=(), here=(_ASSETS / "corpus.jsonl",)),
)
