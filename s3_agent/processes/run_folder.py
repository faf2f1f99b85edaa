"""The folder of one run: the files that each process writes, and the records from which a run is resumed. Used by every
job."""

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
    """Write a recipe that can be loaded again unchanged, without the gateway's key."""
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
        self.guard = folder / "guard.json"
        self.best = folder / "best"
        self.after_best = folder / "after-best"

    def create(self) -> None:
        """Make the folder. Raises ConfigError when a run of that name exists."""
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError as cause:
            raise ConfigError(
                f"the run {self.folder} exists",
                remedy=f"continue it with --resume {self.folder.name}, give another --name, or remove it",
            ) from cause
        self.make_logs()

    def make_logs(self) -> None:
        """Make the folder of the logs. Only its user can read it, because verl logs its configuration there, with the
        gateway's key."""
        self.logs.mkdir(mode=0o700, exist_ok=True)

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe, which the processes of the run read."""
        write_recipe(self.recipe, recipe)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run for this launcher; a killed launcher leaves no lock. Raises ConfigError when it is locked."""
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                raise ConfigError(
                    f"the run {self.folder} is already running", remedy="wait for it, or stop it"
                ) from cause
            yield

    @property
    def finished(self) -> bool:
        """Whether the run has a complete summary."""
        return isinstance(_json(self.summary), dict)

    def _generations(self) -> list[dict[str, Any]]:
        if not self.generations.exists():
            return []
        try:
            return [{"id": str(one["id"]), "folder": one["folder"]} for one in _json(self.generations)]
        except (KeyError, TypeError) as cause:
            raise ConfigError(
                f"{self.generations} can not be read",
                remedy="when no process of the run is left, write [] into it, then resume again",
            ) from cause

    def started_ids(self) -> list[str]:
        """The marks of every generation's processes, in order; in a copied folder, also those of its original.

        Raises ConfigError when they can not be read.
        """
        return [one["id"] for one in self._generations()]

    def own_ids(self) -> list[str]:
        """The marks of processes that were started from this folder, not from the original of a copy."""
        return [one["id"] for one in self._generations() if one["folder"] == folder_identity(self.folder)]

    def moved_ids(self) -> list[str]:
        """The marks of processes that were started from this folder before it was moved."""
        here = folder_identity(self.folder)
        places = [(one["id"], one["folder"]) for one in self._generations()]
        return [run_id for run_id, there in places if there != here and {**there, "path": here["path"]} == here]

    def start_generation(self, run_id: str) -> None:
        """Record the mark of this generation's processes, before any of them starts."""
        started = {"id": run_id, "folder": folder_identity(self.folder)}
        write_whole(self.generations, json.dumps([*self._generations(), started], indent=1))


def folder_identity(folder: Path) -> dict[str, Any]:
    """Identifies a folder among its copies, even a copy at the same path: real path, device and inode."""
    real = folder.resolve()
    stat = real.stat()
    return {"path": str(real), "device": stat.st_dev, "inode": stat.st_ino}


def _json(path: Path) -> Any:
    """The content of a JSON file; None when the file is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def scratch_run(recipe: Recipe) -> Iterator[Run]:
    """A run folder for the services of one short job; it stays when the job fails, because the error names its logs."""
    folder = Path(tempfile.mkdtemp(prefix="s3-agent-"))
    run = Run(folder / "run")
    run.create()
    run.write_recipe(recipe)
    yield run
    shutil.rmtree(folder)
