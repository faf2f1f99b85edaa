"""Exports an evaluation in the file formats of s3's and Search-R1's own scripts, or as TREC runs.

Each agent has a folder, and in it each sample if there are several. The formats of s3 and Search-R1 are keyed by the
question's text: of two tasks with the same text in one data source they would keep only the last, so such an evaluation
is refused. The originals count a question without a context as wrong; here a failed question is in
`remaining_questions` and in no score.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from s3_agent.clients.prompts import render_context
from s3_agent.data.files.whole import write_whole
from s3_agent.errors import ConfigError
from s3_agent.evaluation.coverage import read_coverage
from s3_agent.evaluation.records import EvaluatedTask, results_of
from s3_agent.evaluation.trec import write_trec
from s3_agent.names import file_name

ExportFormat = Literal["s3", "search_r1", "trec"]
Tally = dict[str, Any]


def sequences(results: Sequence[EvaluatedTask]) -> dict[str, Any]:
    """`{source}_output_sequences.json`: what the episode of each question selected and wrote."""
    return {
        result.task.question: {
            "golden_answers": list(result.task.golden_answers),
            "context_with_info": render_context(result.episode.selected),
            "response_str": result.episode.text,
        }
        for result in results
        if result.episode is not None
    }


def answers(results: Sequence[EvaluatedTask]) -> dict[str, Any]:
    """The result file: answers and scores by data source and question."""
    by_source: dict[str, dict[str, Any]] = defaultdict(dict)
    for result in results:
        if "gen_acc" in result.scores:
            by_source[result.task.data_source][result.task.question] = {
                "answer": result.answer or "",
                "score": int(result.scores["gen_acc"]),
                "em_score": int(result.scores["exact_match"]),
            }
    return dict(by_source)


def _tally(results: Sequence[EvaluatedTask], *, contexts: bool) -> Tally:
    done = [result for result in results if "gen_acc" in result.scores]
    total = len(done)
    correct, exact = (int(sum(result.scores[name] for result in done)) for name in ("gen_acc", "exact_match"))
    tally: Tally = {"total": total, "correct": correct, "accuracy": correct / total if total else 0.0}
    if contexts:
        tally["no_context"] = sum(result.episode is not None and not result.episode.selected for result in done)
    return {**tally, "em_correct": exact, "em_accuracy": exact / total if total else 0.0}


def statistics(results: Sequence[EvaluatedTask]) -> dict[str, Any]:
    """`*_stats.json`: counts by data source, and the number of questions that remain."""
    done = sum(result.state == "done" for result in results)
    return {
        "timestamp": time.strftime("%Y-%m-%d %H:%M:%S"),
        "total_questions": len(results),
        "processed_questions": done,
        "data_source_stats": {source: _tally(own, contexts=True) for source, own in _by_source(results).items()},
        "remaining_questions": len(results) - done,
    }


def own_answers(results: Sequence[EvaluatedTask]) -> dict[str, Tally]:
    """The result of `eval_only_r1.py`: counts by data source and in total."""
    return {
        **{source: _tally(own, contexts=False) for source, own in _by_source(results).items()},
        "overall": _tally(results, contexts=False),
    }


def _by_source(results: Iterable[EvaluatedTask]) -> dict[str, list[EvaluatedTask]]:
    found: dict[str, list[EvaluatedTask]] = defaultdict(list)
    for result in results:
        found[result.task.data_source].append(result)
    return found


def _refuse_doubles(results: Sequence[EvaluatedTask]) -> None:
    asked = Counter((one.agent, one.sample, one.task.data_source, one.task.question) for one in results)
    if doubles := [question for *_, question in (asked_one for asked_one, count in asked.items() if count > 1)]:
        raise ConfigError(
            f"{len(doubles)} questions occur twice in a data source, the first is {doubles[0]!r}: the published shapes "
            "are keyed by the question and would lose one",
            remedy="evaluate on questions without doubles",
        )


def export_results(folder: Path, out: Path, *, form: ExportFormat) -> list[Path]:
    """Write the files of the format `form` into `out`/AGENT and return their paths. Raises ConfigError."""
    results = [*results_of(folder / "results.jsonl")]
    if form == "trec":
        return write_trec(results, out, read_coverage(folder))
    _refuse_doubles(results)
    written: list[Path] = []

    def write(path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=4, ensure_ascii=False))
        written.append(path)

    several = {result.agent for result in results if result.sample}
    by_sample: dict[tuple[str, int], list[EvaluatedTask]] = defaultdict(list)
    for result in results:
        by_sample[result.agent, result.sample].append(result)
    for (agent, sample), own in by_sample.items():
        place = out / file_name(agent) / (f"sample-{sample + 1}" if agent in several else "")
        for source, part in _by_source(own).items():
            write(place / f"{file_name(source)}_output_sequences.json", sequences(part))
        if form == "s3":
            write(place / "results.json", answers(own))
            write(place / "results_stats.json", statistics(own))
        else:
            write(place / "eval_only_r1.json", own_answers(own))
    return written
