"""Every recipe and every twin, composed by Hydra with verl's defaults, passes the checks that verl makes at a start."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from s3_agent.agl.verl_config import ESTIMATOR, trainer_config
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import EXAMPLES, Recipe, load_recipe
from s3_agent.training.job import trainer_settings
from s3_agent.training.twin import load_twin

SHIPPED = sorted(path.stem for path in EXAMPLES.glob("*/recipes/*.yaml"))
LARGE = [name for name in SHIPPED if name != "cpu"]


def composed(recipe: Recipe, folder: Path) -> DictConfig:
    settings = trainer_settings(recipe, Run(folder / "a-run"), validation_size=recipe.data.validation_size or 8)
    return trainer_config(settings, gateway_key="key")


def validate(config: DictConfig) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    OmegaConf.resolve(config)
    validate_config(config, need_reference_policy(config), need_critic(config))
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)  # a worker's first use of it; it refuses unknown fields


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_passes_verls_own_checks(name: str, tmp_path: Path) -> None:
    validate(composed(load_recipe(name), tmp_path))


@pytest.mark.parametrize("name", LARGE)
def test_a_twin_passes_verls_own_checks(name: str, tmp_path: Path) -> None:
    validate(composed(load_twin(name), tmp_path))


def test_a_configuration_that_verl_refuses_is_refused_here(tmp_path: Path) -> None:
    """That the checks above can fail: five rollouts of 120 questions do not divide by seven GPUs."""
    recipe = load_recipe("s3_8x40gb")
    config = composed(recipe, tmp_path)
    config.actor_rollout_ref.actor.use_dynamic_bsz = False
    config.trainer.n_gpus_per_node = 7
    with pytest.raises(AssertionError, match="real_train_batch_size"):
        validate(config)


@pytest.mark.parametrize("name", LARGE)
def test_a_twin_trains_by_the_same_rules(name: str, tmp_path: Path) -> None:
    """Estimator, loss, aggregation and what is kept are the large recipe's; sizes and the device are the twin's."""
    rules = (
        "algorithm",
        "actor_rollout_ref.actor.policy_loss",
        "actor_rollout_ref.actor.loss_agg_mode",
        "actor_rollout_ref.actor.use_kl_loss",
        "actor_rollout_ref.actor.kl_loss_coef",
        "actor_rollout_ref.actor.kl_loss_type",
        "actor_rollout_ref.actor.clip_ratio_low",
        "actor_rollout_ref.actor.clip_ratio_high",
        "actor_rollout_ref.actor.ppo_epochs",
        "actor_rollout_ref.actor.entropy_coeff",
        "actor_rollout_ref.actor.use_dynamic_bsz",
        "actor_rollout_ref.actor.strategy",
        "actor_rollout_ref.actor.checkpoint",
        "actor_rollout_ref.actor.fsdp_config.param_offload",
        "actor_rollout_ref.actor.fsdp_config.model_dtype",
        "actor_rollout_ref.model.lora_rank",
        "actor_rollout_ref.model.lora_alpha",
        "actor_rollout_ref.model.target_modules",
        "actor_rollout_ref.model.lora",
        "actor_rollout_ref.model.use_fused_kernels",
        "actor_rollout_ref.model.use_remove_padding",
        "actor_rollout_ref.rollout.n",
        "actor_rollout_ref.rollout.temperature",
        "agentlightning.trace_aggregator.level",
        "agentlightning.max_ppo_update_times",
        "agentlightning.async_rollout.enabled",
        "trainer.nnodes",
        "trainer.resume_mode",
        "trainer.max_actor_ckpt_to_keep",
    )
    large, twin = composed(load_recipe(name), tmp_path), composed(load_twin(name), tmp_path)

    def rule(config: DictConfig, path: str) -> Any:
        value = OmegaConf.select(config, path)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    for path in rules:
        assert rule(twin, path) == rule(large, path), path
    for config in (large, twin):
        assert config.algorithm.adv_estimator == ESTIMATOR
        assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "per_rollout_mean"


AGENT_ALONE = ("agentlightning.local", "actor_rollout_ref.model.path", "trainer.experiment_name")


@pytest.mark.parametrize("name", ["cpu", "s3_8x40gb"])
def test_the_agent_changes_and_the_trainer_does_not(name: str, tmp_path: Path) -> None:
    """Three agents' configurations are byte-identical but for class, environment, policy and the run's name."""
    recipe = load_recipe(name)
    configs = [composed(recipe.of_agent(label), tmp_path) for label in ("s3", "search_r1", "one_look_agent:OneLook")]
    assert len({config.agentlightning.local.agent_class for config in configs}) == 3
    for config in configs:
        for path in AGENT_ALONE:
            assert OmegaConf.select(config, path) is not None, path
            OmegaConf.update(config, path, None, merge=False)
    first, *others = [OmegaConf.to_yaml(config, resolve=True) for config in configs]
    assert others == [first, first]


@pytest.mark.parametrize(
    ("name", "told"), [*((name, 0.0005) for name in LARGE if name.startswith("s3_")), ("cpu", 0.0)]
)
def test_the_kl_of_a_recipe_is_shared_among_its_updates(name: str, told: float, tmp_path: Path) -> None:
    assert composed(load_recipe(name), tmp_path).actor_rollout_ref.actor.kl_loss_coef == told


def test_the_published_setting_of_agent_lightnings_example(tmp_path: Path) -> None:
    """Spec 6.3, value by value."""
    config = composed(load_recipe("search_r1_8x40gb"), tmp_path)
    expected = {
        "algorithm.adv_estimator": ESTIMATOR,  # the example's grpo, but for groups of one
        "algorithm.use_kl_in_reward": False,
        "algorithm.enable_rollout_level_advantage": True,
        "data.train_batch_size": 512,
        "data.max_prompt_length": 6000,
        "data.max_response_length": 4096,
        "data.truncation": "error",
        "actor_rollout_ref.rollout.n": 4,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 256,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.actor.optim.lr": 1e-6,
        "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio": 0.0,
        "actor_rollout_ref.actor.use_kl_loss": True,
        "actor_rollout_ref.actor.kl_loss_coef": 0.001,
        "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
        "actor_rollout_ref.actor.entropy_coeff": 0,
        "actor_rollout_ref.actor.clip_ratio_low": 0.2,
        "actor_rollout_ref.actor.clip_ratio_high": 0.3,
        "actor_rollout_ref.rollout.gpu_memory_utilization": 0.5,
        "actor_rollout_ref.rollout.max_model_len": 32768,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "actor_rollout_ref.actor.fsdp_config.param_offload": True,
        "actor_rollout_ref.actor.fsdp_config.optimizer_offload": True,
        "trainer.n_gpus_per_node": 8,
        "trainer.total_training_steps": 300,
        "trainer.test_freq": 10,
        "trainer.save_freq": 10,
        "actor_rollout_ref.model.path": "meta-llama/Llama-3.2-3B-Instruct",
        "agentlightning.trace_aggregator.level": "trajectory",
        "agentlightning.trace_aggregator.trajectory_max_prompt_length": 4096,
        "agentlightning.trace_aggregator.trajectory_max_response_length": 34384,
        "agentlightning.max_ppo_update_times": 2,
        "actor_rollout_ref.actor.policy_loss.loss_mode": "per_rollout_mean",
    }
    assert {path: OmegaConf.select(config, path) for path in expected} == expected
