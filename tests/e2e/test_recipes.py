"""The twins of the recipes for GPUs, trained for real: the same code paths, down to checkpoint, resume and export."""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from s3_agent.data.tasks import read_jsonl
from s3_agent.evaluation.summary import logprob_gap, training_rows
from s3_agent.processes.ports import reserve_port
from s3_agent.processes.run_folder import Run
from s3_agent.processes.services import policy_part
from s3_agent.processes.stack import MARKER, Stack
from s3_agent.recipe import HOST
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.training.resume import LATEST, checkpoint_steps
from s3_agent.training.twin import load_twin
from tests.e2e.conftest import LARGEST_GAP, ROOT, Services
from tests.ray_cluster import ray_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

RECIPES = (
    *("s3_8x40gb", "s3_3b_8x40gb", "s3_1x80gb", "s3_2x8x40gb"),
    *("s3_lora_1x24gb", "s3_lora_1x80gb", "search_r1_8x40gb"),
)
KILLED_STEPS = 3


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "s3_agent.cli", *arguments]


def train(services: Services, folder: Path, recipe: str, *overrides: str) -> Run:
    """A twin's whole run; its exit code must be 0."""
    line = command("train", "--recipe", recipe, "--twin", "--name", "run", f"runs={folder}", *services.overrides)
    done = subprocess.run([*line, *overrides], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return Run(folder / "run")


@pytest.fixture(scope="module", params=RECIPES)
def trained(request: pytest.FixtureRequest, services: Services, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, nodes = tmp_path_factory.mktemp(request.param), load_twin(request.param).trainer.nodes
    if nodes == 1:
        return train(services, folder, request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        with ray_cluster(tmp_path_factory.mktemp("r"), nodes=nodes) as (address, _):
            return train(services, folder, request.param, f"ray.address={address}")


def records(path: Path) -> list[EpisodeRecord]:
    return [EpisodeRecord.model_validate(row) for row in read_jsonl(path)]


def recipe_of(run: Run) -> str:
    return run.recipe.read_text().split("name: ")[1].split("-twin")[0]


def test_a_twin_makes_its_steps_updates_checkpoints_and_validations(trained: Run) -> None:
    twin, rows = load_twin(recipe_of(trained)), read_jsonl(trained.metrics)
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in training_rows(rows):
        assert row["training/n_sample_trained"] == row["training/n_rollouts"] == twin.trainer.rollouts_per_step
        assert row["actor/kl_coef"] == pytest.approx(twin.trainer.kl_loss / 2), "of two updates"
        assert row["s3/train/groups_of_one"] == row["s3/train/rollouts_untrained"] == 0.0
        assert row["actor/kl_loss"] >= 0.0, "the reference policy was asked"
        assert row["actor/grad_norm"] >= 0.0
        assert row["s3/train/rollouts"] == twin.trainer.rollouts_per_step
        assert row["s3/train/failed"] == 0.0
        assert {"s3/train/accuracy", "s3/train/searches", "s3/train/invalid_actions"} <= row.keys()
    # Packed rows and fused log-probs say of the same tokens what the policy server said.
    gap = logprob_gap(rows)
    assert gap is not None and gap < LARGEST_GAP
    assert [row["step"] for row in rows if "val/reward" in row["data"]] == [0, 2]
    assert checkpoint_steps(trained) == [1, 2]
    assert list((trained.folder / "tensorboard" / "0").glob("events.*"))


def test_a_twins_policy_is_exported_from_its_shards(trained: Run) -> None:
    actor, nodes = trained.checkpoints / "global_step_2" / "actor", load_twin(recipe_of(trained)).trainer.nodes
    assert len(list(actor.glob("model_world_size_*.pt"))) == nodes, "a shard of each node's rank"
    assert not list((actor / "huggingface").glob("*.safetensors")), "the recipe keeps no copy in each checkpoint"
    weights = load_file(trained.policy / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.bfloat16"}
    assert (trained.policy / "tokenizer.json").exists()


def until(condition: Callable[[], bool], *, process: subprocess.Popen[bytes], log: Path, within_s: float = 400) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)


def marked(run: Run) -> list[psutil.Process]:
    """Every process of the run but its launcher."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) in run.started_ids():
                found.append(process)
        except psutil.Error:
            continue
    return found


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def in_order(run: Run, questions: int) -> list[set[str]]:
    """The questions of each step as the run's own file has them."""
    ids = [row["id"] for row in read_jsonl(run.train)]
    return [set(ids[start : start + questions]) for start in range(0, len(ids), questions)]


def played(run: Run, rollouts_per_step: int) -> list[set[str]]:
    """The questions of each step's training rollouts, in the order of the steps."""
    ended = sorted((record for record in records(run.episodes) if record.is_train), key=lambda each: each.finished_at)
    ids = [record.task.id for record in ended if record.task is not None]
    return [set(ids[start : start + rollouts_per_step]) for start in range(0, len(ids), rollouts_per_step)]


def test_steps_play_the_tasks_in_their_order(trained: Run) -> None:
    trainer = load_twin(recipe_of(trained)).trainer
    assert played(trained, trainer.rollouts_per_step) == in_order(trained, trainer.questions_per_step)


def test_a_run_that_is_killed_in_step_3_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """All parts are the run's own; Search-R1's twin has the fewest, since it asks no generator."""
    sizes = [f"trainer.steps={KILLED_STEPS}", f"trainer.validate_every={KILLED_STEPS}", "data.validation_size=4"]
    trainer = load_twin("search_r1_8x40gb").trainer
    run, log = Run(tmp_path / "run"), tmp_path / "launcher.log"
    line = command("train", "--recipe", "search_r1_8x40gb", "--twin", "--name", "run", f"runs={tmp_path}", *sizes)
    with log.open("wb") as output:
        launcher = subprocess.Popen(line, cwd=ROOT, stdout=output, stderr=output)
        # In step 3: two steps are logged, and some of the third's rollouts have ended.
        until(lambda: lines(run.metrics) == 3, process=launcher, log=log)
        ended = lines(run.episodes)
        until(lambda: lines(run.episodes) > ended, process=launcher, log=log)
        launcher.kill()
        launcher.wait()
    # A machine that goes down takes all of them, a launcher that is killed leaves all: half of each.
    left = marked(run)
    assert len(left) > 5
    for process in left[::2]:
        process.kill()
    (run.checkpoints / LATEST).write_bytes(b"")  # as a full disk leaves verl's marker
    before, order = {record.rollout_id for record in records(run.episodes)}, run.train.read_text()

    done = subprocess.run(command("train", "--resume", str(run.folder)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "continues after step 2" in done.stderr
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)

    # The same data in the same order and as many steps as a run that nobody killed (the test above).
    assert run.train.read_text() == order
    assert played(run, trainer.rollouts_per_step) == in_order(run, trainer.questions_per_step)
    assert [row["step"] for row in read_jsonl(run.metrics)] == [0, 1, 2, 3]
    # Nothing of the killed step counts; the new generation has a gateway and a pool of its own.
    after = records(run.episodes)
    assert before - {record.rollout_id for record in after}, "the third step had begun"
    assert len(after) == KILLED_STEPS * trainer.rollouts_per_step + 2 * 4
    assert {record.attempt_id.rpartition("-")[0] for record in after} == {"run", "run-1"}
    third = sorted(after, key=lambda record: record.finished_at)[-trainer.rollouts_per_step - 4 :]
    assert {record.attempt_id.rpartition("-")[0] for record in third} == {"run-1"}
    for row in training_rows(read_jsonl(run.metrics)):
        assert row["training/n_rollouts"] == row["s3/train/rollouts"] == trainer.rollouts_per_step
    assert (run.folder / "generation-0" / "logs" / "gateway.log").exists() and (run.logs / "gateway.log").exists()
    summary = json.loads(run.summary.read_text())
    assert (summary["steps"], summary["skipped_steps"], summary["lost_rollouts"]) == (KILLED_STEPS, 0, 0)
    # The trainer has its rewards from the gateway alone, the summary from the episodes.
    assert summary["reward_curve"] == pytest.approx(summary["trainer_reward_curve"], abs=1e-6)
    assert len(summary["reward_curve"]) == KILLED_STEPS and summary["rollouts"] == len(after)


def test_vllm_and_ask_take_an_exported_policy(trained: Run, services: Services, tmp_path: Path) -> None:
    policy = tmp_path / "exported"
    line = command("export-policy", str(trained.folder), "--step", "1", "-o", str(policy))
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run, port = Run(tmp_path / "served"), reserve_port("policy", 0)
    run.create()
    with Stack([policy_part(policy, run, port=port)], run_id=f"served-{secrets.token_hex(4)}") as stack:
        stack.run()
        line = command("ask", "What is the capital of the country where the city Graz is located?", "--json")
        where = ["--policy-url", f"http://{HOST}:{port}/v1", f"policy.model={policy}"]
        done = subprocess.run([*line, *where, *services.overrides], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["episode"]["turns"]
