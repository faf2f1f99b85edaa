"""From a run's settings to the configuration that Agent Lightning's `run_ppo` takes. Pure: it starts nothing."""

from pathlib import Path
from typing import Any, Literal, Self

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, model_validator

from s3_agent.agl import cpu


class TrainerRecipe(BaseModel):
    """What a recipe says of its trainer. Lengths are in policy tokens; one optimizer step a batch of questions.

    `verl` is merged over everything else that verl and Agent Lightning are told, in their own structure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["cpu", "cuda"] = "cpu"
    gpus: int = Field(default=1, ge=1)
    steps: int = Field(default=20, ge=1)
    questions_per_step: int = Field(default=8, ge=1)
    rollouts_per_question: int = Field(default=4, ge=2)
    learning_rate: float = Field(default=1e-6, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    prompt_tokens: int = Field(default=2048, ge=16)
    response_tokens: int = Field(default=8192, ge=16)
    micro_batch: int = Field(default=4, ge=1)
    rollout_timeout_s: int = Field(default=600, ge=10)
    verl: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _micro_batches_divide(self) -> Self:
        rows, share = self.questions_per_step * self.rollouts_per_question, self.gpus * self.micro_batch
        if rows % share:
            raise ValueError(
                f"questions_per_step x rollouts_per_question ({rows}) can not be divided by gpus x micro_batch "
                f"({share}): verl would refuse the first batch; change one of the four"
            )
        return self


class TrainerSettings(TrainerRecipe):
    """A trainer recipe with what the run adds to it."""

    model: str
    gateway_url: str
    checkpoints: Path
    validation_size: int = Field(ge=1)
    ray_address: str | None = None
    seed: int = 0


def _common(settings: TrainerSettings, gateway_key: str) -> dict[str, Any]:
    context = settings.prompt_tokens + settings.response_tokens
    return {
        "algorithm": {
            "adv_estimator": "grpo",
            "use_kl_in_reward": False,
            # Logs how far the policy server's log-probs are from the trainer's, and corrects nothing.
            "rollout_correction": {"rollout_is": None, "rollout_rs": None, "bypass_mode": False},
        },
        "data": {
            "train_batch_size": settings.questions_per_step,
            "val_batch_size": settings.validation_size,  # AGL keeps only the last validation batch's metrics
            "max_prompt_length": settings.prompt_tokens,
            "max_response_length": settings.response_tokens,
            "dataloader_num_workers": 0,
            "validation_shuffle": False,
            "seed": settings.seed,
        },
        "actor_rollout_ref": {
            "model": {"path": settings.model},
            "actor": {
                "strategy": "fsdp2",
                "ppo_mini_batch_size": settings.questions_per_step,
                "ppo_micro_batch_size_per_gpu": settings.micro_batch,
                "optim": {"lr": settings.learning_rate},
                "use_kl_loss": False,
                "entropy_coeff": 0,
                "checkpoint": {"save_contents": ["model", "optimizer", "extra", "hf_model"]},
            },
            "ref": {"log_prob_micro_batch_size_per_gpu": settings.micro_batch},
            "rollout": {
                "name": "vllm",
                "mode": "async",
                "n": settings.rollouts_per_question,
                "temperature": settings.temperature,
                "log_prob_micro_batch_size_per_gpu": settings.micro_batch,
                "max_model_len": context,
            },
        },
        "reward": {"num_workers": 0},  # rewards come with the rollouts
        "trainer": {
            "n_gpus_per_node": settings.gpus,
            "nnodes": 1,
            "val_before_train": True,
            "critic_warmup": 0,
            "logger": ["console", "file"],
            "project_name": "s3-agent",
            "experiment_name": "s3-agent",
            # Both happen at the last step as well, whatever their frequency.
            "save_freq": settings.steps,
            "test_freq": settings.steps,
            "total_epochs": 1_000_000,
            "total_training_steps": settings.steps,
            "resume_mode": "disable",
            "default_local_dir": str(settings.checkpoints),
        },
        "agentlightning": {
            "agl_base_url": settings.gateway_url,
            "agl_key": gateway_key,
            "rollout_timeout_seconds": settings.rollout_timeout_s,
            "trace_aggregator": {
                "level": "trajectory",
                "trajectory_max_prompt_length": settings.prompt_tokens,
                "trajectory_max_response_length": settings.response_tokens,
            },
        },
    }


def _on_cpu() -> dict[str, Any]:
    full = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    return {
        "actor_rollout_ref": {
            "model": {
                "use_remove_padding": False,
                "enable_gradient_checkpointing": False,
                "external_lib": cpu.ENGINE,
                "override_config": {"attn_implementation": "sdpa"},
            },
            "actor": {
                "use_torch_compile": False,
                "fsdp_config": {"use_torch_compile": False, "mixed_precision": full},
            },
            "rollout": {
                "tensor_model_parallel_size": 1,
                "dtype": "float32",
                "free_cache_engine": False,
                "enable_sleep_mode": False,
                "enforce_eager": True,
                "max_num_seqs": 32,
                "max_num_batched_tokens": 4096,
                "gpu_memory_utilization": 0.1,
                "load_format": "auto",
                "agent": {"num_workers": 1, "agent_loop_manager_class": cpu.DRIVER},
                "checkpoint_engine": {"backend": "naive", "update_weights_bucket_megabytes": 64},
            },
        },
        # Ray knows no "cpu" device: it is given one logical GPU slot instead (see cpu/shim.py).
        "trainer": {"device": "cuda", "balance_batch": False},
        "ray_kwargs": {
            "ray_init": {
                "num_cpus": 4,  # slots: one for AGL's task runner, three for verl's pool
                "num_gpus": 1,
                "include_dashboard": False,
                "runtime_env": {
                    "worker_process_setup_hook": cpu.SETUP_HOOK,
                    "env_vars": cpu.ENVIRONMENT,
                },
            }
        },
    }


def environment(settings: TrainerSettings) -> dict[str, str]:
    """What the trainer's process and all that it starts must find in their environment."""
    # Ray's own switch for single machines: every daemon and worker of it listens on 127.0.0.1 alone.
    local = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**({} if settings.ray_address else local), **(cpu.ENVIRONMENT if settings.device == "cpu" else {})}


def trainer_config(settings: TrainerSettings, *, gateway_key: str) -> DictConfig:
    """verl's and AGL's own defaults, the run's settings over them, and the recipe's `verl` overrides over all."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("agentlightning.verl", version_base=None):
        base = compose(config_name="config")
    OmegaConf.set_struct(base, False)
    layers: list[Any] = [base, _common(settings, gateway_key)]
    if settings.device == "cpu":
        layers.append(_on_cpu())
    if settings.ray_address:
        elsewhere = {"address": settings.ray_address, "num_cpus": None, "num_gpus": None}
        layers.append({"ray_kwargs": {"ray_init": elsewhere}})
    config = OmegaConf.merge(*layers, settings.verl)
    assert isinstance(config, DictConfig)
    return config
