"""Makes task files from published questions: training candidates, full test sets, and the validation sample."""

from collections.abc import Iterable, Iterator

from s3_agent.data.files.tables import Placed, Row
from s3_agent.data.published.datasets import Fetched
from s3_agent.data.published.sources import SourceSettings
from s3_agent.data.questions import Dropped, sampled, usable


class PublishedQuestions:
    """The questions that a recipe's `sources` name, from fetched files. Raises DataError with the wrong row."""

    def __init__(self, sources: SourceSettings, fetched: Fetched) -> None:
        self._sources = sources
        self._fetched = fetched

    def train(self, dropped: Dropped) -> list[Row]:
        """The training candidates; naive RAG filters them later."""
        return list(usable(self._rows(self._sources.train, testing=False), dropped))

    def test(self, dropped: Dropped) -> list[Row]:
        """The full test sets."""
        return list(usable(self._rows(self._sources.test, testing=True), dropped))

    def sample(self, test: list[Row], dropped: Dropped) -> list[Row]:
        """The validation questions: the published sample of the test sets, or all of them."""
        if self._sources.sample is None:
            return test
        return sampled(test, most=self._sources.sample, seed=self._sources.sample_seed, dropped=dropped)

    def _rows(self, names: Iterable[str], *, testing: bool) -> Iterator[Placed]:
        for data_set in self._sources.question_sets(*names).values():
            yield from data_set.questions(self._fetched, testing=testing, key=self._sources.key)
