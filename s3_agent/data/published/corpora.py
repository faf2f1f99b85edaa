"""The corpora that the papers search, and the indexes over them that others publish."""

from dataclasses import dataclass

from s3_agent.data.published.datasets import DataSet, PublishedCorpus
from s3_agent.data.published.hub import Wanted

WIKI_18 = DataSet(
    summary="21 million passages of Wikipedia, December 2018",
    # A published index counts every row, also those without text.
    corpus=PublishedCorpus(
        files=(Wanted(repo="PeterJinGo/wiki-18-corpus", patterns=("wiki-18.jsonl.gz",)),), keeps_blank=True
    ),
)
MEDCORP = DataSet(
    summary="Wikipedia, PubMed and textbooks, as MedRAG splits them",
    # Without StatPearls, as in s3; ids are looked up in this order.
    corpus=PublishedCorpus(
        files=tuple(
            Wanted(repo=f"MedRAG/{name}", patterns=("chunk/*.jsonl",)) for name in ("wikipedia", "pubmed", "textbooks")
        )
    ),
)


@dataclass(frozen=True, slots=True)
class PublishedIndex:
    """A published index: its corpus, its kind, and whether its files are the pieces of one file."""

    files: Wanted
    corpus: str
    kind: str
    in_pieces: bool


INDEXES = {
    "e5-flat": PublishedIndex(
        Wanted(repo="PeterJinGo/wiki-18-e5-index", patterns=("part_*",)), "wiki-18", "dense", in_pieces=True
    ),
    "e5-hnsw64": PublishedIndex(
        Wanted(repo="PeterJinGo/wiki-18-e5-index-HNSW64", patterns=("part_*",)), "wiki-18", "dense", in_pieces=True
    ),
    "bm25-lucene": PublishedIndex(
        Wanted(repo="PeterJinGo/wiki-18-bm25-index", patterns=("bm25/*",)), "wiki-18", "lucene", in_pieces=False
    ),
}
"""Published indexes by the names that `data.sources.index` accepts."""
