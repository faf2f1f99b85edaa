"""Analyses a corpus with several processes, part by part; parts that an earlier build finished are kept."""

import json
import os
import queue
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

from retrieval_server.backends.bm25.block_max.memory import processes
from retrieval_server.backends.bm25.block_max.parts import PART_BYTES, Part, write_part
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus, Report
from retrieval_server.errors import RetrievalError

_Range = tuple[int, int, int]


def analyse(corpus: Corpus, settings: Bm25Settings, folder: Path, *, report: Report, part_bytes: int = 0) -> list[Part]:
    """Write the parts of a corpus that are missing in `folder`; return all parts in order. Raises RetrievalError."""
    cuts = corpus.cuts(part_bytes or PART_BYTES)
    work = [(number, *between) for number, between in enumerate(pairwise(cuts))]
    parts = [Part(folder, number) for number, _, _ in work]
    left = [part for part in work if parts[part[0]].described() is None]
    done = len(corpus) - sum(end - first for _, first, end in left)
    report("analysing passages", done, len(corpus))
    if len(left) == 1:
        [(number, first, end)] = left
        write_part(corpus, settings, parts[number], first, end)
    elif left:
        corpus.save_lines(folder)
        task = {"corpus": str(corpus.path), "folder": str(folder), "settings": settings.model_dump(mode="json")}
        for first, end in _finished(task, left, processes(len(corpus))):
            done += end - first
            report("analysing passages", done, len(corpus))
    report("analysing passages", len(corpus), len(corpus))
    return parts


def _finished(task: dict[str, Any], left: list[_Range], most: int) -> Any:
    """Yield the rows of each part when one of at most `most` processes has written it. Stops them when it ends or is
    closed."""
    waiting: queue.SimpleQueue[_Range] = queue.SimpleQueue()
    answers: queue.SimpleQueue[_Range | RetrievalError] = queue.SimpleQueue()
    for part in left:
        waiting.put(part)
    running = [_started(task) for _ in range(min(most, len(left)))]
    try:
        for process in running:
            threading.Thread(target=_feed, args=(process, waiting, answers), daemon=True).start()
        for _ in left:
            answer = answers.get()
            if isinstance(answer, RetrievalError):
                raise answer
            yield answer[1:]
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def _started(task: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "retrieval_server.backends.bm25.block_max.parts"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()
    return process


def _feed(process: subprocess.Popen[str], waiting: Any, answers: Any) -> None:
    """Give a process one range after another; report each as finished, or the first error."""
    assert process.stdin is not None and process.stdout is not None
    while True:
        try:
            part = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            process.stdin.write(json.dumps(part) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            answers.put(
                RetrievalError(
                    f"a process that analyses passages ended with status {process.wait()}",
                    remedy="see its error above, if any, and the machine's free memory; a new build continues",
                )
            )
            return
        if error := json.loads(answer):
            answers.put(RetrievalError(error))
            return
        answers.put(part)
