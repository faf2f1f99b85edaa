"""From a run's settings to verl's configuration: every setting lands where verl and Agent Lightning read it."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from s3_agent.agl import cpu
from s3_agent.agl.guard import Guard
from s3_agent.agl.run_files import MODULES_VARIABLE, TRACKING
from s3_agent.agl.verl_config import (
    AGL_LOSS,
    ESTIMATOR,
    REFUSED,
    WITH_MODEL,
    TrainerRecipe,
    TrainerSettings,
    environment,
    ranks_of,
    settings_alone,
    trainer_config,
)
from s3_agent.errors import ConfigError
from s3_agent.recipe import load_recipe

KEY = "a gateway key"
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "gpus": 3,
    "steps": 17,
    "questions_per_step": 5,
    "rollouts_per_question": 6,
    "learning_rate": 2e-5,
    "temperature": 0.9,
    "prompt_tokens": 300,
    "response_tokens": 700,
    "micro_batch": 2,
    "kl_loss": 0.003,
    "clip_low": 0.15,
    "clip_high": 0.25,
    "offload": True,
    "fused_log_probs": True,
    "checkpoint_every": 4,
    "checkpoints_kept": 2,
    "validate_every": 6,
    "max_updates": 2,
    "trackers": ["console", "tensorboard"],
    "rollout_timeout_s": 77,
    "run": "a-run",
    "model": "folder/of/a/model",
    "gateway_url": "http://127.0.0.1:8181",
    "checkpoints": "folder/of/checkpoints",
    "validation_size": 201,
    "seed": 11,
}


def settings(**changes: Any) -> TrainerSettings:
    return TrainerSettings.model_validate({**SETTINGS, **changes})


def composed(**changes: Any) -> DictConfig:
    return trainer_config(settings(**changes), gateway_key=KEY)


@pytest.fixture(scope="module")
def on_cpu() -> DictConfig:
    return composed()


@pytest.fixture(scope="module")
def on_cuda() -> DictConfig:
    return composed(device="cuda")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("trainer.n_gpus_per_node", 3),
        ("trainer.total_training_steps", 17),
        ("trainer.default_local_dir", "folder/of/checkpoints"),
        ("data.train_batch_size", 5),
        ("data.seed", 11),
        ("data.max_prompt_length", 300),
        ("data.max_response_length", 700),
        ("actor_rollout_ref.model.path", "folder/of/a/model"),
        ("actor_rollout_ref.actor.optim.lr", 2e-5),
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", 2),
        ("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", 2),
        ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu", 2),
        ("actor_rollout_ref.rollout.n", 6),
        ("actor_rollout_ref.actor.ppo_mini_batch_size", 5),
        ("actor_rollout_ref.actor.use_dynamic_bsz", False),
        ("actor_rollout_ref.actor.use_kl_loss", True),
        ("actor_rollout_ref.actor.kl_loss_coef", 0.003),
        ("actor_rollout_ref.actor.kl_loss_type", "low_var_kl"),
        ("actor_rollout_ref.actor.clip_ratio_low", 0.15),
        ("actor_rollout_ref.actor.clip_ratio_high", 0.25),
        ("actor_rollout_ref.actor.fsdp_config.param_offload", True),
        ("actor_rollout_ref.actor.fsdp_config.optimizer_offload", True),
        ("actor_rollout_ref.model.use_fused_kernels", True),
        ("trainer.save_freq", 4),
        ("trainer.test_freq", 6),
        ("trainer.max_actor_ckpt_to_keep", 2),
        ("trainer.max_critic_ckpt_to_keep", 2),
        ("trainer.experiment_name", "a-run"),
        ("trainer.logger", ["file", "console", "tensorboard"]),
        ("agentlightning.max_ppo_update_times", 2),
        ("actor_rollout_ref.rollout.temperature", 0.9),
        ("actor_rollout_ref.rollout.max_model_len", 1000),
        ("agentlightning.agl_base_url", "http://127.0.0.1:8181"),
        ("agentlightning.agl_key", KEY),
        ("agentlightning.rollout_timeout_seconds", 77),
        ("agentlightning.trace_aggregator.trajectory_max_prompt_length", 300),
        ("agentlightning.trace_aggregator.trajectory_max_response_length", 700),
    ],
)
@pytest.mark.parametrize("device", ["on_cpu", "on_cuda"])
def test_a_setting_lands_where_it_is_read(request: pytest.FixtureRequest, device: str, place: str, value: Any) -> None:
    assert OmegaConf.select(request.getfixturevalue(device), place) == value


def test_grpo_without_kl_and_one_update_a_step() -> None:
    on_cpu = composed(kl_loss=0.0)
    actor = on_cpu.actor_rollout_ref.actor
    assert on_cpu.algorithm.adv_estimator == ESTIMATOR
    assert not on_cpu.algorithm.use_kl_in_reward
    assert not actor.use_kl_loss
    assert actor.entropy_coeff == 0
    assert actor.ppo_epochs == 1
    assert actor.ppo_mini_batch_size == on_cpu.data.train_batch_size


def _loss(mode: str) -> dict[str, Any]:
    return {"actor_rollout_ref": {"actor": {"policy_loss": {"loss_mode": mode}}}}


@pytest.mark.parametrize(
    ("changes", "coefficient"),
    [
        ({}, 0.004),
        ({"questions_per_update": 4}, 0.002),
        ({"questions_per_update": 2}, 0.001),
        ({"questions_per_update": 2, "max_updates": 2}, 0.002),
        ({"questions_per_update": 2, "max_updates": 1}, 0.004),
        ({"questions_per_update": 4, "verl": {"data": {"train_batch_size": 16}}}, 0.001),
        ({"questions_per_update": 4, "verl": _loss("cispo_per_rollout_mean")}, 0.002),
        ({"questions_per_update": 4, "verl": _loss("vanilla")}, 0.004),
        ({"questions_per_update": 4, "verl": {"actor_rollout_ref": {"actor": {"kl_loss_coef": 0.5}}}}, 0.5),
        ({"kl_loss": 0.0, "questions_per_update": 4}, 0.0),
    ],
)
def test_kl_weighs_what_the_recipe_says_however_many_updates_there_are(
    changes: dict[str, Any], coefficient: float
) -> None:
    """Agent Lightning's losses are divided by the rows of a step, verl's KL by those of an update."""
    eight = {"gpus": 1, "questions_per_step": 8, "rollouts_per_question": 2, "kl_loss": 0.004, "max_updates": None}
    told = settings(**{**eight, **changes})
    assert trainer_config(told, gateway_key=KEY).actor_rollout_ref.actor.kl_loss_coef == coefficient
    assert settings_alone(told).actor_rollout_ref.actor.kl_loss_coef == coefficient


def test_validation_is_one_batch_before_and_after(on_cpu: DictConfig) -> None:
    assert on_cpu.data.val_batch_size == 201
    assert not on_cpu.data.validation_shuffle
    assert on_cpu.actor_rollout_ref.rollout.val_kwargs.n == 1
    assert on_cpu.trainer.val_before_train
    at_the_end = composed(checkpoint_every=None, validate_every=None)
    assert at_the_end.trainer.test_freq == at_the_end.trainer.save_freq == 17
    kept = composed(checkpoint_every=None, guard=Guard(action="stop"))
    assert kept.trainer.test_freq == kept.trainer.save_freq == 6


def test_a_run_that_goes_on_loads_what_is_there_and_does_not_validate_again(on_cpu: DictConfig) -> None:
    assert on_cpu.trainer.resume_mode == "auto"
    assert not composed(validate_first=False).trainer.val_before_train


def test_rows_are_packed_into_micro_batches_of_tokens() -> None:
    packed = composed(tokens_per_gpu=2000, questions_per_update=1, micro_batch=1, gpus=2)
    actor, rollout = packed.actor_rollout_ref.actor, packed.actor_rollout_ref.rollout
    assert actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu == 2000
    assert rollout.log_prob_use_dynamic_bsz and rollout.log_prob_max_token_len_per_gpu == 2000
    assert actor.ppo_mini_batch_size == 1


def test_the_policy_is_written_with_each_checkpoint_or_not_at_all() -> None:
    for asked in (True, False):
        checkpoint = composed(checkpoint_policy=asked).actor_rollout_ref.actor.checkpoint
        assert ("hf_model" in checkpoint.save_contents) is asked
        assert list(checkpoint.load_contents) == ["model", "optimizer", "extra"]


def test_the_log_prob_difference_is_logged_and_corrects_nothing(on_cpu: DictConfig) -> None:
    correction = on_cpu.algorithm.rollout_correction
    assert correction.rollout_is is None
    assert correction.rollout_rs is None
    assert not correction.bypass_mode  # with it AGL takes the policy server's log-probs and compares nothing


def test_one_training_row_a_rollout_and_a_checkpoint_to_load(on_cpu: DictConfig) -> None:
    assert on_cpu.agentlightning.trace_aggregator.level == "trajectory"
    assert not on_cpu.data.shuffle, "the tasks come in the order of play"


def test_what_agl_does_not_use_is_not_started(on_cpu: DictConfig) -> None:
    assert on_cpu.reward.num_workers == 0
    assert on_cpu.data.dataloader_num_workers == 0
    assert on_cpu.actor_rollout_ref.rollout.agent.agent_loop_manager_class == cpu.DRIVER


def test_ray_gets_the_slots_that_the_cpu_run_asks_for(on_cpu: DictConfig) -> None:
    ray_init = on_cpu.ray_kwargs.ray_init
    assert on_cpu.trainer.device == "cuda"  # Ray has no resource for verl's "cpu"
    assert (ray_init.num_gpus, ray_init.num_cpus) == (1, 4)
    assert not ray_init.include_dashboard
    assert ray_init.runtime_env.worker_process_setup_hook == cpu.SETUP_HOOK
    assert dict(ray_init.runtime_env.env_vars) == cpu.ENVIRONMENT


def test_a_ray_of_somebody_elses_is_joined_with_its_own_resources() -> None:
    ray_init = composed(ray_address="127.0.0.1:6379").ray_kwargs.ray_init
    assert ray_init.address == "127.0.0.1:6379"
    assert ray_init.num_cpus is None
    assert ray_init.num_gpus is None


def test_with_cuda_nothing_of_the_cpu_backend_is_named(on_cuda: DictConfig) -> None:
    assert "s3_agent.agl.cpu" not in OmegaConf.to_yaml(on_cuda)
    assert on_cuda.ray_kwargs.ray_init.get("num_gpus") is None
    assert not set(environment(settings(device="cuda"))) & set(cpu.ENVIRONMENT)
    assert environment(settings(device="cuda"))[MODULES_VARIABLE] == TRACKING
    assert on_cuda.actor_rollout_ref.model.external_lib == WITH_MODEL


@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({"spare_questions": 2, "max_updates": None}, 1),
        ({"spare_questions": 8, "questions_per_update": 2, "max_updates": None}, 4),
        ({"spare_questions": 8, "questions_per_update": 2, "max_updates": 3}, 3),
        ({"questions_per_update": 2, "max_updates": None}, None),
    ],
)
def test_spare_questions_are_played_and_make_no_additional_update(changes: dict[str, Any], updates: int | None) -> None:
    told = settings(questions_per_step=8, questions_per_update=changes.pop("questions_per_update", 8), **changes)
    config = trainer_config(told, gateway_key=KEY)
    assert config.data.train_batch_size == 8 + told.spare_questions == told.questions_played
    assert config.agentlightning.max_ppo_update_times == updates
    assert told.rollouts_per_step == (8 + told.spare_questions) * told.rollouts_per_question


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_asynchronous_trainer_has_more_questions_in_play(device: str) -> None:
    told = settings(device=device, async_questions=3, spare_questions=1, importance_cap=2.0)
    config = trainer_config(told, gateway_key=KEY)
    rollout = config.agentlightning.async_rollout
    assert (config.data.train_batch_size, rollout.enabled, rollout.async_train_batch_size) == (6, True, 9)
    assert told.rollouts_in_play == 9 * 6 and told.rollouts_per_step == 6 * 6
    correction = config.algorithm.rollout_correction
    assert (correction.rollout_is, correction.rollout_is_threshold, correction.bypass_mode) == ("token", 2.0, False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_what_is_asked_for_differs_from_a_synchronous_run_on_one_node(device: str) -> None:
    plain = OmegaConf.to_yaml(composed(device=device))
    assert OmegaConf.to_yaml(composed(device=device, async_questions=0, nodes=1, importance_cap=None)) == plain
    alone = OmegaConf.to_yaml(settings_alone(settings(device=device)))
    assert "async" not in alone.replace("mode: async", "") and "rollout_is_threshold" not in alone
    changed = composed(device=device, async_questions=2)
    OmegaConf.update(changed, "agentlightning.async_rollout", {"enabled": False, "async_train_batch_size": None})
    assert OmegaConf.to_yaml(changed) == plain


def test_rollouts_that_depend_on_their_times_are_not_called_seeded() -> None:
    with pytest.raises(ValidationError, match="set seeded=false"):
        settings(seeded=True, async_questions=1)
    with pytest.raises(
        ConfigError, match=r"agentlightning\.async_rollout can not be set: set trainer\.async_questions"
    ):
        load_recipe("cpu", ["trainer.verl.agentlightning.async_rollout.enabled=true"])


@pytest.mark.parametrize(("updated", "loss", "weight"), [(2, None, 0.05), (4, None, 0.1), (2, "vanilla", 0.2)])
def test_llds_weighs_the_same_for_any_number_of_updates(updated: int, loss: str | None, weight: float) -> None:
    verl = {} if loss is None else {"actor_rollout_ref": {"actor": {"policy_loss": {"loss_mode": loss}}}}
    given = {"questions_per_step": 8, "questions_per_update": updated, "max_updates": None, "verl": verl}
    actor = composed(**given, llds={"weight": 0.2, "gate": "token"}).actor_rollout_ref.actor
    from verl.utils.config import omega_conf_to_dataclass

    from s3_agent.agl.losses import LldsLossConfig

    made = omega_conf_to_dataclass(actor)
    assert isinstance(made.policy_loss, LldsLossConfig)
    assert made.policy_loss.llds_weight == pytest.approx(weight)
    assert (made.policy_loss.llds_gate, made.policy_loss.loss_mode) == ("token", loss or AGL_LOSS)


def test_without_llds_the_configuration_does_not_name_it(on_cpu: DictConfig, on_cuda: DictConfig) -> None:
    assert "llds" not in OmegaConf.to_yaml(on_cpu) + OmegaConf.to_yaml(on_cuda)


@pytest.mark.parametrize(("device", "ours"), [("cuda", [TRACKING]), ("cpu", [cpu.SHIM, TRACKING])])
def test_modules_that_a_user_has_verl_load_are_loaded_after_ours(device: str, ours: list[str]) -> None:
    told = environment(settings(device=device), {MODULES_VARIABLE: "mine,theirs"})
    assert told[MODULES_VARIABLE].split(",") == [*ours, "mine", "theirs"]
    assert environment(settings(device=device), told) == told, "our own are not added again"


def test_a_local_ray_stays_on_loopback_and_reports_nothing() -> None:
    local = environment(settings())
    assert local.items() >= cpu.ENVIRONMENT.items()
    assert local["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert local["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment(settings(ray_address="127.0.0.1:6379")) == local
    elsewhere = environment(settings(ray_address="10.0.0.2:6379", threads=3))
    modules = f"{cpu.SHIM},{TRACKING}"
    assert elsewhere == {**cpu.ENVIRONMENT, cpu.THREADS_VARIABLE: "3", MODULES_VARIABLE: modules}


def test_a_recipes_own_overrides_come_last() -> None:
    verl = {"data": {"shuffle": True}, "actor_rollout_ref": {"rollout": {"n": 2, "max_num_seqs": 9}}}
    config = composed(verl=verl)
    assert config.data.shuffle is True
    assert config.actor_rollout_ref.rollout.n == 2
    assert config.actor_rollout_ref.rollout.max_num_seqs == 9
    assert config.actor_rollout_ref.rollout.name == "vllm"  # the rest stays
    assert config.data.seed == 11


@pytest.mark.parametrize(
    ("verl", "named"),
    [
        ({"actor_rollout_ref": {"actor": {"entropy_coef": 0.1}}}, "actor_rollout_ref.actor.entropy_coeff"),
        ({"trainer": {"total_epoch": 3}}, "trainer.total_epochs"),
        ({"agentlighting": {}}, "agentlightning"),
    ],
)
def test_a_key_that_verl_does_not_list_is_refused_with_the_nearest(verl: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match="list no such key") as caught:
        composed(verl=verl)
    assert f"do you mean {named}?" in caught.value.remedy


def test_keys_that_others_read_can_be_given() -> None:
    engine = {"rollout": {"engine_kwargs": {"vllm": {"swap_space": 4}}, "+checkpoint_manager_class": "a.b.C"}}
    config = composed(verl={"actor_rollout_ref": engine})
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.swap_space == 4
    assert config.actor_rollout_ref.rollout.checkpoint_manager_class == "a.b.C"


def test_every_reference_in_the_configuration_resolves(on_cpu: DictConfig, on_cuda: DictConfig) -> None:
    for config in (on_cpu, on_cuda):
        assert OmegaConf.to_container(config, resolve=True, throw_on_missing=False)


def test_settings_survive_their_file() -> None:
    before = settings(verl={"data": {"shuffle": False}})
    assert TrainerSettings.model_validate_json(before.model_dump_json()) == before
    assert before.checkpoints == Path("folder/of/checkpoints")


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"rollouts_per_question": 1}, {"learning_rate": -1e-6}, {"device": "tpu"}, {"batch": 4}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TrainerRecipe(**wrong)


@pytest.mark.parametrize("path", sorted(REFUSED))
@pytest.mark.parametrize("new", ["", "+"])
def test_keys_that_break_resume_or_export_are_refused_by_the_recipe(path: str, new: str) -> None:
    *sections, key = path.split(".")
    verl: dict[str, Any] = {new + key: "x"}
    for section in reversed(sections):
        verl = {section: verl}
    with pytest.raises(ValidationError, match=f"{path} can not be set: ".replace(".", r"\.")):
        TrainerRecipe(verl=verl)


def test_a_recipe_names_the_key_and_what_to_do_instead() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.save_freq can not be set: set trainer\.checkpoint_every"):
        load_recipe("cpu", ["trainer.verl.trainer.save_freq=1"])
    with pytest.raises(ConfigError, match="async_save"):
        load_recipe("cpu", ["trainer.verl.actor_rollout_ref.actor.checkpoint.async_save=true"])


def test_a_policy_server_that_compiles_on_a_cpu_is_refused() -> None:
    override = "trainer.verl.actor_rollout_ref.rollout.enforce_eager=false"
    with pytest.raises(ConfigError, match="enforce_eager=false: on a CPU the policy server can not compile"):
        load_recipe("cpu", [override])
    assert load_recipe("s3_8x40gb", [override]).trainer.device == "cuda"
    assert load_recipe("cpu", [override.replace("false", "true")]).trainer.verl


@pytest.mark.parametrize(
    ("nodes", "verl", "ranks"), [(1, {}, 5), (2, {}, 10), (3, {"trainer": {"n_gpus_per_node": 2}}, 6)]
)
def test_ranks_are_counted_over_all_nodes_with_the_recipes_overrides(
    nodes: int, verl: dict[str, Any], ranks: int
) -> None:
    told = settings(device="cuda", gpus=5, nodes=nodes, tokens_per_gpu=1000, verl=verl)
    assert ranks_of(told) == ranks
    assert trainer_config(told, gateway_key=KEY).trainer.nnodes == nodes


def test_the_rows_of_an_update_are_divided_among_all_nodes() -> None:
    sizes: dict[str, Any] = {"device": "cuda", "gpus": 2, "questions_per_step": 3, "rollouts_per_question": 2}
    assert settings(**sizes, nodes=3, micro_batch=1, max_updates=None)
    for changes, named in (
        ({"nodes": 2}, "gpus x nodes x micro_batch"),
        ({"nodes": 4, "tokens_per_gpu": 1000}, "nodes"),
    ):
        with pytest.raises(ValidationError, match=rf"can not be divided by {named}|gpus x nodes \(8\)"):
            settings(**sizes, micro_batch=1, **changes)
