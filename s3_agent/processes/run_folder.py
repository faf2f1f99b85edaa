"""The folder of one run: where each part writes, and what tells a resumed run of the one before."""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from s3_agent.data.files.whole import write_whole
from s3_agent.errors import ConfigError
from s3_agent.names import literal
from s3_agent.recipe import Recipe

METRICS = "metrics.jsonl"
EPISODES, POOL_LOG = "episodes.jsonl", "pool.jsonl"


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write a recipe that can be loaded again as it is, without the gateway's key."""
    values = recipe.model_dump(mode="json", exclude={"gateway": {"key"}})
    write_whole(path, OmegaConf.to_yaml(OmegaConf.create(literal(values))))


class Run:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.recipe = folder / "recipe.yaml"
        self.metrics = folder / METRICS
        self.episodes = folder / EPISODES
        self.pool_log = folder / POOL_LOG
        self.summary = folder / "summary.json"
        self.checkpoints = folder / "checkpoints"
        self.policy = folder / "policy"
        self.train = folder / "train.jsonl"
        self.validation = folder / "validation.jsonl"
        self.data = folder / "data.json"
        self.trainer = folder / "trainer.json"
        self.sockets = folder / "sockets.json"
        self.generations = folder / "generations.json"
        self.conditions = folder / "conditions.json"
        self.changes = folder / "changes.json"

    def create(self) -> None:
        """Make the folder. Raises ConfigError when a run of that name exists."""
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError as cause:
            raise ConfigError(
                f"the run {self.folder} exists",
                remedy=f"go on with it: --resume {self.folder.name}; or give --name another name, or remove it",
            ) from cause
        self.make_logs()

    def make_logs(self) -> None:
        """The folder of the logs, for its user alone: verl writes the gateway's key there with its configuration."""
        self.logs.mkdir(mode=0o700, exist_ok=True)

    def write_recipe(self, recipe: Recipe) -> None:
        """The recipe as it was resolved; the parts read it."""
        write_recipe(self.recipe, recipe)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other launchers off the run; a killed one holds nothing. Raises ConfigError when one is at work."""
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                raise ConfigError(f"the run {self.folder} is at work", remedy="wait for it, or stop it") from cause
            yield

    @property
    def finished(self) -> bool:
        """Whether the run has a summary that was written to its end."""
        return isinstance(_json(self.summary), dict)

    def _generations(self) -> list[dict[str, Any]]:
        if not self.generations.exists():
            return []
        try:
            return [{"id": str(one["id"]), "folder": one["folder"]} for one in _json(self.generations)]
        except (KeyError, TypeError) as cause:
            raise ConfigError(
                f"{self.generations} can not be read",
                remedy="write [] into it when nothing of the run is left running, then resume again",
            ) from cause

    def started_ids(self) -> list[str]:
        """The marks of every generation's processes, in order, those of a run that this folder is a copy of included.

        Raises ConfigError when they can not be read.
        """
        return [one["id"] for one in self._generations()]

    def own_ids(self) -> list[str]:
        """The marks of what was started from this very folder: a copy has nothing to do with its original's."""
        return [one["id"] for one in self._generations() if one["folder"] == folder_identity(self.folder)]

    def moved_ids(self) -> list[str]:
        """The marks of what was started from this folder when it was somewhere else."""
        here = folder_identity(self.folder)
        places = [(one["id"], one["folder"]) for one in self._generations()]
        return [run_id for run_id, there in places if there != here and {**there, "path": here["path"]} == here]

    def start_generation(self, run_id: str) -> None:
        """Write down the mark of this generation's processes, before any of them is started."""
        started = {"id": run_id, "folder": folder_identity(self.folder)}
        write_whole(self.generations, json.dumps([*self._generations(), started], indent=1))


def folder_identity(folder: Path) -> dict[str, Any]:
    """What tells a folder from a copy of it, also from one that was put in its place: real path, device and inode."""
    real = folder.resolve()
    stat = real.stat()
    return {"path": str(real), "device": stat.st_dev, "inode": stat.st_ino}


def _json(path: Path) -> Any:
    """What a JSON file says; None where there is none, or not a whole one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def scratch_run(recipe: Recipe) -> Iterator[Run]:
    """A run of services for one short job; its folder stays when the job fails, since the error names its logs."""
    folder = Path(tempfile.mkdtemp(prefix="s3-agent-"))
    run = Run(folder / "run")
    run.create()
    run.write_recipe(recipe)
    yield run
    shutil.rmtree(folder)
