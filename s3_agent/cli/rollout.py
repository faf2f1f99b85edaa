"""`s3-agent rollout`: the story of one rollout of a run, or a list of those that were lost, failed or retried."""

import difflib
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from s3_agent.errors import ConfigError
from s3_agent.evaluation.views.episode import episode_view
from s3_agent.guard import printable
from s3_agent.processes.run_folder import EPISODES, POOL_LOG
from s3_agent.rollout.cancelling import CANCELLED
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.rollout.pool.pool_log import PoolEvent
from s3_agent.rollout.story import Ending, Overview, PoolFiles, Story

LISTED = 20
DAMAGED_NAMED = 5
SHORT_ID = 12
_ENDINGS: dict[Ending, str] = {
    "lost": "lost: its pool ended without writing an end",
    "open": "no end yet: it is being played, or its pool was killed",
    "failed": "failed",
    "succeeded": "succeeded",
}
console = Console(stderr=True)


def pool_files(name: str, *, runs: Path) -> PoolFiles:
    """The log files of a run's pools: RUN is a folder or a name below `runs`. Raises ConfigError.

    For the folder of a comparison, those of all its runs. An evaluation has no pool.
    """
    found = [folder for folder in (Path(name), runs / name) if folder.is_dir()]
    if not found:
        names = sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
        near = difflib.get_close_matches(name, names, n=3) or names[:3]
        raise ConfigError(
            f"there is no run {name!r}" + (f"; in {runs} there is {', '.join(near)}" if near else ""),
            remedy=f"give the folder of a run, or its name below {runs} (--runs)",
        )
    folder = found[0]
    of_runs = [folder, *sorted(path for path in folder.glob("runs/*") if path.is_dir())]
    logs = [path for one in of_runs if (path := one / POOL_LOG).is_file()]
    # A resumed run moves the records of rollouts that it plays again to a folder for each generation.
    episodes = [path for one in of_runs for path in (one / EPISODES, *sorted(one.glob(f"generation-*/{EPISODES}")))]
    episodes = [path for path in episodes if path.is_file()]
    if logs or episodes:
        return PoolFiles(logs=logs, episodes=episodes)
    if (folder / "evaluation.json").is_file():
        raise ConfigError(
            f"{folder} is an evaluation, which plays its questions without a pool and without rollouts",
            remedy=f"`s3-agent report {folder}` shows every trajectory and every failure",
        )
    raise ConfigError(
        f"{folder} has neither {POOL_LOG} nor {EPISODES}: no pool has played there",
        remedy="give the folder of a training run or of a comparison, or the folder into which your own pool writes: "
        f"s3-agent workers --pool-log FOLDER/{POOL_LOG} --episodes FOLDER/{EPISODES}",
    )


def show_rollout(name: str, wanted: str | None, *, runs: Path, as_json: bool = False) -> None:
    """Print the story of one rollout, or the list when `wanted` is None. Raises ConfigError."""
    files = pool_files(name, runs=runs)
    if wanted is None:
        found = files.overview()
        shown: RenderableType = overview_view(found)
    else:
        found = files.story(files.find(wanted))
        shown = story_view(found)
    for place in files.damaged[:DAMAGED_NAMED]:
        line = f"left out, because the line is damaged: {printable(place)}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if (more := len(files.damaged) - DAMAGED_NAMED) > 0:
        console.print(f"and {more} more damaged lines", highlight=False)
    if as_json:
        Console().print_json(data=found.model_dump(mode="json", exclude_none=True), ensure_ascii=True)
    else:
        Console().print(shown)


def overview_view(overview: Overview) -> Group:
    """The number of rollouts, and a list of those that did not succeed at the first attempt."""
    counts = [f"{count} {ending}" for ending, count in overview.endings.items() if count]
    head = f"{overview.rollouts} rollouts: {', '.join(counts) or 'none was claimed yet'}; {overview.retried} retried"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("rollout", no_wrap=True)
    table.add_column("end", no_wrap=True)
    table.add_column("attempts", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    listed = overview.troubled[:LISTED]
    short = {one.rollout_id[:SHORT_ID] for one in overview.troubled}
    cut = SHORT_ID if len(short) == len(overview.troubled) else None
    for one in listed:
        why = (one.message or "").partition("\n")[0]
        if one.boundary and not why.startswith(one.boundary):
            why = f"{one.boundary}: {why}"
        table.add_row(Text(printable(one.rollout_id[:cut])), one.ending, str(one.attempts), Text(printable(why) or "-"))
    shown: list[RenderableType] = [Text(head)]
    if listed:
        shown += [Text(), table]
    if more := len(overview.troubled) - len(listed):
        shown.append(Text(f"and {more} more: --json lists them all"))
    return Group(*shown)


def story_view(story: Story) -> Group:
    """Everything about one rollout, in the order in which it happened."""
    record = story.records[-1] if story.records else None
    shown: list[RenderableType] = [Text(printable(f"rollout {story.rollout_id}"), style="bold")]
    if record is not None:
        shown += [Text(printable(line)) for line in _about(record)]
    shown += [Text(), _timeline(story), Text()]
    if record is not None:
        question = record.task.question if record.task else "episode"
        if record.episode is not None:
            shown.append(episode_view(question, record.episode, record.answer))
        if record.output:
            shown += [Text("the end of what the class printed:", style="bold"), Text(printable(record.output))]
        shown.append(Text(printable(_numbers(record))))
    shown.append(Text(_closing(story, record), style="bold"))
    return Group(*shown)


def _about(record: EpisodeRecord) -> list[str]:
    kind = "training" if record.is_train else "validation"
    lines = [f"{kind}, played by {record.agent_class or 'the agent of the recipe'}"]
    if task := record.task:
        lines += [f"task {task.id}: {task.question}", f"golden answers: {', '.join(task.golden_answers)}"]
    return lines


def _timeline(story: Story) -> Table:
    """One line for each event; only from the record when the pool kept no log."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    numbers: dict[str, int] = {}
    rows = [(event.at, _told(event, numbers)) for event in story.events] or [
        row for record in story.records for row in _from_record(record)
    ]
    first, day = None, None
    for at, told in rows:
        if at is None:
            time = since = ""
        else:
            moment, first = datetime.fromtimestamp(at), at if first is None else first
            time = moment.strftime("%H:%M:%S" if moment.date() == day else "%Y-%m-%d\n%H:%M:%S")
            since, day = f"+{at - first:.1f} s", moment.date()
        before = "\n" * time.count("\n")  # the day is on a separate line
        table.add_row(time, before + since, Text(before + printable(told)))
    return table


def _told(event: PoolEvent, numbers: dict[str, int]) -> str:
    number = numbers.setdefault(event.attempt_id or "", len(numbers) + 1) if "attempt" in event.event else 0
    worker = f" on {event.worker}" if event.worker else ""
    match event.event:
        case "pool_started":
            return f"pool {event.pool} started: {event.message}"
        case "pool_ended":
            return f"pool {event.pool} ended" + (f": {event.message}" if event.message else "")
        case "claimed":
            return f"claimed by pool {event.pool}"
        case "adopted":
            return f"continued by pool {event.pool}"
        case "attempt_started":
            return f"attempt {number}{worker}, for at most {event.seconds or 0.0:.0f} s ({event.attempt_id})"
        case "attempt_failed":
            return _failed(number, worker, event.boundary, event.seconds, event.message)
        case "ended":
            told = event.state or "ended"
            if event.boundary or event.message:
                told += f": {': '.join(filter(None, (event.boundary, event.message)))}"
            return told if event.reported is not False else f"{told} (the gateway did not accept this end)"


def _failed(number: int, worker: str, boundary: str | None, seconds: float | None, message: str | None) -> str:
    after = f"{worker} after {seconds or 0.0:.1f} s"
    if boundary == CANCELLED:
        return f"attempt {number} was cancelled{after}: {message}"
    return f"attempt {number} failed{after} at {boundary}: {message}"


def _from_record(record: EpisodeRecord) -> list[tuple[float | None, str]]:
    """The same for a pool that wrote only records: these have no times of failed attempts."""
    rows: list[tuple[float | None, str]] = [(record.started_at, "claimed")]
    for number, one in enumerate(record.failures, 1):
        worker = f" on {one.worker}" if one.worker else ""
        rows.append((None, _failed(number, worker, one.boundary, one.seconds, one.message)))
    end = record.state + (f": {record.error}" if record.error else "")
    return [*rows, (record.finished_at, end)]


def _numbers(record: EpisodeRecord) -> str:
    scores = {"reward": record.reward, "accuracy": record.accuracy, "gbr": record.gbr}
    parts = [f"{name} {value:.3f}" for name, value in scores.items() if value is not None]
    parts += [f"{phase.removesuffix('_s')} {seconds:.2f} s" for phase, seconds in record.timings.items()]
    return ", ".join(parts)


def _closing(story: Story, record: EpisodeRecord | None) -> str:
    if record is not None and record.reward is not None and story.ending == "succeeded":
        return f"succeeded with reward {record.reward:.3f}"
    return _ENDINGS[story.ending]
