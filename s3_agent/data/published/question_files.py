"""Task files out of published questions: training candidates, full test sets, and the sample to validate on."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain

from s3_agent.data.files.tables import Placed, Row, read_rows
from s3_agent.data.published.downloads import Downloads
from s3_agent.data.published.rows import tasks_of
from s3_agent.data.published.sources import FLASHRAG, MIRAGE_NAME, MIRAGE_SETS, S3_ROWS, SEARCH_R1_ROWS, SourceSettings
from s3_agent.data.questions import Dropped, flashrag_questions, mirage_questions, sampled, usable
from s3_agent.errors import DataError


class PublishedQuestions:
    """The questions that a recipe's `sources` name, out of fetched files. Raises DataError with the row at fault."""

    def __init__(self, sources: SourceSettings, downloads: Downloads) -> None:
        self._sources = sources
        self._downloads = downloads

    def train(self, dropped: Dropped) -> list[Row]:
        """Training candidates: naive RAG filters them later."""
        return list(usable(self._rows(self._sources.train, testing=False), dropped))

    def test(self, dropped: Dropped) -> list[Row]:
        """The full test sets."""
        return list(usable(self._rows(self._sources.test, testing=True), dropped))

    def sample(self, test: list[Row], dropped: Dropped) -> list[Row]:
        """What is validated on: the published sample of the test sets, or all of them."""
        if self._sources.sample is None:
            return test
        return sampled(test, most=self._sources.sample, seed=self._sources.sample_seed, dropped=dropped)

    def _rows(self, names: Iterable[str], *, testing: bool) -> Iterator[Placed]:
        match self._sources.questions:
            case "s3":
                return self._published(S3_ROWS, "test_e5_s3.parquet" if testing else "train_e5_s3.parquet")
            case "search-r1":
                return self._published(SEARCH_R1_ROWS, "test.parquet" if testing else "train.parquet")
            case "sets":
                return chain.from_iterable(self._set(name, testing=testing) for name in names)

    def _published(self, repo: str, name: str) -> Iterator[Placed]:
        [path] = self._downloads.paths(repo, name)
        return tasks_of(read_rows(path))

    def _set(self, name: str, *, testing: bool) -> Iterator[Placed]:
        if name in MIRAGE_SETS:
            path = self._downloads.raw_path(MIRAGE_NAME)
            benchmark = json.loads(path.read_text(encoding="utf-8"))
            if name not in benchmark:
                raise DataError(f"{path} has no set {name}", remedy="give MIRAGE's benchmark.json as it is published")
            return mirage_questions({name: benchmark[name]}, str(path))
        # Test if there is one, else dev, else train, as s3 takes them.
        found = {path.name: path for path in self._downloads.paths(FLASHRAG, f"{name}/*.jsonl")}
        splits = ("test.jsonl", "dev.jsonl", "train.jsonl") if testing else ("train.jsonl",)
        path = next((found[split] for split in splits if split in found), None)
        if path is None:
            raise DataError(f"{FLASHRAG} has no training set for {name}", remedy="take it out of data.sources.train")
        return flashrag_questions(read_rows(path), data_source=name)
