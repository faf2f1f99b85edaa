"""Runs the stages of data preparation: each knows its inputs, and a manifest, written last, records that it is done.

A manifest holds inputs and outputs with their hashes and no time or place, so two machines that prepare the same data
write the same manifests, and so does a run that was killed and started again.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3_agent.data.files.whole import Hashes, Report, silent, write_whole
from s3_agent.errors import DataError

FORMAT = 1
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a stage fetches and writes, by the folder that they go to.

    `unknown` maps the data sets whose sizes are unknown, and so not counted, to the reason.
    """

    download: int = 0
    disk: Mapping[Path, int] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """One step. Its callables are called only when the step runs, since they read the output of earlier stages.

    `made_of` gives its inputs, everything that its outputs depend on, as JSON; `outputs` are its files by a name
    without a machine's path; `work` writes them and returns a report for the manifest.
    """

    name: str
    made_of: Callable[[], dict[str, Any]]
    outputs: Callable[[], Mapping[str, Path]]
    work: Callable[[Report], dict[str, Any]]
    need: Callable[[], Need] = Need
    missing: Callable[[], Sequence[Path]] = tuple
    """Files of earlier stages that do not exist yet; until they do, nothing is known about this stage."""


class Ledger:
    """The manifests of one data folder. Used by one process at a time (`held`)."""

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self.folder = folder
        self.hashes = Hashes(folder / "manifests" / "seen.json", forget=verify)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder against other processes. Raises DataError if one uses it; a killed process holds no lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                raise DataError(
                    f"another process prepares {self.folder}", remedy="wait for it, or stop it: finished work is kept"
                ) from cause
            yield

    def path(self, stage: str) -> Path:
        """The path of a stage's manifest."""
        return self.folder / "manifests" / f"{stage}.json"

    def read(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a stage; None if the stage never finished or the manifest is invalid."""
        try:
            manifest = json.loads(self.path(stage).read_text(encoding="utf-8"))
            return manifest if manifest["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def hash(self, path: Path, report: Report = silent) -> str:
        """The hash of a file that must exist. Raises DataError."""
        found = self.hashes.of(path, report)
        if found is None:
            raise DataError(f"{path} is missing", remedy="run the stages before this one: s3-agent data all")
        return found

    def open_question(self, stage: Stage, report: Report = silent) -> str | None:
        """Why a stage has work to do; None if it is done and its files are unchanged."""
        if waiting := stage.missing():
            return f"waits for {waiting[0].name}"
        manifest = self.read(stage.name)
        if manifest is None:
            return "not done"
        if changed := _changed(manifest["made_of"], stage.made_of()):
            return f"{changed[0]} has changed"
        for name, path in stage.outputs().items():
            recorded = manifest["outputs"].get(name)
            if recorded is None or self.hashes.of(path, report) != recorded["sha256"]:
                return f"{name} is not what was written" if path.exists() else f"{name} is missing"
        return None

    def finish(self, stage: Stage, made_of: Mapping[str, Any], told: Mapping[str, Any], report: Report) -> list[str]:
        """Write the manifest of a stage whose files are complete; return the inputs that changed since `made_of` was
        read.

        `made_of` was read before the work, so a stage whose inputs changed during it has work to do again.
        """
        outputs = {
            name: {"bytes": path.stat().st_size, "sha256": self.hash(path, report)}
            for name, path in sorted(stage.outputs().items())
        }
        manifest = {
            "format": FORMAT,
            "stage": stage.name,
            "made_of": made_of,
            "outputs": outputs,
            "told": dict(told),
        }
        write_whole(self.path(stage.name), json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return _changed(made_of, stage.made_of())


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the inputs that differ."""
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def size_text(count: int) -> str:
    """Bytes for people."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def check_room(needs: Sequence[Need]) -> dict[Path, tuple[int, int]]:
    """Bytes needed and free on each disk, by a folder on it. Raises DataError if a disk has too few."""
    wanted: dict[int, int] = {}
    place: dict[int, Path] = {}
    for need in needs:
        for folder, count in need.disk.items():
            there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
            device = there.stat().st_dev
            wanted[device] = wanted.get(device, 0) + count
            place.setdefault(device, there)
    found = {place[device]: (count, shutil.disk_usage(place[device]).free) for device, count in wanted.items()}
    short = [
        f"{folder} has {size_text(free)} free, {size_text(count)} are needed"
        for folder, (count, free) in found.items()
        if count > free
    ]
    if short:
        raise DataError(
            "; ".join(short),
            remedy="make room, or set HF_HOME and `prepared` to a larger disk; nothing was fetched yet",
        )
    return found


def told_text(told: Mapping[str, Any]) -> str:
    """The report of a manifest, in one line."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told.items() if not isinstance(value, dict))


def _open_question(ledger: Ledger, stage: Stage, report: Report, *, dry_run: bool) -> str | None:
    try:
        return ledger.open_question(stage, report)
    except DataError as cause:
        if not dry_run:
            raise
        return f"whether it is done is not known: {cause.message}"


def run_stages(ledger: Ledger, stages: Sequence[Stage], *, say: Say, report: Report = silent, dry_run: bool) -> int:
    """Run the unfinished stages in order; return how many. `dry_run`: only print them. Raises S3AgentError.

    Before the first stage runs, the bytes known to be needed are compared with the free space of the disks.
    """
    with ledger.held():
        open_questions = {stage.name: _open_question(ledger, stage, report, dry_run=dry_run) for stage in stages}
        needs = {stage.name: stage.need() for stage in stages if open_questions[stage.name]}
        for stage in stages:
            if dry_run and (why := open_questions[stage.name]):
                need = needs[stage.name]
                least = "at least " if need.unknown else ""
                say(
                    f"{stage.name}: to do ({why}); downloads {least}{size_text(need.download)}, "
                    f"writes {least}{size_text(sum(need.disk.values()))}"
                )
                for name, reason in need.unknown.items():
                    say(f"{stage.name}: the size of {name} is not known: {reason}")
        for folder, (count, free) in check_room([*needs.values()]).items():
            if count:
                say(f"disk: {size_text(count)} are needed below {folder}, {size_text(free)} are free")
        worked = 0
        for stage in stages:
            why = open_questions[stage.name] if dry_run else ledger.open_question(stage, report)
            if why is None:
                manifest = ledger.read(stage.name)
                assert manifest is not None
                say(f"{stage.name}: nothing to do ({told_text(manifest['told'])})")
                continue
            worked += 1
            if dry_run:
                continue
            if waiting := stage.missing():
                raise DataError(
                    f"the stage {stage.name} needs {waiting[0]}", remedy="run the stages before it: s3-agent data all"
                )
            ledger.path(stage.name).unlink(missing_ok=True)
            made_of = stage.made_of()
            told = stage.work(report)
            changed = ledger.finish(stage, made_of, told, report)
            say(f"{stage.name}: done ({told_text(told)})")
            if changed:
                say(f"{stage.name}: {', '.join(changed)} changed meanwhile; run the same command again for it")
        return worked
