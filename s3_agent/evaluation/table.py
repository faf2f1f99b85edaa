"""Computes the result table of an evaluation: means and intervals by agent and data source, and tested differences.

Its only input is `results.jsonl`. A failed question is left out of its agent's means and counted separately; two agents
are compared on the questions that both have. The samples of a question are joined before anything else is computed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from s3_agent.evaluation.compact import Measured
from s3_agent.evaluation.records import SCORES, EvaluatedTask
from s3_agent.evaluation.samples import joint_values, vote_of
from s3_agent.evaluation.statistics.intervals import (
    OF_SAMPLES,
    Difference,
    Estimate,
    difference_of,
    estimate_means,
    holm,
)

EVIDENCE = "evidence_"
"""The beginning of the names of evidence measures."""
COMPARED = (*SCORES, "evidence_retrieved_recall", "evidence_selected_recall", "searches", "tokens")
"""Measures by which agents are compared; each is a separate family for Holm's correction."""


class Numbers(NamedTuple):
    """The fields of one EvaluatedTask that the table needs. `values` maps measures to numbers, without unknown ones.

    `curve` is the evidence recall after each retrieval; `vote` is the answer as `samples.vote_of` counts it.
    """

    agent: str
    question: str
    data_source: str
    failed: str | None
    values: Mapping[str, float]
    sample: int = 0
    curve: Sequence[float] = ()
    vote: str | None = None


class AgentResult(BaseModel):
    """One agent's means: over all its questions, by data source, and the unweighted mean of the sources (macro).

    `questions` is their number, each played `samples` times; `failed` counts results that are missing, by the boundary
    at fault. Scores and evidence measures are means over the questions that have them (`Estimate.n`); other measures
    are there only if all questions have them. With several samples, `avg@n`, `pass@k` and `majority@n` are over the
    questions of which no sample is missing. `evidence_after` is the mean evidence recall after each retrieval, the
    initial one first; an episode that ended before keeps its last value.
    """

    model_config = ConfigDict(frozen=True)

    agent: str
    questions: int
    samples: int = 1
    failed: dict[str, int]
    overall: dict[str, Estimate]
    macro: dict[str, Estimate]
    sources: dict[str, dict[str, Estimate]]
    evidence_after: tuple[Estimate, ...] = ()

    @property
    def results(self) -> int:
        """The number of results that a complete evaluation has."""
        return self.questions * self.samples

    @property
    def evaluated(self) -> int:
        """The number of results that are there."""
        return self.results - sum(self.failed.values())


class EvaluationTable(BaseModel):
    """The content of `table.json`: agents in the order in which they were named, and a comparison of every pair.

    `key` identifies all inputs of a complete table; it is empty for an incomplete one. `coverage` says for how many
    questions the evidence is known and how much of it the corpus has.
    """

    model_config = ConfigDict(frozen=True)

    key: str = ""
    coverage: dict[str, int | None] = {}
    agents: tuple[AgentResult, ...]
    differences: tuple[Difference, ...]


def numbers_of(result: EvaluatedTask) -> Numbers:
    """The numbers of one result. `tokens` counts all that policy and generator read and wrote, `seconds` all stages."""
    values: dict[str, float] = {**result.scores, **result.counts}
    values |= {f"{EVIDENCE}{name}": value for name, value in result.evidence.items()}
    known = [count for name, count in result.counts.items() if name.endswith("_tokens")]
    if known:
        values["tokens"] = float(sum(known))
    if result.timings:
        values["seconds"] = sum(seconds for stage, seconds in result.timings.items() if stage != "judge")
    if result.cost_usd is not None:
        values["cost_usd"] = result.cost_usd
    return Numbers(
        agent=result.agent,
        question=result.task.id,
        data_source=result.task.data_source,
        failed=result.failure.boundary if result.failure else None,
        values=Measured(values if result.state == "done" else {}),
        sample=result.sample,
        curve=tuple(row["recall"] for row in result.evidence_by_turn),
        vote=None if result.answer is None else vote_of(result.answer),
    )


def _joined(rows: Sequence[Numbers], samples: int) -> Numbers | None:
    """One row for the samples of one question: the means of the measures that all of them have. None if all failed."""
    done = sorted((row for row in rows if row.failed is None), key=lambda row: row.sample)
    if samples == 1 or not done:
        return done[0] if done else None
    shared = set[str].intersection(*(set(row.values) for row in done))
    values = {name: sum(row.values[name] for row in done) / len(done) for name in done[0].values if name in shared}
    if len(done) == samples and "gen_acc" in shared:
        values |= joint_values([row.vote for row in done], [row.values["gen_acc"] for row in done])
    curves = [row.curve for row in done]
    longest = max(map(len, curves))
    curve = tuple(sum(_at(curve, i) for curve in curves) / len(curves) for i in range(longest)) if all(curves) else ()
    return done[0]._replace(values=values, curve=curve)


def _at(curve: Sequence[float], retrieval: int) -> float:
    return curve[min(retrieval, len(curve) - 1)]


def _may_lack(measure: str) -> bool:
    """Whether a question can lack this measure by its nature, and not because a server did not report it."""
    return measure in SCORES or measure.startswith((EVIDENCE, *OF_SAMPLES))


def _estimates(strata: Sequence[Sequence[Numbers]]) -> dict[str, Estimate]:
    """Estimates of the measures that every stratum has; their macro average if there are several strata."""
    # Few different sets of measures occur: rows are grouped by them.
    kinds = [[tuple(row.values) for row in stratum] for stratum in strata]
    different = dict.fromkeys(kind for stratum in kinds for kind in stratum)
    groups: dict[frozenset[tuple[str, ...]], list[str]] = defaultdict(list)
    for name in dict.fromkeys(name for kind in different for name in kind):
        having = frozenset(kind for kind in different if name in kind)
        if len(having) == len(different) or _may_lack(name):
            groups[having].append(name)
    found: dict[str, Estimate] = {}
    for having, names in groups.items():
        kept = [
            [row for row, kind in zip(rows, of, strict=True) if kind in having]
            for rows, of in zip(strata, kinds, strict=True)
        ]
        if all(kept):
            found |= estimate_means([{name: [row.values[name] for row in part] for name in names} for part in kept])
    return {name: found[name] for kind in different for name in kind if name in found}


def _curve(rows: Sequence[Numbers]) -> tuple[Estimate, ...]:
    curves = [row.curve for row in rows if row.curve]
    if not curves:
        return ()
    points = range(max(map(len, curves)))
    found = estimate_means([{str(point): [_at(curve, point) for curve in curves] for point in points}])
    return tuple(found[str(point)] for point in points)


def _agent_result(agent: str, rows: Sequence[Numbers]) -> tuple[AgentResult, list[Numbers]]:
    """The agent's result, and its joined rows."""
    by_question: dict[str, list[Numbers]] = defaultdict(list)
    for row in rows:
        by_question[row.question].append(row)
    samples = 1 + max(row.sample for row in rows)
    joined = (_joined(by_question[question], samples) for question in sorted(by_question))
    done = [row for row in joined if row is not None]
    by_source: dict[str, list[Numbers]] = defaultdict(list)
    for row in done:
        by_source[row.data_source].append(row)
    strata = [by_source[source] for source in sorted(by_source)]
    result = AgentResult(
        agent=agent,
        questions=len(by_question),
        samples=samples,
        failed=dict(Counter(row.failed for row in rows if row.failed is not None)),
        overall=_estimates([done]) if done else {},
        macro=_estimates(strata) if strata else {},
        sources={source: _estimates([by_source[source]]) for source in sorted(by_source)},
        evidence_after=_curve(done),
    )
    return result, done


def _differences(rows: Mapping[str, Sequence[Numbers]], measure: str) -> list[Difference]:
    values = {
        agent: {row.question: row.values[measure] for row in own if measure in row.values}
        for agent, own in rows.items()
    }
    pairs = (
        difference_of(measure, (first, values[first]), (second, values[second]))
        for first, second in combinations(values, 2)
    )
    found = [difference for difference in pairs if difference is not None]
    corrected = holm([difference.p_value for difference in found])
    return [one.model_copy(update={"p_holm": p_value}) for one, p_value in zip(found, corrected, strict=True)]


def table_of(
    results: Iterable[Numbers], agents: Sequence[str], *, coverage: Mapping[str, int | None] | None = None
) -> EvaluationTable:
    """The table of the results, agents in the given order."""
    rows: dict[str, list[Numbers]] = {agent: [] for agent in agents}
    for row in results:
        rows[row.agent].append(row)
    found = {agent: _agent_result(agent, own) for agent, own in rows.items() if own}
    joined = {agent: done for agent, (_, done) in found.items()}
    return EvaluationTable(
        coverage=dict(coverage or {}),
        agents=tuple(result for result, _ in found.values()),
        differences=tuple(one for measure in COMPARED for one in _differences(joined, measure)),
    )
