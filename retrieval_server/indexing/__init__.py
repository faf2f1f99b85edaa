"""Index folders: built in resumable steps, identified by a manifest that is written last and checked first."""

from retrieval_server.indexing.build import build_index
from retrieval_server.indexing.manifest import (
    MANIFEST,
    expected_manifest,
    manifest_without_corpus,
    served_manifest,
    verify_index,
)
from retrieval_server.indexing.opening import (
    load_index,
    open_backend,
    open_corpus,
    open_without_corpus,
    used_settings,
)

__all__ = [
    "MANIFEST",
    "build_index",
    "expected_manifest",
    "load_index",
    "manifest_without_corpus",
    "open_backend",
    "open_corpus",
    "open_without_corpus",
    "served_manifest",
    "used_settings",
    "verify_index",
]
