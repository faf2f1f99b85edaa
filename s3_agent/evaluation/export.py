"""Exports an evaluation in the file formats of s3's, Search-R1's and BrowseComp-Plus's scripts, or as TREC runs.

Each agent has a folder, and in it each sample if there are several. The formats of s3 and Search-R1 are keyed by the
question's text: of two tasks with the same text in one data source they would keep only the last, so such an evaluation
is refused. The originals count a question without a context as wrong; here a failed question is in
`remaining_questions` and in no score.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3_agent.clients.prompts import render_context
from s3_agent.data.files.whole import keep_private, write_whole
from s3_agent.errors import ConfigError
from s3_agent.evaluation.browsecomp_plus import run_folder
from s3_agent.evaluation.coverage import read_coverage
from s3_agent.evaluation.records import EvaluatedTask, read_json, results_of
from s3_agent.evaluation.trec import write_trec
from s3_agent.names import file_name

Tally = dict[str, Any]
Files = Iterator[tuple[str, Any]]
"""The files of one sample of an agent: name and content."""


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format: `write(results, out, folder=…, plain=…)` writes the results of the evaluation `folder` into `out`.

    `hides`: without `plain` it encrypts or leaves out the texts of protected questions. `by_question`: its files are
    keyed by the question's text.
    """

    write: Callable[..., list[Path]]
    hides: bool = False
    by_question: bool = False


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
    asked: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for one in results:
        asked[one.agent, one.sample, one.task.data_source, one.task.question].append(one.task.id)
    if doubles := [ids for ids in asked.values() if len(ids) > 1]:
        raise ConfigError(
            f"{len(doubles)} questions occur twice in a data source, the first under the ids "
            f"{' and '.join(doubles[0])}: the published shapes are keyed by the question and would lose one",
            remedy="evaluate on questions without doubles",
        )


def _refuse_protected(results: Sequence[EvaluatedTask], form: str) -> None:
    if count := len({result.task.id for result in results if result.task.protected}):
        raise ConfigError(
            f"{count} questions are of a set that may not be published in plain text, and the format {form} has no "
            "form without them",
            remedy="export them with --format browsecomp_plus, which encrypts; --show-protected writes them as they "
            "are, for your own eyes",
        )


def _for_each_sample(files: Callable[..., Files]) -> Callable[..., list[Path]]:
    """A format of JSON files: `files(results, agent, plain=…)` gives those of one sample of an agent."""

    def write(results: Sequence[EvaluatedTask], out: Path, *, folder: Path, plain: bool) -> list[Path]:
        agents = read_json(folder / "evaluation.json").get("agents", {})
        several = {result.agent for result in results if result.sample}
        by_sample: dict[tuple[str, int], list[EvaluatedTask]] = defaultdict(list)
        for result in results:
            by_sample[result.agent, result.sample].append(result)
        written: list[Path] = []
        for (agent, sample), own in by_sample.items():
            place = out / file_name(agent) / (f"sample-{sample + 1}" if agent in several else "")
            place.mkdir(parents=True, exist_ok=True)
            for name, content in files(own, agents.get(agent, {}), plain=plain):
                write_whole(place / name, json.dumps(content, indent=4, ensure_ascii=False))
                written.append(place / name)
        return written

    return write


def _s3(results: Sequence[EvaluatedTask], agent: Mapping[str, Any], *, plain: bool) -> Files:
    yield from _sequences(results)
    yield "results.json", answers(results)
    yield "results_stats.json", statistics(results)


def _search_r1(results: Sequence[EvaluatedTask], agent: Mapping[str, Any], *, plain: bool) -> Files:
    yield from _sequences(results)
    yield "eval_only_r1.json", own_answers(results)


def _sequences(results: Sequence[EvaluatedTask]) -> Files:
    for source, part in _by_source(results).items():
        yield f"{file_name(source)}_output_sequences.json", sequences(part)


def _trec(results: Sequence[EvaluatedTask], out: Path, *, folder: Path, plain: bool) -> list[Path]:
    return write_trec(results, out, read_coverage(folder), plain=plain)


FORMATS: Mapping[str, ExportFormat] = {
    "s3": ExportFormat(_for_each_sample(_s3), by_question=True),
    "search_r1": ExportFormat(_for_each_sample(_search_r1), by_question=True),
    "browsecomp_plus": ExportFormat(_for_each_sample(run_folder), hides=True),
    "trec": ExportFormat(_trec, hides=True),
}


def export_results(folder: Path, out: Path, *, form: str, show_protected: bool = False) -> list[Path]:
    """Write the files of the format `form` into `out` and return their paths. Raises ConfigError.

    Texts of protected questions are encrypted or left out, or the format is refused, unless `show_protected`.
    """
    results, wanted = [*results_of(folder / "results.jsonl")], FORMATS[form]
    if wanted.by_question:
        _refuse_doubles(results)
    if not (show_protected or wanted.hides):
        _refuse_protected(results, form)
    if show_protected and any(result.task.protected for result in results):
        keep_private(out)
    return wanted.write(results, out, folder=folder, plain=show_protected)
