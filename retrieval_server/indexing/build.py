"""Builds an index next to its final place: `<folder>.partial` is renamed once it holds the manifest.

A build that was killed at any stage, or that ran out of disk space, continues if its kind records its progress
(`IndexKind.progress`), and otherwise starts again. Either way the resulting files are the same, byte by byte. A second
build of the same folder waits for the first.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import IndexSettings, kind_of
from retrieval_server.indexing.lock import only_build
from retrieval_server.indexing.manifest import (
    MANIFEST,
    beside_identity,
    check,
    expected_manifest,
    read_manifest,
    write_manifest,
)

_GOAL = "building.json"  # describes the index that a partial folder is for

Fill = Callable[[Path], dict[str, Any]]
"""Writes the files of an index into a folder, and returns their description for the manifest."""


def build_index(corpus: Corpus, folder: Path, settings: IndexSettings, *, report: Report = silent) -> None:
    """Build the index in `folder` and replace an old one. Raises RetrievalError; then the old index stays."""
    kind = kind_of(settings)
    if (made := kind.foreign(settings)) is not None:
        raise RetrievalError(
            f"the settings name an existing index ({made}): there is nothing to build",
            remedy="serve it unchanged, or leave that field out to build one",
        )
    write_index(corpus, folder, settings, lambda partial: kind.build(corpus, settings, partial, report=report), report)


def convert_index(
    corpus: Corpus, source: Path, folder: Path, settings: IndexSettings, *, report: Report = silent
) -> None:
    """Build the index in `folder` from another one, without encoding the corpus. Raises RetrievalError."""
    kind = kind_of(settings)

    def fill(partial: Path) -> dict[str, Any]:
        return kind.convert(corpus, source, settings, partial, report=report)

    write_index(corpus, folder, settings, fill, report)


def write_index(corpus: Corpus, folder: Path, settings: IndexSettings, fill: Fill, report: Report = silent) -> None:
    """Let `fill` write the partial folder, and rename it to the index's folder. Raises RetrievalError."""
    kind = kind_of(settings)
    progress = (_GOAL, *kind.progress_of(settings))
    resume = len(progress) > 1  # they stay until everything else is written
    corpus.refuse_double_ids(report)
    expected = expected_manifest(corpus, settings)
    partial = folder.with_name(folder.name + ".partial")
    try:
        with only_build(folder, report) as waited:
            if waited and _is(folder, expected):
                return
            if not (resume and _is(partial, expected)):  # otherwise the build was killed just before the rename
                _begin(partial, expected, resume=resume)
                described = fill(partial)
                described = {**described, **beside_identity(settings)}
                corpus.save_lines(partial)
                for path in partial.rglob("*"):
                    if path.is_file():
                        with path.open("rb") as file:
                            os.fsync(file.fileno())
                write_manifest(partial, expected, described, report, besides=progress)
            for name in progress:
                (partial / name).unlink(missing_ok=True)
            _put(partial, folder)
    except OSError as cause:
        goes_on = "; finished files are kept, and the next build continues with them" if resume else ""
        raise RetrievalError(
            f"the index {folder} can not be written: {cause}", remedy=f"make room or give another folder{goes_on}"
        ) from cause


def _is(folder: Path, expected: dict[str, Any]) -> bool:
    """Whether the folder holds this index completely."""
    try:
        check(read_manifest(folder, remedy=""), folder, expected, remedy="")
    except RetrievalError:
        return False
    return True


def _begin(partial: Path, expected: dict[str, Any], *, resume: bool) -> None:
    goal = json.dumps(expected, indent=1)
    if not (resume and (partial / _GOAL).exists() and (partial / _GOAL).read_text(encoding="utf-8") == goal):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / _GOAL).write_text(goal, encoding="utf-8")
    (partial / MANIFEST).unlink(missing_ok=True)


def _put(partial: Path, folder: Path) -> None:
    """Replace the folder by the partial one; the old one exists until the new one does."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
