"""BM25 ranks as Lucene does: compared with Lucene itself where Java and Anserini's jar are to be had."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from retrieval_server.backends.bm25.analysis import EnglishAnalyzer
from retrieval_server.backends.bm25.index import Bm25
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.backends.lucene.index import Lucene
from retrieval_server.backends.lucene.settings import LuceneSettings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing import open_backend
from s3_agent.data.tasks import load_tasks, read_jsonl
from s3_agent.embedded import CORPUS, VALIDATION

ROOT = Path(__file__).parents[2]


def _jar() -> Path | None:
    """The jar named by S3_AGENT_ANSERINI_JAR, or the one in an installed pyserini."""
    if named := os.environ.get("S3_AGENT_ANSERINI_JAR"):
        return Path(named)
    spec = find_spec("pyserini")
    found = Path(spec.origin or "").parent.glob("resources/jars/anserini-*.jar") if spec else iter(())
    return next(found, None)


@pytest.mark.skipif(
    shutil.which("java") is None or _jar() is None, reason="needs Java and S3_AGENT_ANSERINI_JAR, or pyserini"
)
def test_the_first_ten_are_lucenes() -> None:
    command = [sys.executable, "benchmarks/retrieval_lucene.py", "--jar", str(_jar())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    sizes = ["--passages", "3000", "--queries", "100"]
    done = subprocess.run([*command, *sizes], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["top10_overlap_strict"] >= 0.95
    assert figures["same_terms"] >= 0.98


@pytest.mark.skipif(
    shutil.which("java") is None or _jar() is None, reason="needs Java and S3_AGENT_ANSERINI_JAR, or pyserini"
)
def test_every_word_has_lucenes_term() -> None:
    """Words of the embedded corpus with the endings that Porter's rules are about."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from retrieval_lucene import lucene  # pyright: ignore[reportMissingImports]

    endings = ["", "s", "ed", "ing", "y", "ly", "logy", "logies", "bly", "blies", "ness", "king", "kked", "ical"]
    text = " ".join(row["text"] for row in read_jsonl(CORPUS))
    stems = sorted(set(EnglishAnalyzer(stemmer="").terms(text)))[::3]
    words = [stem + ending for stem in stems for ending in endings if stem.isalpha()]
    jar = _jar()
    assert jar is not None and len(words) > 3000
    theirs = [found["terms"] for found in lucene(jar, ["text"], words)]
    ours = EnglishAnalyzer()
    assert [(word, ours.terms(word)) for word in words] == list(zip(words, theirs, strict=True))


@pytest.mark.skipif(shutil.which("java") is None or find_spec("pyserini") is None, reason="needs Java and pyserini")
def test_an_existing_lucene_index_is_served(tmp_path: Path) -> None:
    """The index is made as Search-R1's was, by Anserini; our own BM25 finds the same first passages."""
    rows = read_jsonl(CORPUS)
    documents = tmp_path / "documents"
    documents.mkdir()
    lines = [json.dumps({"id": str(row), "contents": f'"{at["title"]}"\n{at["text"]}'}) for row, at in enumerate(rows)]
    (documents / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    lucene = tmp_path / "lucene"
    indexer = [sys.executable, "-m", "pyserini.index.lucene", "--collection", "JsonCollection", "--threads", "1"]
    where = ["--input", str(documents), "--index", str(lucene), "--generator", "DefaultLuceneDocumentGenerator"]
    subprocess.run([*indexer, *where], check=True, capture_output=True)

    corpus = Corpus(documents / "corpus.jsonl")
    theirs, manifest = open_backend(corpus, tmp_path / "none", LuceneSettings(path=lucene))
    assert manifest["passages"] == len(rows)
    ours = Bm25.build(corpus, Bm25Settings())
    queries = [task.question for task in load_tasks(VALIDATION)[:50]]
    found, expected = theirs.search(queries, topk=10), ours.search(queries, topk=10)
    assert all(len(hits) == 10 for hits in found)
    overlap = [len({row for row, _ in a} & {row for row, _ in b}) for a, b in zip(found, expected, strict=True)]
    assert sum(overlap) >= 0.9 * 10 * len(queries)
    (tmp_path / "fewer.jsonl").write_text("\n".join(lines[1:]), encoding="utf-8")
    fewer = Corpus(tmp_path / "fewer.jsonl")
    with pytest.raises(RetrievalError, match="holds"):
        Lucene(LuceneSettings(path=lucene), fewer)
