"""The manifest of an index, so that no server searches the index of another corpus or an incomplete one.

The expected fields hold the inputs that an index must have been built from; of libraries only a stemmer whose terms
change with its release, and the format number of its kind. The others describe the files: sizes are checked at each
load, hashes by `index verify`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrieval_server.config import index_settings
from retrieval_server.corpus import LINES_RECORD, Corpus, Report, silent
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import MANIFEST, PLACE, SEARCH, IndexSettings, kind_of


def made_with(settings: IndexSettings) -> dict[str, Any]:
    """The version of the index's format, and other dependencies of its kind."""
    kind = kind_of(settings)
    return {"format": kind.format, **kind.made_with(settings)}


def expected_manifest(corpus: Corpus, settings: IndexSettings) -> dict[str, Any]:
    """The expected fields of an index over this corpus with these settings."""
    return {
        **made_with(settings),
        "backend": settings.kind,
        "corpus": corpus.sha256(),
        "passages": len(corpus),
        "settings": settings.identity(),
    }


def served_manifest(corpus: Corpus, settings: IndexSettings) -> dict[str, Any]:
    """The same with all settings that answers depend on, as a server reports it: the identity of its answers.

    Raises RetrievalError if an index made elsewhere can not be read.
    """
    return {**expected_manifest(corpus, settings), "settings": kind_of(settings).answers(settings)}


def manifest_without_corpus(settings: IndexSettings, source: str) -> dict[str, Any]:
    """The manifest of a kind that searches no corpus; `source` is what it searches (`IndexKind.source`)."""
    return {
        **made_with(settings),
        "backend": settings.kind,
        "corpus": source,
        "passages": 0,
        "settings": settings.identity(),
    }


def how_to_build(corpus: Path, folder: Path) -> str:
    """What to do about an index that can not be used."""
    return (
        f"build it: python -m retrieval_server index build --corpus {corpus} --index {folder} "
        "(a BM25 index also by starting the server with --build)"
    )


def _sha256(path: Path, report: Report) -> str:
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(16 << 20):
            report(f"reading {path.name}", done, size)
            digest.update(chunk)
            done += len(chunk)
    return digest.hexdigest()


def write_manifest(
    folder: Path,
    expected: dict[str, Any],
    described: dict[str, Any],
    report: Report = silent,
    *,
    besides: Sequence[str] = (),
) -> None:
    """The manifest of a folder whose other files are complete; it leaves out the files in `besides`.

    The record of the corpus's lines holds a time of change and does not belong to it: the same index has the same
    manifest.
    """
    files = {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path, report)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in (MANIFEST, LINES_RECORD, *besides)
    }
    text = json.dumps({**expected, **described, "files": files}, indent=1)
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / MANIFEST)


def read_manifest(folder: Path, *, remedy: str) -> dict[str, Any]:
    """The manifest of a finished index. Raises RetrievalError if there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise RetrievalError(f"{folder} holds no finished index: {cause}", remedy=remedy) from cause
    if not isinstance(manifest, dict):
        raise RetrievalError(f"{folder / MANIFEST} is not a manifest", remedy=remedy)
    return manifest


def beside_identity(settings: IndexSettings) -> dict[str, Any]:
    """The settings that are recorded although they may change: those of the search, and the place."""
    beside = {SEARCH: settings.searched(), PLACE: settings.place()}
    return {name: values for name, values in beside.items() if values}


def said_settings(manifest: dict[str, Any], folder: Path, *, remedy: str) -> IndexSettings:
    """The settings that an index was built with, read from its manifest. Raises RetrievalError."""
    try:
        known = _merged(manifest["settings"], manifest.get(SEARCH, {}), manifest.get(PLACE, {}))
        return index_settings.validate_python({"kind": manifest["backend"], **known})
    except (KeyError, TypeError, ValueError) as cause:
        raise RetrievalError(f"{folder / MANIFEST} names no settings: {cause}", remedy=remedy) from cause


def _merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """The values of all layers, the later before the earlier, section by section."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            sections = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = _merged(merged[name], value) if sections else value
    return merged


def check(manifest: dict[str, Any], folder: Path, expected: dict[str, Any], *, remedy: str) -> None:
    """Raises RetrievalError if the index does not match `expected`, or a file of it is missing or has another size."""
    different = [
        f"{key} is {manifest.get(key)!r}, not {value!r}"
        for key, value in expected.items()
        if manifest.get(key) != value
    ]
    if (made := manifest.get("format")) != expected["format"]:
        message = f"the index {folder} has the format {made} of another release; this one reads {expected['format']}"
        raise RetrievalError(message, remedy=remedy)
    if different:
        raise RetrievalError(f"the index {folder} is another's: " + "; ".join(different), remedy=remedy)
    for name, recorded in dict(manifest.get("files", {})).items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != recorded["bytes"]:
            state = "is missing" if found is None else f"has {found} bytes"
            raise RetrievalError(f"{folder / name} {state}, {recorded['bytes']} were written", remedy=remedy)


def verify_index(
    corpus: Corpus, folder: Path, report: Report = silent, *, settings: IndexSettings | None = None
) -> dict[str, Any]:
    """Read every byte of the corpus and the index; return the manifest. Raises RetrievalError for a difference.

    `settings` name the place of the index, if it is no longer the one in the manifest.
    """
    remedy = how_to_build(corpus.path, folder)
    manifest = read_manifest(folder, remedy=remedy)
    corpus.read_again(report)
    settings = settings or said_settings(manifest, folder, remedy=remedy)
    check(manifest, folder, expected_manifest(corpus, settings), remedy=remedy)
    for name, recorded in manifest["files"].items():
        if _sha256(folder / name, report) != recorded["sha256"]:
            raise RetrievalError(f"{folder / name} is not what was written: its hash differs", remedy=remedy)
    kind_of(settings).verify(corpus, folder, settings, report=report)
    return manifest
