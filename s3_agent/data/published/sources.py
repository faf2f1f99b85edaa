"""What is published where, by the names that a recipe uses (docs/data.md#published-data)."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s3_agent.data.published.hub import Wanted

GITHUB_RAW = "https://raw.githubusercontent.com"
MIRAGE_FILE = "Teddy-XiongGZ/MIRAGE/main/benchmark.json"
MIRAGE_NAME = "mirage-benchmark.json"
FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
S3_ROWS = "pat-jj/s3_processed_data"
SEARCH_R1_ROWS = "PeterJinGo/nq_hotpotqa_train"
MIRAGE_SETS = ("medqa", "medmcqa", "pubmedqa", "bioasq", "mmlu")
SEVEN = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")

CorpusName = Literal["wiki-18", "medcorp"]
IndexName = Literal["e5-flat", "e5-hnsw64", "bm25-lucene"]
QuestionsName = Literal["sets", "s3", "search-r1"]

CORPORA: dict[CorpusName, tuple[Wanted, ...]] = {
    "wiki-18": (Wanted(repo="PeterJinGo/wiki-18-corpus", patterns=("wiki-18.jsonl.gz",)),),
    # Without StatPearls, as s3 has it; in the order in which their ids are to be looked for.
    "medcorp": tuple(
        Wanted(repo=f"MedRAG/{name}", patterns=("chunk/*.jsonl",)) for name in ("wikipedia", "pubmed", "textbooks")
    ),
}


@dataclass(frozen=True, slots=True)
class PublishedIndex:
    """An index that others publish: of which kind it is, and whether its files are the pieces of one."""

    wanted: Wanted
    kind: str
    in_pieces: bool


INDEXES: dict[IndexName, PublishedIndex] = {
    "e5-flat": PublishedIndex(Wanted(repo="PeterJinGo/wiki-18-e5-index", patterns=("part_*",)), "dense", True),
    "e5-hnsw64": PublishedIndex(Wanted(repo="PeterJinGo/wiki-18-e5-index-HNSW64", patterns=("part_*",)), "dense", True),
    "bm25-lucene": PublishedIndex(Wanted(repo="PeterJinGo/wiki-18-bm25-index", patterns=("bm25/*",)), "lucene", False),
}


class SourceSettings(BaseModel):
    """What a recipe's data are made of. `sample` rows of a test set that has more are taken (None: all).

    `index` None: one is built here. `questions`: `sets` takes `train` and `test` by name, of FlashRAG or of MIRAGE;
    `s3` and `search-r1` the rows that those projects publish.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: CorpusName = "wiki-18"
    index: IndexName | None = None
    questions: QuestionsName = "sets"
    train: tuple[str, ...] = ("nq", "hotpotqa")
    test: tuple[str, ...] = SEVEN
    revision: str = "main"
    github_raw: str = GITHUB_RAW
    sample: int | None = Field(default=3000, ge=1)
    sample_seed: int = 42

    @model_validator(mode="after")
    def _index_of_corpus(self) -> "SourceSettings":
        if self.index is not None and self.corpus != "wiki-18":
            raise ValueError(f"the published index {self.index} is of wiki-18, not of {self.corpus}")
        return self

    @property
    def raw(self) -> dict[str, str]:
        """Files that are in no hub: name and address."""
        asked = self.questions == "sets" and set(MIRAGE_SETS).intersection((*self.train, *self.test))
        return {MIRAGE_NAME: f"{self.github_raw.rstrip('/')}/{MIRAGE_FILE}"} if asked else {}

    @property
    def wanted(self) -> list[Wanted]:
        """The hub's files."""
        files = [*CORPORA[self.corpus]]
        if self.index is not None:
            files.append(INDEXES[self.index].wanted)
        match self.questions:
            case "sets":
                names = [name for name in dict.fromkeys((*self.train, *self.test)) if name not in MIRAGE_SETS]
                if names:
                    files.append(Wanted(repo=FLASHRAG, patterns=tuple(f"{name}/*.jsonl" for name in names)))
            case "s3":
                files.append(Wanted(repo=S3_ROWS, patterns=("train_e5_s3.parquet", "test_e5_s3.parquet")))
            case "search-r1":
                files.append(Wanted(repo=SEARCH_R1_ROWS, patterns=("train.parquet", "test.parquet")))
        return [file.model_copy(update={"revision": self.revision}) for file in files]
