"""Evaluates many questions concurrently: first reports the kept results, then computes the missing ones.

If many questions of an agent fail in a row, the rest of them are marked failed with that boundary and not tried, so
that a missing service costs minutes and not hours. The next call tries them again.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from s3_agent.errors import S3AgentError
from s3_agent.evaluation.contestants import Contestant
from s3_agent.evaluation.pipeline import Pipeline, Services
from s3_agent.evaluation.records import EvaluatedTask, Failure
from s3_agent.evaluation.stages import NotKept
from s3_agent.types import Task

Done = Callable[[EvaluatedTask], None]


@dataclass(frozen=True, slots=True)
class Unit:
    """One agent and one question."""

    contestant: Contestant
    task: Task

    def failed(self, failure: Failure) -> EvaluatedTask:
        """The record of a question that failed."""
        one = self.contestant
        return EvaluatedTask(agent=one.label, sample=one.sample, task=self.task, state="failed", failure=failure)


def units_of(contestants: Sequence[Contestant], tasks: Iterable[Task]) -> list[Unit]:
    """All pairs of agent and question, ordered by question, so that running means can be compared."""
    return [Unit(contestant, task) for task in tasks for contestant in contestants]


async def read_kept(pipeline: Pipeline, units: Iterable[Unit], services: Services, *, done: Done) -> list[Unit]:
    """Report the results that are already kept; return the units that remain."""
    left = []
    for unit in units:
        try:
            done(await pipeline.evaluate(unit.contestant, unit.task, services, ask=False))
        except NotKept:
            left.append(unit)
    return left


async def evaluate_all(
    pipeline: Pipeline, units: Iterable[Unit], services: Services, *, concurrency: int, done: Done
) -> None:
    """Evaluate the units, `concurrency` at a time, and report each result."""
    in_a_row: Counter[str] = Counter()
    gave_up: dict[str, Failure] = {}
    waiting = iter(units)

    async def work() -> None:
        for unit in waiting:
            label = unit.contestant.label
            if label in gave_up:
                done(unit.failed(gave_up[label]))
                continue
            try:
                result = await pipeline.evaluate(unit.contestant, unit.task, services)
            except S3AgentError as error:
                failure = Failure(boundary=error.boundary, message=error.message)
                in_a_row[label] += 1
                if in_a_row[label] == max(concurrency, 8):
                    message = f"not tried, since {in_a_row[label]} in a row failed: {error.message}"
                    gave_up[label] = Failure(boundary=error.boundary, message=message)
                done(unit.failed(failure))
            else:
                in_a_row[label] = 0
                done(result)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
