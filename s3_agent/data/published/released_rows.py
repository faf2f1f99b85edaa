"""The rows that s3 and Search-R1 publish with their code."""

from collections.abc import Iterator
from functools import partial

from s3_agent.data.files.tables import Placed, read_rows
from s3_agent.data.published.datasets import DataSet, Fetched
from s3_agent.data.published.hub import Wanted
from s3_agent.data.published.rows import tasks_of

S3_ROWS = "pat-jj/s3_processed_data"
SEARCH_R1_ROWS = "PeterJinGo/nq_hotpotqa_train"


def _rows(fetched: Fetched, *, testing: bool, repo: str, train: str, test: str) -> Iterator[Placed]:
    [path] = fetched.paths(repo, test if testing else train)
    return tasks_of(read_rows(path))


def _set(summary: str, repo: str, *, train: str, test: str) -> DataSet:
    files = (Wanted(repo=repo, patterns=(train, test)),)
    tested = (Wanted(repo=repo, patterns=(test,)),)
    return DataSet(
        summary=summary, files=files, test_files=tested, rows=partial(_rows, repo=repo, train=train, test=test)
    )


S3 = _set("the rows that s3 publishes", S3_ROWS, train="train_e5_s3.parquet", test="test_e5_s3.parquet")
SEARCH_R1 = _set("the rows that Search-R1 publishes", SEARCH_R1_ROWS, train="train.parquet", test="test.parquet")
