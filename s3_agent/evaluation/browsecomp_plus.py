"""Run files and scores of BrowseComp-Plus, from the results of an evaluation (arXiv 2508.06600; docs/evaluation.md).

The scores are computed twice: as the project's own script `evaluate_run.py` does, so that they can be compared with
published ones, and so that every question counts. Pure functions; `export` writes what they return.
"""

import datetime
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from s3_agent.data.published.canary import encrypted
from s3_agent.evaluation.evidence import retrievals_of
from s3_agent.evaluation.records import EvaluatedTask
from s3_agent.evidence import GoldDocuments
from s3_agent.names import file_name
from s3_agent.types import Passage

BIN = 100
"""Answers in a bin of the calibration error."""
_BRACKETS = (re.compile(r"\[([^\[\]]*)\]"), re.compile(r"【([^【】]*)】"))


class Outcome(NamedTuple):
    """One question of an agent. `found` and `needed` are ids of documents: the union of all searches, and the evidence.

    `confidence` is what the judge read, in percent; None if it was not asked, or if its reply was unclear.
    """

    query_id: str
    completed: bool
    correct: bool
    confidence: float | None
    found: tuple[str, ...]
    needed: tuple[str, ...]
    searches: int
    response: str

    @property
    def recall(self) -> float | None:
        """The share of the evidence that some search found; None if the evidence is unknown."""
        return len({*self.needed} & {*self.found}) / len(self.needed) if self.needed else None


def searches_of(result: EvaluatedTask) -> Iterator[tuple[str, tuple[Passage, ...]]]:
    """The queries of an episode with what they found; the retrieval before the first turn is one of them."""
    episode = result.episode
    if episode is None:
        return
    first, *found = retrievals_of(episode)
    if first and result.task.initial_passages is None:
        yield result.task.question, first
    turns = [turn for turn in episode.turns if turn.passages is not None]
    for turn, passages in zip(turns, found, strict=True):
        yield (turn.action and turn.action.query) or turn.response, passages


def outcome_of(result: EvaluatedTask) -> Outcome:
    """The outcome of a result. A result that failed is not completed and has found nothing."""
    searched = [passages for _, passages in searches_of(result)]
    gold = GoldDocuments(result.task.evidence or ())
    found = (one for passages in searched for one in passages if one.id or gold.document(one) in gold.names)
    answer = result.answer or ""
    return Outcome(
        query_id=result.task.id,
        completed=result.state == "done" and bool(answer),
        correct=bool(answer) and result.scores.get("gen_acc", 0.0) > 0.5,
        confidence=result.confidence if answer else None,
        found=tuple(gold.ranking(found)),
        needed=gold.names,
        searches=len(searched),
        response=answer,
    )


def run_file(result: EvaluatedTask, *, model: str, plain: bool) -> dict[str, Any]:
    """The run file of one question: what was searched, found, written and answered.

    Texts of a protected question are encrypted with the key of its set, unless `plain`.
    """
    outcome, items = outcome_of(result), list[dict[str, Any]]()

    def add(kind: str, output: str, tool: str | None = None, arguments: str | None = None) -> None:
        items.append({"type": kind, "tool_name": tool, "arguments": arguments, "output": output})

    def add_search(query: str, passages: Sequence[Passage]) -> None:
        found = [{"docid": one.id, "snippet": f"{one.title}\n{one.text}".strip()} for one in passages]
        add("tool_call", json.dumps(found, ensure_ascii=False), "search", json.dumps({"query": query}))

    turns, searches = result.episode.turns if result.episode else (), [*searches_of(result)]
    if len(searches) > sum(turn.passages is not None for turn in turns):
        add_search(*searches.pop(0))
    for turn in turns:
        add("reasoning", turn.response)
        if turn.passages is not None:
            add_search(*searches.pop(0))
    add("output_text", outcome.response)
    if result.task.protected and not plain:
        shown = ("arguments", "output")
        items = [
            {**item, **{name: encrypted(item[name], result.task.protected) for name in shown if item[name] is not None}}
            for item in items
        ]
    return {
        "metadata": {"model": model, "agent": result.agent},
        "query_id": outcome.query_id,
        "tool_call_counts": {"search": outcome.searches},
        "status": "completed" if outcome.completed else "failed",
        "retrieved_docids": list(outcome.found),
        "result": items,
    }


def calibration_error(confidences: Sequence[float], correct: Sequence[bool], *, published: bool) -> float:
    """The root of the mean squared difference of confidence and accuracy, in percent, over bins of 100 answers.

    `published`: as `evaluate_run.py` has it, which leaves out the last bin, with all answers beyond the last full
    hundred, and is 0 for fewer than 100 answers. Otherwise all bins count, and answers of one confidence share their
    accuracy, so that their order does not matter.
    """
    import numpy

    if not confidences or (published and len(confidences) < BIN):
        return 0.0
    sure, right = numpy.array(confidences, dtype=float) / 100, numpy.array(correct, dtype=float)
    if not published:
        shared: dict[float, list[float]] = defaultdict(list)
        for confidence, one in zip(sure, right, strict=True):
            shared[confidence].append(one)
        right = numpy.array([numpy.mean(shared[confidence]) for confidence in sure])
    order = numpy.argsort(sure)
    sure, right = sure[order], right[order]
    starts = [number * BIN for number in range(max(len(sure) // BIN, 1))]
    bins = list(zip(starts, [*starts[1:], len(sure)], strict=True))
    error = 0.0
    for start, end in bins[:-1] if published else bins:
        difference = sure[start:end].mean() - right[start:end].mean()
        error += (end - start) / len(sure) * difference**2
    return 100 * float(error) ** 0.5


def citations_in(response: str) -> set[str]:
    """Every number in brackets, also a year, as `evaluate_run.py` reads citations."""
    inside = [text for brackets in _BRACKETS for text in brackets.findall(response)]
    return {number for text in inside for number in re.findall(r"\d+", text)}


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _calibration(outcomes: Sequence[Outcome], *, published: bool) -> tuple[float, int]:
    sure = [(one.confidence, one.correct) for one in outcomes if one.confidence is not None]
    error = calibration_error([each for each, _ in sure], [right for _, right in sure], published=published)
    return round(error, 2), len(sure)


def published_summary(outcomes: Sequence[Outcome], *, model: str) -> dict[str, Any]:
    """`evaluation_summary.json` as `evaluate_run.py` writes it for the run files of these outcomes.

    Its means are over the run files that exist, so a question that has none is forgotten.
    """
    tools = _mean([one.searches for one in outcomes])
    recalls = [recall for one in outcomes if (recall := one.recall) is not None]
    return {
        "LLM": model or "change me when submitting",
        "Accuracy (%)": _percent(_mean([one.correct for one in outcomes]) or 0.0),
        "Recall (%)": _percent(_mean(recalls)),
        "avg_tool_stats": {} if tools is None else {"search": tools},
        "Calibration Error (%)": _calibration(outcomes, published=True)[0],
        "Retriever": "change me when submitting",
        "Link": "change me when submitting",
        "Evaluation Date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "per_query_metrics": [
            {"query_id": one.query_id, "correct": one.correct, "recall": _percent(one.recall)} for one in outcomes
        ],
    }


def citation_scores(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Precision and recall of the cited documents in percent, means over the answers that cite; and their share."""
    cited = [(citations_in(one.response), {*one.needed}) for one in outcomes]
    citing = [(numbers, needed) for numbers, needed in cited if numbers]
    return {
        "answers_that_cite": _percent(len(citing) / len(outcomes)) if outcomes else None,
        "precision": _percent(_mean([len(numbers & needed) / len(numbers) for numbers, needed in citing])),
        "recall": _percent(
            _mean([len(numbers & needed) / len(needed) if needed else 0.0 for numbers, needed in citing])
        ),
    }


def scores(outcomes: Sequence[Outcome], *, without_result: int) -> dict[str, Any]:
    """Scores in percent in which all questions count: one that has no result is wrong and has found nothing."""
    needed = [one.recall for one in outcomes if one.recall is not None]
    questions = len(outcomes) + without_result
    error, answers = _calibration(outcomes, published=False)
    return {
        "questions": questions,
        "without_result": without_result,
        "accuracy": _percent(sum(one.correct for one in outcomes) / questions) if questions else None,
        "recall": _percent(sum(needed) / (len(needed) + without_result)) if needed else None,
        "searches": _mean([one.searches for one in outcomes]),
        "calibration_error": error if answers else None,
        "calibration_answers": answers,
        "citations": citation_scores(outcomes),
    }


def run_folder(
    results: Sequence[EvaluatedTask], agent: Mapping[str, Any], *, plain: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files of one sample of an agent: a run file for each question with a result, and both forms of the scores."""
    model = str((agent.get("policy") or {}).get("model") or "")
    done = [result for result in results if result.state == "done"]
    names = Counter(file_name(result.task.id) for result in done)
    for number, result in enumerate(done):
        name = file_name(result.task.id)
        yield f"run_{name if names[name] == 1 else f'{name}_{number}'}.json", run_file(result, model=model, plain=plain)
    outcomes = [outcome_of(result) for result in done]
    yield "evaluation_summary.json", published_summary(outcomes, model=model)
    yield "scores.json", scores(outcomes, without_result=len(results) - len(done))
