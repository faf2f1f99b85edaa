"""The embedded questions and corpus as a data set, which needs no network."""

from collections.abc import Iterator

from s3_agent.data.files.tables import Placed, read_rows
from s3_agent.data.published.datasets import DataSet, Fetched, PublishedCorpus
from s3_agent.embedded import CORPUS, TRAIN, VALIDATION


def _rows(fetched: Fetched, *, testing: bool) -> Iterator[Placed]:
    return read_rows(VALIDATION if testing else TRAIN)


EMBEDDED = DataSet(
    summary="the embedded questions about places, and their corpus: no network is needed",
    rows=_rows,
    corpus=PublishedCorpus(files=(), here=(CORPUS,)),
)
