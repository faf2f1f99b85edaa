"""An index folder and its manifest: written last, checked first, so that no server searches another corpus's index."""

import json
import shutil
from pathlib import Path
from typing import Any

from retrieval_server.backends.bm25 import Bm25
from retrieval_server.config import Bm25Settings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError

MANIFEST = "manifest.json"


def expected_manifest(corpus: Corpus, settings: Bm25Settings) -> dict[str, Any]:
    """What an index over this corpus with these settings must say of itself."""
    return {
        "backend": "bm25",
        "library": Bm25.library(),
        "corpus": corpus.sha256(),
        "passages": len(corpus),
        "settings": settings.model_dump(),
    }


def build_index(corpus: Corpus, folder: Path, settings: Bm25Settings) -> Bm25:
    """Build the index in `folder`, replacing what is there; the manifest is written last."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    backend = Bm25.build(corpus, settings)
    backend.save(partial)
    (partial / MANIFEST).write_text(json.dumps(expected_manifest(corpus, settings), indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return backend


def load_index(corpus: Corpus, folder: Path, settings: Bm25Settings) -> Bm25:
    """Open the index in `folder`. Raises RetrievalError when it is missing or was made for another corpus."""
    remedy = f"build it: python -m retrieval_server --corpus … --index {folder} --build"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise RetrievalError(f"{folder} holds no finished index: {cause}", remedy=remedy) from cause
    if not isinstance(manifest, dict):
        raise RetrievalError(f"{folder / MANIFEST} is not a manifest", remedy=remedy)
    wanted = expected_manifest(corpus, settings)
    different = [
        f"{key} is {manifest.get(key)!r}, not {wanted[key]!r}" for key in wanted if manifest.get(key) != wanted[key]
    ]
    if different:
        raise RetrievalError(f"the index {folder} is another's: " + "; ".join(different), remedy=remedy)
    try:
        return Bm25.load(folder, settings)
    except Exception as cause:  # numpy, json and mmap each have their own errors for a damaged file
        raise RetrievalError(f"the index {folder} is damaged: {cause}", remedy=remedy) from cause


def open_index(corpus: Corpus, folder: Path, settings: Bm25Settings, *, build: bool) -> Bm25:
    """The index in `folder`; with `build`, one that is missing or another's is built."""
    try:
        return load_index(corpus, folder, settings)
    except RetrievalError:
        if not build:
            raise
    return build_index(corpus, folder, settings)
