"""The story of one rollout, read from what the pools wrote: their logs (`pool_log`) and the records of its ends.

The files may be large, may still grow, and their pools may have been killed: lines are read one by one, a last line
without its newline is left out, and a damaged line is named and left out.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from s3_agent.errors import ConfigError
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.rollout.pool.pool_log import PoolEvent

Ending = Literal["succeeded", "failed", "lost", "open"]
"""How a rollout ended. `lost`: its pool has ended, or was started again and did not adopt it, and no end was recorded.
`open`: no end is recorded yet; it is being played, or its pool was killed.
"""

_ID = re.compile(rb'"rollout_id": ?("(?:[^"\\]|\\.)*")')
_OF_POOL = re.compile(rb'"event": ?"pool_')
# A quote inside of a JSON text is escaped: no text inside of an episode can match these.
_SUCCEEDED = re.compile(rb'"state": ?"succeeded"')
_NO_FAILURE = re.compile(rb'"failures": ?\[\]')
_REFUSED = re.compile(rb'"reported": ?false')
_NAMED = 5
_MOST_COMPARED = 20_000


class Story(BaseModel):
    """All that is known about one rollout. `events` also has the starts and ends of its pools, in order of time.

    `records` has one record, unless the gateway did not accept an end and the rollout was played again.
    """

    rollout_id: str
    ending: Ending
    events: list[PoolEvent]
    records: list[EpisodeRecord]


class Troubled(BaseModel):
    """A rollout that did not simply succeed: `boundary` and `message` are those of its end, or of its last failure."""

    rollout_id: str
    ending: Ending
    attempts: int
    boundary: str | None = None
    message: str | None = None


class Overview(BaseModel):
    """The number of rollouts by ending, and those that were lost, failed, have no end or were retried."""

    rollouts: int
    endings: dict[Ending, int]
    retried: int
    troubled: list[Troubled]


class PoolFiles:
    """The pool logs and episode logs of a run. `damaged` names the lines that could not be read."""

    def __init__(self, *, logs: Sequence[Path], episodes: Sequence[Path]) -> None:
        self._logs, self._episodes = logs, episodes
        self.damaged: list[str] = []

    def ids(self) -> list[str]:
        """The ids of all rollouts, in the order in which they were claimed."""
        found = (_id_of(line) for _, line in _lines([*self._logs, *self._episodes]))
        return list(dict.fromkeys(rollout_id for rollout_id in found if rollout_id is not None))

    def find(self, wanted: str) -> str:
        """The id that equals `wanted`, or the only one that begins with it. Raises ConfigError with similar ids."""
        ids = self.ids()
        matching = [wanted] if wanted in ids else [each for each in ids if each.startswith(wanted)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise ConfigError(
                f"{len(matching)} rollouts begin with {wanted!r}: {_some(matching)}", remedy="give more of the id"
            )
        close = difflib.get_close_matches(wanted, ids, n=_NAMED) if len(ids) <= _MOST_COMPARED else []
        near = f"similar ids: {_some(close)}" if close else f"there are {_some(ids)}"
        raise ConfigError(
            f"no rollout has the id {wanted!r}" + (f"; {near}" if ids else ": no rollout was claimed yet"),
            remedy="leave the id out for a list of the rollouts that were lost, failed or retried",
        )

    def story(self, rollout_id: str) -> Story:
        """Everything about one rollout."""
        events = sorted(self._events(rollout_id), key=lambda event: event.at)
        records = {(record.attempt_id, record.finished_at): record for record in self._records(rollout_id)}
        progress = _Progress()
        for event in events:
            progress.take(event)
        for record in records.values():
            progress.take_record(record)
        own = [number for number, event in enumerate(events) if event.rollout_id is not None]
        if own:  # keep what its pools did from the claim to the end, or until now without an end
            pools = {events[number].pool for number in own}
            last = own[-1] + 1 if progress.ending in ("succeeded", "failed") else None
            events = [event for event in events[own[0] : last] if event.pool in pools]
        return Story(
            rollout_id=rollout_id,
            ending=progress.ending,
            events=events if own else [],
            records=sorted(records.values(), key=lambda record: record.finished_at),
        )

    def overview(self) -> Overview:
        """Counts, and every rollout that did not simply succeed: the lost ones first, then in the order in which they
        were claimed.
        """
        rollouts: dict[str, _Progress] = {}
        for event in self._events():
            if event.rollout_id is None:
                for progress in rollouts.values():
                    progress.take(event)
            else:
                rollouts.setdefault(event.rollout_id, _Progress()).take(event)
        for place, line in _lines(self._episodes):
            if (rollout_id := _id_of(line)) is None:
                self._damaged(place)
            elif _SUCCEEDED.search(line) and _NO_FAILURE.search(line) and not _REFUSED.search(line):
                rollouts.setdefault(rollout_id, _Progress()).end("succeeded")
            elif record := self._parsed(EpisodeRecord, place, line):
                rollouts.setdefault(rollout_id, _Progress()).take_record(record)
        endings: dict[Ending, int] = dict.fromkeys(("lost", "failed", "open", "succeeded"), 0)
        for progress in rollouts.values():
            endings[progress.ending] += 1
        troubled = [
            Troubled(
                rollout_id=rollout_id,
                ending=progress.ending,
                attempts=progress.attempts,
                boundary=progress.boundary,
                message=progress.message,
            )
            for rollout_id, progress in rollouts.items()
            if progress.troubled
        ]
        order = list(endings)
        return Overview(
            rollouts=len(rollouts),
            endings=endings,
            retried=sum(progress.attempts > 1 for progress in rollouts.values()),
            troubled=sorted(troubled, key=lambda one: order.index(one.ending)),
        )

    def _events(self, rollout_id: str | None = None) -> Iterator[PoolEvent]:
        """All events, or those of one rollout and of pools."""
        for place, line in _lines(self._logs):
            about = _id_of(line)
            if about is None and not _OF_POOL.search(line):
                self._damaged(place)
            elif (rollout_id is None or about in (None, rollout_id)) and (
                event := self._parsed(PoolEvent, place, line)
            ):
                yield event

    def _records(self, rollout_id: str) -> Iterator[EpisodeRecord]:
        for place, line in _lines(self._episodes):
            if _id_of(line) == rollout_id and (record := self._parsed(EpisodeRecord, place, line)):
                yield record

    def _parsed[Parsed: BaseModel](self, kind: type[Parsed], place: str, line: bytes) -> Parsed | None:
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            self._damaged(place)
            return None

    def _damaged(self, place: str) -> None:
        if place not in self.damaged:
            self.damaged.append(place)


class _Progress:
    """How far a rollout has come, event by event."""

    def __init__(self) -> None:
        self.ending: Ending = "open"
        self.attempts = 0
        self.boundary: str | None = None
        self.message: str | None = None
        self._ids: set[str] = set()
        self._pool = ""
        self._refused = False

    @property
    def troubled(self) -> bool:
        """Whether it did not simply succeed at its first attempt."""
        return self.ending != "succeeded" or self.attempts > 1 or self._refused

    def take(self, event: PoolEvent) -> None:
        """Take in one event of the rollout, or of a pool."""
        if event.rollout_id is None:
            if self.ending == "open" and event.pool == self._pool:
                self.ending = "lost"  # unless the pool adopts it
            return
        if event.event in ("claimed", "adopted"):
            self.ending, self._pool = "open", event.pool
        if event.event in ("attempt_started", "attempt_failed") and event.attempt_id:
            self._ids.add(event.attempt_id)  # the numbers begin again when a pool is started again
            self.attempts = len(self._ids)
        if event.event == "attempt_failed":
            self.boundary, self.message = event.boundary, event.message
        if event.event == "ended" and event.state is not None:
            self.end(event.state, boundary=event.boundary, message=event.message, reported=event.reported is not False)

    def take_record(self, record: EpisodeRecord) -> None:
        """Take in the record of its end."""
        last = record.failures[-1] if record.failures else None
        self.boundary, self.message = (last.boundary, last.message) if last else (self.boundary, self.message)
        self.attempts = max(self.attempts, record.attempts)
        self.end(record.state, boundary=record.boundary, message=record.error, reported=record.reported)

    def end(
        self,
        state: Literal["succeeded", "failed"],
        *,
        boundary: str | None = None,
        message: str | None = None,
        reported: bool = True,
    ) -> None:
        """Note that it has ended; the reason for its end replaces that of its last failure."""
        self.ending, self._refused = state, not reported
        self.attempts = max(1, self.attempts)
        self.boundary, self.message = boundary or self.boundary, message or self.message


def _lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """The place (`file:number`) of each complete line, and its bytes."""
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):
                        yield f"{path}:{number}", line


def _id_of(line: bytes) -> str | None:
    """The rollout that a line is about, without parsing the episode in it."""
    if (found := _ID.search(line)) is None:
        return None
    try:
        return json.loads(found[1])
    except ValueError:
        return None


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
