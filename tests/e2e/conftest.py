"""One stack for all end-to-end tests: a retriever and a generator stay up, real training runs use them by `url=`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3_agent.data.naive_rag.cache import RagCache
from s3_agent.data.tasks import load_tasks, read_jsonl
from s3_agent.data_identity import rag_fingerprint
from s3_agent.embedded import RAG_CACHE, TRAIN
from s3_agent.processes.parts import service_parts
from s3_agent.processes.run_folder import Run
from s3_agent.processes.services import resolve_ports
from s3_agent.processes.stack import Stack
from s3_agent.recipe import load_recipe

ROOT = Path(__file__).parents[2]
STEPS = 3
QUESTIONS = 4
ROLLOUTS = 8  # of four, all groups of a step were once equal by chance: no gradient
LARGEST_GAP = 0.02  # nats a token, between two correct float32 computations of the same weights
UNANSWERABLE = "no passage says this"


@dataclass(frozen=True)
class Services:
    """A retriever and a generator that run for the whole session."""

    retriever: str
    generator: str

    @property
    def overrides(self) -> list[str]:
        return [f"retriever.url={self.retriever}", f"generator.url={self.generator}", "gateway.port=0"]


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    overrides = ["retriever.port=0", "generator.port=0", f"prepared={ROOT / 'prepared'}"]
    recipe = resolve_ports(load_recipe("cpu", overrides))
    run = Run(tmp_path_factory.mktemp("services") / "run")
    run.create()
    run.write_recipe(recipe)
    with Stack(service_parts(recipe, run), run_id=f"e2e-{os.getpid()}") as stack:
        stack.run()
        generator = recipe.generator_url
        assert generator is not None
        yield Services(retriever=recipe.retriever_url, generator=generator)


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks that naive RAG does not answer, in order; those of the last step have no answer that can be found."""
    cache = RagCache.load(RAG_CACHE, expected=rag_fingerprint(load_recipe("cpu")))
    unsolved = {task.id for task in cache.scored(load_tasks(TRAIN)) if task.rag_score == 0}
    rows = [row for row in read_jsonl(TRAIN) if row["id"] in unsolved][: STEPS * QUESTIONS]
    for row in rows[-QUESTIONS:]:
        row["golden_answers"] = [UNANSWERABLE]
        answer = cache.answers[row["id"]]
        cache.answers[row["id"]] = answer.model_copy(update={"golden_answers": (UNANSWERABLE,)})
    path = tmp_path_factory.mktemp("tasks") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache.save(rag_cache_of(path))
    return path


def rag_cache_of(tasks: Path) -> Path:
    """Where the RAG cache of these tasks is."""
    return tasks.with_name("rag_cache.json")


def train(services: Services, tasks: Path, folder: Path, *overrides: str) -> Run:
    """A real training run through the command line, in order of the tasks; its exit code must be 0."""
    settings = [
        f"data.train={tasks}",
        f"data.rag_cache={rag_cache_of(tasks)}",
        f"runs={folder}",
        f"trainer.questions_per_step={QUESTIONS}",
        f"trainer.rollouts_per_question={ROLLOUTS}",
        "trainer.learning_rate=3e-3",
        "data.shuffle=false",
    ]
    command = [
        sys.executable,
        "-m",
        "s3_agent.cli",
        "train",
        "--name",
        "run",
        *services.overrides,
        *settings,
        *overrides,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    run = Run(folder / "run")
    assert done.returncode == 0, done.stderr[-6000:]
    return run


@pytest.fixture(scope="session")
def trained(services: Services, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    return train(services, tasks, folder, f"trainer.steps={STEPS}", "data.validation_size=24")


@pytest.fixture(scope="session")
def stale(services: Services, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run with a fault: the policy server never gets new weights. A large decay changes them in any case."""
    fault = "trainer.verl.actor_rollout_ref.rollout.+checkpoint_manager_class"
    decay = "trainer.verl.actor_rollout_ref.actor.optim.weight_decay"
    return train(
        services,
        tasks,
        tmp_path_factory.mktemp("stale"),
        "trainer.steps=2",
        "data.validation_size=4",
        f"{fault}=s3_agent.agl.cpu.stale_weights.StaleWeights",
        f"{decay}=100",
    )
