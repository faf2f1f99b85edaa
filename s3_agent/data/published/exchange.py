"""Imports and exports files of others: published rows, RAG caches and retrieved passages; TREC's topics and qrels."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from s3_agent.data.files.tables import read_rows, stem_of
from s3_agent.data.files.whole import write_rows, write_whole
from s3_agent.data.naive_rag.cache import RagCache
from s3_agent.data.published.json_files import export_rag_cache, export_sequences, import_rag_cache, import_sequences
from s3_agent.data.published.rows import Form, tasks_of, to_published, write_parquet
from s3_agent.data.questions import Dropped, usable
from s3_agent.data.tasks import iterate_jsonl, load_tasks, task_rows
from s3_agent.data.trec import Qrels, qrel_lines, read_qrels, read_topics, topic_lines, topic_rows, with_qrels
from s3_agent.errors import DataError


def read_published(
    kind: str, source: Path, target: Path, *, task_files: Sequence[Path], data_source: str, qrels: Path | None = None
) -> Iterator[str]:
    """Convert a published file into our form at `target`; yields lines to print. Raises DataError."""
    if kind == "topics":
        topics, judged = read_topics(source), _needed_qrels(qrels)
        count = write_rows(target, topic_rows(topics, judged, data_source or stem_of(source)))
        yield f"{count} tasks in {target}; {len(topics) - count} topics have no relevant document and are left out"
        return
    if kind == "qrels":
        rows, judged = [row for path in task_files for row in task_rows(path)], read_qrels(source)
        if not rows:
            raise DataError("no task file is given", remedy="name the questions of the qrels: --tasks FILE")
        count = write_rows(target, with_qrels(rows, judged), private=any(row.get("protected") for row in rows))
        strangers = len(judged.keys() - {row["id"] for row in rows})
        yield f"{count} tasks in {target}; {strangers} questions of the qrels are none of them"
        return
    tasks = [task for path in task_files for task in load_tasks(path)]
    match kind:
        case "rows":
            dropped = Dropped()
            count = write_rows(target, usable(tasks_of(read_rows(source)), dropped))
            yield f"{count} tasks in {target}; dropped: {dropped.text()}"
            yield from (
                f"dropped {told['count']} {reason}, the first: {', '.join(told['first'])}"
                for reason, told in dropped.report().items()
            )
        case "rag-cache":
            cache, strangers = import_rag_cache(source, tasks)
            cache.save(target)
            yield f"{len(cache.answers)} answers in {target}; {strangers} entries belong to none of the given tasks"
            yield "the file does not record its inputs: training refuses it unless data.allow_mismatch=true"
        case _:
            count = write_rows(target, import_sequences(source, tasks, data_source=data_source))
            yield f"{count} questions with their passages in {target}"


def _refuse_protected(rows: Iterable[Any], source: Path) -> None:
    if count := sum(row is not None for row in rows):
        raise DataError(
            f"{count} questions in {source} are of a set that may not be published in plain text",
            remedy="leave them out; --show-protected writes them as they are, for your own eyes",
        )


def write_published(
    kind: str,
    source: Path,
    target: Path,
    *,
    task_files: Sequence[Path],
    form: Form | None,
    show_protected: bool = False,
) -> Iterator[str]:
    """Convert our file into the published form at `target`; yields lines to print.

    Raises DataError, also for texts that may not be published, unless `show_protected`.
    """
    if not show_protected and kind != "qrels":  # which hold only ids
        if kind == "rag-cache":
            protected = [answer.protected for answer in RagCache.read(source).answers.values()]
        else:
            protected = [row.get("protected") for row in iterate_jsonl(source)]
        _refuse_protected(protected, source)
    match kind:
        case "topics" | "qrels":
            lines = (topic_lines if kind == "topics" else qrel_lines)(load_tasks(source))
            write_whole(target, "".join(line + "\n" for line in lines))
            yield f"{len(lines)} lines in {target}"
        case "rows":
            rows = task_rows(source)
            published = [to_published(row, form=form, split=source.stem, index=index) for index, row in enumerate(rows)]
            write_parquet(target, published)
            yield f"{len(rows)} rows in {target}"
        case "rag-cache":
            entries, lost = export_rag_cache(RagCache.read(source))
            write_whole(target, json.dumps(entries, ensure_ascii=False, indent=4))
            yield f"{sum(map(len, entries.values()))} entries in {target}; " + _shared(lost)
        case _:
            golds = {task.id: task.golden_answers for path in task_files for task in load_tasks(path)}
            entries, lost = export_sequences(iterate_jsonl(source), golds)
            write_whole(target, json.dumps(entries, ensure_ascii=False, indent=4))
            yield f"{len(entries)} entries in {target}; " + _shared(lost)


def _needed_qrels(path: Path | None) -> Qrels:
    if path is None:
        raise DataError(
            "topics have no gold answers, and without qrels nothing could be scored", remedy="give --qrels FILE"
        )
    return read_qrels(path)


def _shared(lost: int) -> str:
    return f"{lost} had the question of another entry with other content, and this form can hold only one"
