"""Reads the medical questions with options that MIRAGE publishes in one JSON file."""

import json
from collections.abc import Iterator
from functools import partial

from s3_agent.data.files.tables import Placed
from s3_agent.data.published.datasets import DataSet, Fetched
from s3_agent.data.questions import mirage_questions
from s3_agent.errors import DataError

MIRAGE_FILE = "Teddy-XiongGZ/MIRAGE/main/benchmark.json"
_NAME = "mirage-benchmark.json"


def _rows(fetched: Fetched, *, testing: bool, name: str) -> Iterator[Placed]:
    path = fetched.raw_path(_NAME)
    benchmark = json.loads(path.read_text(encoding="utf-8"))
    if name not in benchmark:
        raise DataError(f"{path} has no set {name}", remedy="give MIRAGE's benchmark.json as it is published")
    return mirage_questions({name: benchmark[name]}, str(path))


def _set(name: str, summary: str) -> DataSet:
    return DataSet(summary=summary, raw={_NAME: MIRAGE_FILE}, rows=partial(_rows, name=name))


MEDQA = _set("medqa", "questions of the United States' medical licence")
MEDMCQA = _set("medmcqa", "questions of Indian medical entrance examinations")
PUBMEDQA = _set("pubmedqa", "yes, no or maybe, about abstracts of PubMed")
BIOASQ = _set("bioasq", "yes or no, about biomedical literature")
MMLU = _set("mmlu", "the medical subjects of MMLU")
