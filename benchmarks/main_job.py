"""Measures the main job from the command to the exported policy: this tree and an earlier commit, in turn.

    python benchmarks/main_job.py [--base COMMIT] [--processor native|avx2] [--rounds 1] [override …]

Both are complete trainings with the recipe `cpu`, each from its own clone and environment (the earlier commit's in a
git worktree that `scripts/setup.sh` prepares), with everything prepared that a first run keeps. This tree runs once
with an empty answer cache and once with the cache that this run filled. `avx2` makes oneDNN and torch, by their own
switches, behave as on a processor without AVX-512 and bfloat16. If the processor emulates bfloat16, the earlier commit
gets the setting to serve its generator in float32, without which it takes more than an hour.

`whole_ratio_cold`, `whole_ratio_warm` and `start_ratio` are the earlier commit's seconds over this tree's, by medians;
`start_seconds` is the time from the command to the first rollout. `others_share` is the share of the machine that other
programs used during a run.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
BASE = "cb220202a897"  # the last commit before the main job was made faster
MARKER = "S3_AGENT_RUN"
WITHIN_S = 5400
SWITCHES = {"native": {}, "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
IN_FLOAT32 = "generator.serve=[--dtype,float32,--max-model-len,'2048',--max-num-seqs,'32',--enforce-eager]"


@dataclass(frozen=True)
class Build:
    """A clone with its environment. `force` are overrides that it needs on this processor."""

    name: str
    clone: Path
    force: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        return self.clone / ".venv" / "bin" / "python"


@contextmanager
def earlier(commit: str) -> Iterator[Build]:
    """The earlier commit, prepared in a worktree that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="main-job-")) / "earlier"
    subprocess.run(["git", "worktree", "add", "--detach", "--quiet", folder, commit], cwd=ROOT, check=True)
    try:
        subprocess.run(["bash", "scripts/setup.sh"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        yield Build("earlier", folder)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=ROOT, check=True)
        shutil.rmtree(folder.parent, ignore_errors=True)


class Watch:
    """CPU seconds of programs outside the runs, sampled every second."""

    def __init__(self) -> None:
        self.others_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        before: dict[psutil.Process, float] = {}
        ours: dict[psutil.Process, bool] = {}
        while not self._ended.wait(1.0):
            now: dict[psutil.Process, float] = {}
            for process in psutil.process_iter():
                try:
                    if process not in ours:
                        ours[process] = MARKER in process.environ() or process.pid == os.getpid()
                    if not ours[process]:
                        times = process.cpu_times()
                        now[process] = times.user + times.system
                except psutil.Error:
                    continue
            self.others_s += sum(max(0.0, spent - before.get(process, spent)) for process, spent in now.items())
            before = now

    def end(self) -> float:
        self._ended.set()
        self._thread.join()
        return self.others_s


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train(build: Build, overrides: Sequence[str], switches: dict[str, str], *, runs: Path, name: str) -> dict[str, Any]:
    """Train once; return the seconds of each phase and the results."""
    command = [build.python, "-m", "s3_agent.cli", "train", "--name", name, f"runs={runs}", *build.force, *overrides]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | switches
    watch, started, log = Watch(), time.time(), runs / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        ended = subprocess.run(
            command, cwd=build.clone, env=environment, stdout=output, stderr=output, timeout=WITHIN_S, check=False
        )
    whole = time.time() - started
    others = watch.end()
    if ended.returncode:
        raise SystemExit(f"{name} ended with {ended.returncode}:\n{log.read_text()[-3000:]}")
    folder = runs / name
    episodes, summary = lines(folder / "episodes.jsonl"), json.loads((folder / "summary.json").read_text())
    steps = [row["data"] for row in lines(folder / "metrics.jsonl") if "timing_s/step" in row["data"]]
    held_out = [row for row in episodes if not row["is_train"]]
    trained = [row for row in episodes if row["is_train"]]
    before = [row for row in held_out if row["finished_at"] < min(row["started_at"] for row in trained)]
    after = [row for row in held_out if row["started_at"] > max(row["finished_at"] for row in trained)]

    def seconds(rows: list[dict[str, Any]]) -> float:
        return max(row["finished_at"] for row in rows) - min(row["started_at"] for row in rows)

    return {
        "build": build.name,
        "overrides": [*build.force, *overrides],
        "whole": round(whole, 1),
        "start": round(min(row["started_at"] for row in episodes) - started, 1),
        "first_rollout_played": round(min(row["finished_at"] for row in episodes) - started, 1),
        "validation_before": round(seconds(before), 1),
        "step": round(statistics.fmean(row["timing_s/step"] for row in steps), 2),
        "step_rollouts": round(statistics.fmean(row["timing_s/gen"] for row in steps), 2),
        "step_update": round(
            statistics.fmean(row["timing_s/old_log_prob"] + row["timing_s/update_actor"] for row in steps), 2
        ),
        "validation_after": round(seconds(after), 1),
        "export": round(started + whole - max(row["finished_at"] for row in episodes), 1),
        "rollouts": summary["rollouts"],
        "lost": summary["lost_rollouts"],
        "accuracy": [summary["val_before"], summary["val_after"]],
        "accuracy_gain_95": summary["val_gain_interval"],
        "answers_kept": round(statistics.fmean(row["s3/train/answers_kept"] for row in steps), 3),
        "others_share": round(others / whole / (os.cpu_count() or 1), 3),
    }


def processor(switches: dict[str, str]) -> dict[str, Any]:
    """The processor, and its features under these switches."""
    told = subprocess.run(
        [sys.executable, "-m", "s3_agent.agl.cpu.precision"],
        cwd=ROOT,
        env={**os.environ, **switches},
        capture_output=True,
        text=True,
        check=True,
    )
    precision = json.loads(told.stdout)
    flags = next(row for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith(("flags", "Features")))
    return {
        "name": precision["processor"],
        "cores": os.cpu_count(),
        "avx512": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "switches": switches,
        "bfloat16_over_float32": round(precision["seconds"]["bfloat16"] / precision["seconds"]["float32"], 2),
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--base-clone", type=Path, help="a clone of it that is already set up")
    parser.add_argument("--processor", choices=sorted(SWITCHES), default="native")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    switches = SWITCHES[options.processor]
    told = processor(switches)
    folder = Path(tempfile.mkdtemp(prefix="main-job-runs-"))
    new = Build("this tree", ROOT)
    runs: dict[str, list[dict[str, Any]]] = {"earlier": [], "cold": [], "warm": []}

    def measure(old: Build) -> None:
        if told["bfloat16_over_float32"] > 1:
            old = Build(old.name, old.clone, (IN_FLOAT32,))
        for build in (old, new):  # what a first run keeps: the embedded generator's folder
            prepare = "from s3_agent.embedded.generator import *; prepare_generator(Path('prepared') / NAME)"
            subprocess.run(
                [build.python, "-c", f"from pathlib import Path; Path('prepared').mkdir(exist_ok=True); {prepare}"],
                cwd=build.clone,
                check=True,
                stderr=subprocess.DEVNULL,
            )
        for number in range(options.rounds):
            cache = f"generator.cache={folder / f'answers-{number}'}"
            for kind, build, more in (("earlier", old, []), ("cold", new, [cache]), ("warm", new, [cache])):
                overrides = [*options.overrides, *more]
                runs[kind].append(train(build, overrides, switches, runs=folder, name=f"{kind}-{number}"))
                print(json.dumps(runs[kind][-1]), file=sys.stderr, flush=True)

    if options.base_clone:
        measure(Build("earlier", options.base_clone.resolve()))
    else:
        with earlier(options.base) as old:
            measure(old)

    def median(kind: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[kind])

    print(
        json.dumps(
            {
                "processor": told,
                "base": options.base,
                "whole_ratio_cold": round(median("earlier", "whole") / median("cold", "whole"), 2),
                "whole_ratio_warm": round(median("earlier", "whole") / median("warm", "whole"), 2),
                "start_ratio": round(median("earlier", "start") / median("cold", "start"), 2),
                "start_seconds": median("cold", "start"),
                "runs": runs,
            },
            indent=1,
        )
    )
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
