"""Fills an engine batch by batch, and compares what it holds with what was written.

The record gets a batch's line once the engine has kept the batch, so a killed build continues behind it. When all
batches are there the engine's own count must be that of the corpus; the hashes of the batches then become a file of the
index, which `index verify` compares with the engine. Passages in the engine of which the folder has no record are never
removed: they are another folder's index, and a server may be searching it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from retrieval_server.backends.engines.store import Batch, Store
from retrieval_server.corpus import Corpus, Report
from retrieval_server.errors import RetrievalError
from retrieval_server.services import patiently

RECORD, CONTENTS = "filling.jsonl", "contents.json"
PATIENCE_S = 120.0  # nobody waits for a build within a request


@dataclass(frozen=True)
class Contents:
    """What was written into an engine: numbers of a vector, passages of a batch, and the hash of each batch."""

    dimension: int | None
    batch: int
    sha256: Sequence[str] = ()


def read_contents(folder: Path) -> Contents:
    """What was written for the finished index in this folder."""
    return Contents(**json.loads((folder / CONTENTS).read_text(encoding="utf-8")))


BatchOf = Callable[[int, int], Batch]
"""Returns the passages from start to end."""


def _hash(rows: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(4, "big") + row)
    return digest.hexdigest()


def _finished(record: Path) -> dict[tuple[int, int], str]:
    """The hash of each recorded batch, by its first row and the row after it; a line cut by a kill is ignored."""
    finished: dict[tuple[int, int], str] = {}
    if record.exists():
        for line in record.read_text(encoding="utf-8").splitlines():
            try:
                batch = json.loads(line)
            except ValueError:
                continue
            finished[batch["start"], batch["end"]] = batch["sha256"]
    return finished


def _batches(passages: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, passages)) for start in range(0, passages, size))


def fill(
    store: Store,
    batch_of: BatchOf,
    written: Contents,
    *,
    name: str,
    passages: int,
    folder: Path,
    report: Report,
) -> None:
    """Write all passages, and `written` with their hashes.

    Raises RetrievalError if the engine counts fewer or more, or holds passages that no build of this folder wrote.
    """
    record = folder / RECORD
    ours, finished = record.exists(), _finished(record)
    there = patiently(lambda: store.prepare(fresh=ours and not finished), patience_s=PATIENCE_S)
    if there and not ours and (held := patiently(store.count, patience_s=PATIENCE_S)):
        raise RetrievalError(
            f"the engine holds this index already ({name}, {held} passages), and a server may be searching it",
            remedy="give another `name`, or remove it from the engine first",
        )
    if not there:
        record.unlink(missing_ok=True)
        finished = {}
    hashes: list[str] = []
    with record.open("a", encoding="utf-8") as file:
        file.write("\n" if file.tell() else "")  # ends a line that was cut by a kill
        for start, end in _batches(passages, written.batch):
            report("filling the engine", start, passages)
            if (start, end) not in finished:
                finished[start, end] = _put(store, batch_of(start, end))
                file.write(json.dumps({"start": start, "end": end, "sha256": finished[start, end]}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            hashes.append(finished[start, end])
    report("building the engine's index", 0, 0)
    patiently(lambda: store.finish(report), patience_s=PATIENCE_S)
    held = patiently(store.count, patience_s=PATIENCE_S)
    if held != passages:
        record.write_text("", encoding="utf-8")  # the next build may empty what this one has written
        raise RetrievalError(
            f"the engine holds {held} passages, {passages} were written to it",
            remedy="build again: all passages are written again; if it repeats, see what else writes there",
        )
    text = json.dumps(asdict(replace(written, sha256=hashes)))
    (folder / CONTENTS).write_text(text, encoding="utf-8")


def _put(store: Store, batch: Batch) -> str:
    patiently(lambda: store.put(batch), patience_s=PATIENCE_S)
    return _hash(store.canonical(batch))


def compare(store: Store, corpus: Corpus, written: Contents, *, sample: bool, report: Report) -> None:
    """Raise RetrievalError unless the engine holds what was written: the count and, batch by batch, the hashes.

    With `sample` only the first, the middle and the last batch are read.
    """
    held = store.count()
    if held != len(corpus):
        raise RetrievalError(
            f"the engine holds {held} passages of this index, the corpus {corpus.path} has {len(corpus)}",
            remedy="remove it from the engine and build the index again",
        )
    batches = list(enumerate(_batches(len(corpus), written.batch)))
    if sample:
        batches = [batches[at] for at in sorted({0, len(batches) // 2, len(batches) - 1})]
    for number, (start, end) in batches:
        report("comparing with the engine", start, len(corpus))
        if _hash(store.held(start, end)) != written.sha256[number]:
            raise RetrievalError(
                f"the engine does not hold what was written: passages {start} to {end - 1} of {corpus.path} differ",
                remedy="remove it from the engine and build the index again; let nothing else write there",
            )
