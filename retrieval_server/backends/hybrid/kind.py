"""Registers hybrid retrieval as a kind of index: each part is built and opened by its own kind, in its own folder.

A part that is complete is not built again if the build of another one is killed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval_server.backends.base import Backend
from retrieval_server.backends.hybrid.index import Hybrid
from retrieval_server.backends.hybrid.settings import HybridSettings
from retrieval_server.corpus import IDS, LINES, LINES_RECORD, Corpus, Report
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import MANIFEST, PLACE, SEARCH, IndexKind, IndexNeed, IndexSettings, kind_of

DESCRIBED = "described.json"  # written when a part is complete


class HybridKind(IndexKind):
    """Several indexes of one corpus, for example BM25 and dense, fused by reciprocal rank."""

    settings, format = HybridSettings, 1
    ready_within_s = 3600.0

    def load(self, corpus: Corpus, folder: Path, settings: HybridSettings, *, report: Report) -> Backend:
        parts = {
            name: kind_of(index).load(corpus, folder / name, index, report=report)
            for name, index in settings.indexes.items()
        }
        return Hybrid(parts, settings)

    def build(self, corpus: Corpus, settings: HybridSettings, folder: Path, *, report: Report) -> dict[str, Any]:
        return _described(
            {
                name: _built(corpus, index, folder / name, named_stages(name, report))
                for name, index in settings.indexes.items()
            }
        )

    def convert(
        self, corpus: Corpus, source: Path, settings: HybridSettings, folder: Path, *, report: Report
    ) -> dict[str, Any]:
        """Take the part that `source` is the index of, without copying its files, and build the others."""
        described: dict[str, dict[str, Any]] = {}
        for name, index in settings.indexes.items():
            if not described and (found := _taken(corpus, index, source, folder / name)) is not None:
                described[name] = found
        if not described:
            raise RetrievalError(
                f"{source} is the index of no part: its corpus, kind or settings differ from each of "
                f"{', '.join(settings.parts)}",
                remedy="give the folder of an index with the settings of a part, or build all parts: index build",
            )
        for name, index in settings.indexes.items():
            if name not in described:
                described[name] = _built(corpus, index, folder / name, named_stages(name, report))
        return _described({name: described[name] for name in settings.parts})

    def answers(self, settings: HybridSettings) -> dict[str, Any]:
        found = settings.answers()
        for name, index in settings.indexes.items():
            found["parts"][name]["index"] |= kind_of(index).answers(index)
        return found

    def progress_of(self, settings: HybridSettings) -> tuple[str, ...]:
        return tuple(
            f"{name}/{file}"
            for name, index in settings.indexes.items()
            for file in (DESCRIBED, *kind_of(index).progress_of(index))
        )

    def verify(self, corpus: Corpus, folder: Path, settings: HybridSettings, *, report: Report) -> None:
        for name, index in settings.indexes.items():
            kind_of(index).verify(corpus, folder / name, index, report=report)

    def made_with(self, settings: HybridSettings) -> dict[str, Any]:
        """The version of each part's format, and what its kind depends on."""
        made = {
            name: {"format": kind_of(index).format, **kind_of(index).made_with(index)}
            for name, index in settings.indexes.items()
        }
        return {"parts_made_with": made}

    def models(self, settings: HybridSettings) -> Mapping[str, str]:
        return {
            f"parts.{name}.index.{section}": model
            for name, index in settings.indexes.items()
            for section, model in kind_of(index).models(index).items()
        }

    def need(self, settings: HybridSettings, *, passages: int, dimension: int, cards: int) -> IndexNeed:
        needs = [
            kind_of(index).need(index, passages=passages, dimension=dimension, cards=cards)
            for index in settings.indexes.values()
        ]
        names = {name for need in needs for name in need.cards}
        on_cards = {name: sum(need.cards.get(name, 0) for need in needs) for name in names}
        return IndexNeed(sum(need.ram for need in needs), sum(need.disk for need in needs), on_cards)


def named_stages(name: str, report: Report) -> Report:
    """Reports the stages of one part with its name."""
    return lambda stage, done, total: report(f"{name}: {stage}", done, total)


def _described(parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The parts' descriptions for the manifest; the doctor reads the dimension of the vectors at its top."""
    dimensions = [part["dimension"] for part in parts.values() if "dimension" in part]
    return {"parts": dict(parts), **({"dimension": max(dimensions)} if dimensions else {})}


def _built(corpus: Corpus, index: IndexSettings, folder: Path, report: Report) -> dict[str, Any]:
    kind, done = kind_of(index), folder / DESCRIBED
    if kind.foreign(index) is not None:
        return {}
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    if not kind.progress_of(index):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    described = kind.build(corpus, index, folder, report=report)
    return _completed(folder, described)


def _completed(folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    partial = folder / f"{DESCRIBED}.partial"
    partial.write_text(json.dumps(described), encoding="utf-8")
    partial.replace(folder / DESCRIBED)
    return described


def _taken(corpus: Corpus, index: IndexSettings, source: Path, folder: Path) -> dict[str, Any] | None:
    """Link the files of an index folder into `folder`; None if it is not the index of these settings and corpus."""
    kind = kind_of(index)
    try:
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise RetrievalError(
            f"{source} holds no finished index: {cause}", remedy="give an index folder with --from"
        ) from cause
    wanted = {
        **{"format": kind.format, **kind.made_with(index)},
        "backend": index.kind,
        "corpus": corpus.sha256(),
        "settings": index.identity(),
    }
    if any(manifest.get(key) != value for key, value in wanted.items()):
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in manifest["files"]:
        if name in (LINES, LINES_RECORD, IDS):
            continue
        try:
            os.link(source / name, folder / name)
        except OSError:  # another disk
            shutil.copyfile(source / name, folder / name)
    known = {*wanted, "passages", "files", SEARCH, PLACE}
    return _completed(folder, {key: value for key, value in manifest.items() if key not in known})


KIND = HybridKind()
