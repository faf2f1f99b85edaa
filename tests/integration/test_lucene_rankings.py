"""BM25 ranks as Lucene does: compared with Lucene itself where Java and Anserini's jar are to be had."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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
