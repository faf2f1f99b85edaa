"""Writes the task sets of the data pipeline: the training set, filtered by naive RAG, and the test sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3_agent.data.files.tables import Row
from s3_agent.data.files.whole import write_rows
from s3_agent.data.naive_rag.cache import RagCache, beyond_rag
from s3_agent.data.naive_rag.passages import Retrieved
from s3_agent.data.published.rows import to_published, write_parquet
from s3_agent.data.questions import Dropped
from s3_agent.data.tasks import load_tasks, task_rows
from s3_agent.questions import retrieval_query


def write_task_sets(
    folder: Path, files: Mapping[str, Path], *, cache: RagCache, retrieved: Path, topk: int
) -> dict[str, Any]:
    """Write each of `files` as `<name>.jsonl` and, in published form, `<name>.parquet`; return what was kept and
    dropped.

    Rows keep all their fields and get the first `topk` passages and, if the cache has it, the naive-RAG score.
    `train` is filtered. Raises RagCacheError for a training task without an answer.
    """
    found, dropped = Retrieved(retrieved, topk=topk), Dropped()
    told: dict[str, Any] = {}
    for name, path in files.items():
        tasks = load_tasks(path)
        if name == "train":
            tasks = beyond_rag(cache.scored(tasks), dropped)
            told["candidates"] = len(tasks) + sum(dropped.counts.values())
        kept = {task.id for task in tasks}
        rows: list[Row] = []
        for row in task_rows(path):
            if row["id"] in kept:
                answer = cache.answers.get(row["id"])
                score = None if answer is None or answer.answer is None else float(answer.score)
                passages = found.first(retrieval_query(row["question"]))
                rows.append({**row, "rag_score": score, "initial_passages": [each.model_dump() for each in passages]})
        write_rows(folder / f"{name}.jsonl", rows)
        write_parquet(
            folder / f"{name}.parquet",
            [to_published(row, split=name, index=index) for index, row in enumerate(rows)],
        )
        told[name] = len(rows)
    return {**told, "dropped": dropped.text(), "reasons": dropped.report()}
