"""Computes the result table of an evaluation: means and intervals by agent and data source, and tested differences.

Its only input is `results.jsonl`. A failed question is left out of its agent's means and counted separately; two agents
are compared on the questions that both have.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from s3_agent.evaluation.compact import Measured
from s3_agent.evaluation.records import SCORES, EvaluatedTask
from s3_agent.evaluation.statistics.intervals import Difference, Estimate, difference_of, estimate_means, holm

COMPARED = (*SCORES, "searches", "tokens")
"""Measures by which agents are compared; each is a separate family for Holm's correction."""


class Numbers(NamedTuple):
    """The fields of one EvaluatedTask that the table needs. `values` maps measures to numbers, without unknown ones."""

    agent: str
    question: str
    data_source: str
    failed: str | None
    values: Mapping[str, float]


class AgentResult(BaseModel):
    """One agent's means: over all its questions, by data source, and the unweighted mean of the sources (macro).

    `questions` is their number; `failed` counts those without a result, by the boundary at fault.
    """

    model_config = ConfigDict(frozen=True)

    agent: str
    questions: int
    failed: dict[str, int]
    overall: dict[str, Estimate]
    macro: dict[str, Estimate]
    sources: dict[str, dict[str, Estimate]]

    @property
    def evaluated(self) -> int:
        """The number of questions with a result."""
        return self.questions - sum(self.failed.values())


class EvaluationTable(BaseModel):
    """The content of `table.json`: agents in the order in which they were named, and a comparison of every pair.

    `key` identifies all inputs of a complete table; it is empty for an incomplete one.
    """

    model_config = ConfigDict(frozen=True)

    key: str = ""
    agents: tuple[AgentResult, ...]
    differences: tuple[Difference, ...]


def numbers_of(result: EvaluatedTask) -> Numbers:
    """The numbers of one result. `tokens` counts all that policy and generator read and wrote, `seconds` all stages."""
    values: dict[str, float] = {**result.scores, **result.counts}
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
    )


def _samples(rows: Sequence[Numbers]) -> dict[str, list[float]]:
    """Values by measure, for the measures that every row has."""
    shared = set[str].intersection(*(set(row.values) for row in rows))
    return {measure: [row.values[measure] for row in rows] for measure in rows[0].values if measure in shared}


def _agent_result(agent: str, rows: Sequence[Numbers]) -> AgentResult:
    done = sorted((row for row in rows if row.failed is None), key=lambda row: row.question)
    by_source: dict[str, list[Numbers]] = defaultdict(list)
    for row in done:
        by_source[row.data_source].append(row)
    samples = {source: _samples(by_source[source]) for source in sorted(by_source)}
    shared = set[str].intersection(*map(set, samples.values())) if samples else set[str]()
    strata = [{name: values for name, values in sample.items() if name in shared} for sample in samples.values()]
    return AgentResult(
        agent=agent,
        questions=len(rows),
        failed=dict(Counter(row.failed for row in rows if row.failed is not None)),
        overall=estimate_means([_samples(done)]) if done else {},
        macro=estimate_means(strata) if strata else {},
        sources={source: estimate_means([sample]) for source, sample in samples.items()},
    )


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


def table_of(results: Iterable[Numbers], agents: Sequence[str]) -> EvaluationTable:
    """The table of the results, agents in the given order."""
    rows: dict[str, list[Numbers]] = {agent: [] for agent in agents}
    for row in results:
        rows[row.agent].append(row)
    rows = {agent: own for agent, own in rows.items() if own}
    return EvaluationTable(
        agents=tuple(_agent_result(agent, own) for agent, own in rows.items()),
        differences=tuple(one for measure in COMPARED for one in _differences(rows, measure)),
    )
