"""Builds an index in two steps: parts by several processes, then one merge. Both continue where a killed build was."""

import os
import shutil
from pathlib import Path

from retrieval_server.backends.bm25.block_max import MERGED, RECORD
from retrieval_server.backends.bm25.block_max.merging import ARRAYS, file_of, merge
from retrieval_server.backends.bm25.block_max.workers import analyse
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus, Report

_PARTS = "parts"


def build(corpus: Corpus, settings: Bm25Settings, folder: Path, *, report: Report) -> None:
    """Write the index into `folder`, which may hold what a killed build has left. Raises RetrievalError."""
    parts = folder / _PARTS
    if not (folder / MERGED).exists():
        parts.mkdir(exist_ok=True)
        merge(analyse(corpus, settings, parts, report=report), settings, folder, report=report)
        for path in (folder / RECORD, *(file_of(folder, name) for name in ARRAYS)):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        (folder / MERGED).touch()
    shutil.rmtree(parts, ignore_errors=True)
