"""The published data that a recipe uses, by the names of data sets."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s3_agent.data.published.corpora import INDEXES, PublishedIndex
from s3_agent.data.published.datasets import DATA_SETS, DataSet, PublishedCorpus
from s3_agent.data.published.flashrag import flashrag_set
from s3_agent.data.published.hub import Wanted
from s3_agent.errors import ConfigError, DataError, nearest

GITHUB_RAW = "https://raw.githubusercontent.com"
SEVEN = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
SETS = "sets"


class SourceSettings(BaseModel):
    """The published data that a recipe uses. `s3-agent datasets` lists the names.

    `corpus` None: the recipe's own file, nothing is fetched. At most `sample` rows of each test set are used (None:
    all). `index` None: an index is built here. `questions`: `sets` uses the data sets named in `train` and `test`,
    where an unregistered name is a folder of FlashRAG; any other value names one data set that has both. `key_file`
    holds the key of a set that is published encrypted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str | None = "wiki-18"
    index: str | None = None
    questions: str = SETS
    train: tuple[str, ...] = ("nq", "hotpotqa")
    test: tuple[str, ...] = SEVEN
    revision: str = "main"
    github_raw: str = GITHUB_RAW
    sample: int | None = Field(default=3000, ge=1)
    sample_seed: int = 42
    key_file: Path | None = None

    @model_validator(mode="after")
    def _names_are_known(self) -> "SourceSettings":
        try:
            corpus = self.corpus and DATA_SETS[self.corpus].corpus
            for name, data_set in self.question_sets(*self.train, *self.test).items():
                if data_set.rows is None:
                    raise ValueError(f"the data set {name} has no questions")
        except ConfigError as cause:
            raise ValueError(str(cause)) from cause
        if self.corpus is not None and corpus is None:
            raise ValueError(f"the data set {self.corpus} is not a corpus")
        if self.index is not None and self.index not in INDEXES:
            raise ValueError(f"there is no published index {self.index}: {nearest(self.index, INDEXES)}")
        if self.index is not None and (wanted := INDEXES[self.index].corpus) != self.corpus:
            raise ValueError(f"the published index {self.index} is of {wanted}, not of {self.corpus}")
        return self

    def question_sets(self, *names: str) -> dict[str, DataSet]:
        """The data sets of these names, or the one that `questions` names. Raises ConfigError for a broken one."""
        if self.questions != SETS:
            return {self.questions: DATA_SETS[self.questions]}
        return {name: DATA_SETS[name] if name in DATA_SETS else flashrag_set(name) for name in names}

    @property
    def published_corpus(self) -> PublishedCorpus | None:
        """The files of the corpus; None: the recipe's own file is used."""
        return None if self.corpus is None else DATA_SETS[self.corpus].corpus

    @property
    def published_index(self) -> PublishedIndex | None:
        """The published index; None: an index is built here."""
        return None if self.index is None else INDEXES[self.index]

    @property
    def raw(self) -> dict[str, str]:
        """Files outside the hub: name and address."""
        files: dict[str, str] = {}
        for data_set in self.question_sets(*self.train, *self.test).values():
            files |= data_set.raw
        return {name: f"{self.github_raw.rstrip('/')}/{path}" for name, path in files.items()}

    @property
    def key(self) -> str | None:
        """The key in `key_file`. Raises DataError."""
        if self.key_file is None:
            return None
        try:
            return self.key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as cause:
            raise DataError(f"the key file {self.key_file} can not be read: {cause}", remedy="name its file") from cause

    def require_keys(self) -> None:
        """Raises DataError if the key of an encrypted data set is missing."""
        for data_set in self.question_sets(*self.train, *self.test).values():
            data_set.require_key(self.key)

    @property
    def protected(self) -> bool:
        """Whether some of the questions may not be published in plain text."""
        return any(data_set.key_variable for data_set in self.question_sets(*self.train, *self.test).values())

    @property
    def wanted(self) -> list[Wanted]:
        """The hub files, each repository once."""
        asked = [*self.published_corpus.files] if self.published_corpus else []
        asked += [self.published_index.files] if self.published_index else []
        for data_set in self.question_sets(*self.train, *self.test).values():
            # Without training sets, only the files of the test splits are needed.
            asked += data_set.files if self.train or not data_set.test_files else data_set.test_files
        patterns: dict[str, dict[str, None]] = {}
        for wanted in asked:
            patterns.setdefault(wanted.repo, {}).update(dict.fromkeys(wanted.patterns))
        return [Wanted(repo=repo, patterns=tuple(names), revision=self.revision) for repo, names in patterns.items()]
