"""The folder of one run: where each part writes, and what tells a resumed run of the one before."""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from s3_agent.data.files import write_whole
from s3_agent.errors import ConfigError
from s3_agent.names import literal
from s3_agent.recipe import Recipe


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
        self.metrics = folder / "metrics.jsonl"
        self.episodes = folder / "episodes.jsonl"
        self.summary = folder / "summary.json"
        self.checkpoints = folder / "checkpoints"
        self.policy = folder / "policy"
        self.train = folder / "train.jsonl"
        self.validation = folder / "validation.jsonl"
        self.data = folder / "data.json"
        self.trainer = folder / "trainer.json"
        self.sockets = folder / "sockets.json"
        self.generations = folder / "generations.json"

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

    def started_ids(self) -> list[str]:
        """The marks of every generation's processes, in order."""
        return json.loads(self.generations.read_text(encoding="utf-8")) if self.generations.exists() else []

    def start_generation(self, run_id: str) -> None:
        """Write down the mark of this generation's processes, before any of them is started."""
        partial = self.generations.with_suffix(".partial")
        partial.write_text(json.dumps([*self.started_ids(), run_id]), encoding="utf-8")
        partial.replace(self.generations)


@contextmanager
def scratch_run(recipe: Recipe) -> Iterator[Run]:
    """A run of services for one short job; its folder stays when the job fails, since the error names its logs."""
    folder = Path(tempfile.mkdtemp(prefix="s3-agent-"))
    run = Run(folder / "run")
    run.create()
    run.write_recipe(recipe)
    yield run
    shutil.rmtree(folder)
