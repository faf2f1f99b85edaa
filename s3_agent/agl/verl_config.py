"""Builds the configuration for Agent Lightning's `run_ppo` from a run's settings.

Called by the trainer's process, the doctor and the dry run. It starts nothing. A recipe's `trainer.verl` is merged
last, so it can change every value except those in `REFUSED`.
"""

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from s3_agent.agl import cpu
from s3_agent.agl.guard import Guard
from s3_agent.agl.llds import Llds
from s3_agent.agl.lora import Lora
from s3_agent.agl.run_files import MODULES_VARIABLE, SEED_VARIABLE, TRACKING
from s3_agent.errors import ConfigError, nearest
from s3_agent.names import literal
from s3_agent.rollout.ray_address import LOCAL, on_loopback_alone

HOOKS = Path(__file__).with_name("seeding.py")
ESTIMATOR = "s3_agent_grpo"
"""The name under which verl knows the advantage estimator of `s3_agent.agl.advantages`."""
AGL_LOSS = "per_rollout_mean"
"""Agent Lightning's default policy loss; the name of its other loss, `cispo_per_rollout_mean`, ends with this name."""
FUSED_HEAD = "s3_agent.agl.fused_head"
LOSSES = "s3_agent.agl.losses"
WITH_MODEL = "s3_agent.agl.with_model"
"""verl loads this module with the model (model.external_lib), in the processes that train the model."""
Tracker = Literal["console", "tensorboard", "wandb"]

_OF_RESUME = "a resumed run, and the export of its policy, rely on how s3-agent sets it"
REFUSED = {
    **dict.fromkeys(
        (
            "trainer.resume_mode",
            "trainer.resume_from_path",
            "trainer.default_local_dir",
            "trainer.default_hdfs_dir",
            "trainer.del_local_ckpt_after_load",
            "trainer.remove_previous_ckpt_in_save",
            "trainer.total_epochs",
            "actor_rollout_ref.actor.checkpoint.async_save",
            "actor_rollout_ref.actor.checkpoint.load_contents",
        ),
        f"{_OF_RESUME}: leave it out",
    ),
    "actor_rollout_ref.actor.checkpoint.save_contents": f"{_OF_RESUME}: set trainer.checkpoint_policy",
    "trainer.total_training_steps": "set trainer.steps",
    "trainer.save_freq": "set trainer.checkpoint_every",
    "trainer.max_actor_ckpt_to_keep": "set trainer.checkpoints_kept",
    "trainer.max_critic_ckpt_to_keep": "set trainer.checkpoints_kept",
    "trainer.test_freq": "set trainer.validate_every",
    "trainer.val_before_train": "a summary compares with the validation before the first step: leave it out",
    "trainer.logger": "set trainer.trackers",
    "trainer.nnodes": "set trainer.nodes",
    "agentlightning.async_rollout": "set trainer.async_questions",
    **dict.fromkeys(
        (
            "actor_rollout_ref.model.lora",
            "actor_rollout_ref.model.lora_rank",
            "actor_rollout_ref.model.lora_alpha",
            "actor_rollout_ref.model.lora_adapter_path",
            "actor_rollout_ref.model.target_modules",
            "actor_rollout_ref.model.target_parameters",
            "actor_rollout_ref.model.exclude_modules",
        ),
        "verl's own exchange does not send the trained weights to the policy server: set trainer.lora",
    ),
}
"""Keys of `trainer.verl` that a recipe can not set, with what to do instead."""


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted paths of all keys, sections included, without the `+` of new keys."""
    for key, value in values.items():
        path = prefix + str(key).lstrip("+")
        yield path
        if isinstance(value, Mapping):
            yield from _paths(value, f"{path}.")


class TrainerRecipe(BaseModel):
    """The trainer's settings in a recipe. Lengths are in policy tokens.

    A step plays `questions_per_step` x `rollouts_per_question` rollouts and makes one optimizer update for every
    `questions_per_update` questions (None: one update for all), at most `max_updates`. `kl_loss` is the weight of the
    distance to the reference policy, relative to the policy's loss, for any number of updates per step; 0: no such
    loss. `lora` trains adapters instead of all weights. `llds` keeps correct responses likely. `spare_questions` more
    are played at each step: their rollouts replace those without a gradient, which are those of a question whose
    rollouts all got the same reward. `guard` recognises a run that loses what it learned.

    With `async_questions`, that many more questions are in play at any time: a step takes the first
    `questions_per_step` whose rollouts have all ended; the others go on with the next policy, and count for a later
    step. `importance_cap` weights each trained token by its probability in the trainer over that with which it was
    sampled, and by at most this number (truncated importance sampling).

    `nodes` machines train with `gpus` GPUs each. `tokens_per_gpu` packs rows into micro batches of that many tokens;
    without it, a micro batch is `micro_batch` rows. `offload` keeps parameters and optimizer in host memory while they
    are not used. With `fused_log_probs`, the logits of a whole micro batch are never in memory at once. The policy
    server takes the share `rollout_memory` of each GPU's memory, and `tensor_parallel` GPUs form one server.

    Checkpoints are made every `checkpoint_every` steps (None: with every validation if the guard may stop the run),
    validations every `validate_every` steps, and both after the last step. `checkpoints_kept=None` keeps all.
    `checkpoint_policy` also writes the policy into each checkpoint as a Hugging Face folder, in the precision of
    training; without it, the policy is exported from the shards of the last checkpoint, in bfloat16. Metrics go to
    `metrics.jsonl` and to `trackers`.

    With `seeded`, each rollout is sampled with its own seed, so the same recipe plays the same rollouts again if the
    policy server computes the same numbers; vLLM samples a little slower. On a CPU, `threads` threads compute an update
    (None: one for each core). `verl` is merged last over the whole configuration of verl and Agent Lightning, in their
    structure; a key that they do not list is written with a `+` before it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["cpu", "cuda"] = "cpu"
    gpus: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    steps: int = Field(default=20, ge=1)
    questions_per_step: int = Field(default=8, ge=1)
    rollouts_per_question: int = Field(default=4, ge=2)
    questions_per_update: int | None = Field(default=None, ge=1)
    max_updates: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=1e-6, ge=0)
    kl_loss: float = Field(default=0.0, ge=0)
    lora: Lora | None = None
    llds: Llds | None = None
    spare_questions: int = Field(default=0, ge=0)
    async_questions: int = Field(default=0, ge=0)
    importance_cap: float | None = Field(default=None, ge=1)
    guard: Guard = Guard()
    clip_low: float = Field(default=0.2, gt=0)
    clip_high: float = Field(default=0.2, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    seeded: bool = False
    prompt_tokens: int = Field(default=2048, ge=16)
    response_tokens: int = Field(default=8192, ge=16)
    micro_batch: int = Field(default=4, ge=1)
    tokens_per_gpu: int | None = Field(default=None, ge=32)
    threads: int | None = Field(default=None, ge=1)
    offload: bool = False
    fused_log_probs: bool = False
    rollout_memory: float = Field(default=0.5, gt=0, lt=1)
    tensor_parallel: int = Field(default=1, ge=1)
    rollout_timeout_s: int = Field(default=600, ge=10)
    checkpoint_every: int | None = Field(default=None, ge=1)
    checkpoints_kept: int | None = Field(default=None, ge=2)
    checkpoint_policy: bool = True
    validate_every: int | None = Field(default=None, ge=1)
    trackers: list[Tracker] = Field(default=["console"])
    wandb_mode: Literal["offline", "online"] = "offline"
    verl: dict[str, Any] = Field(default_factory=dict)

    @property
    def mini_batch(self) -> int:
        """Questions for each optimizer update."""
        return self.questions_per_update or self.questions_per_step

    @property
    def questions_played(self) -> int:
        """Questions that are played at a step, spare ones included."""
        return self.questions_per_step + self.spare_questions

    @property
    def rollouts_per_step(self) -> int:
        """Training rollouts that are played at each step."""
        return self.questions_played * self.rollouts_per_question

    @property
    def questions_in_play(self) -> int:
        """Questions that are queued or played at a time in training."""
        return self.questions_played + self.async_questions

    @property
    def rollouts_in_play(self) -> int:
        """Training rollouts that are queued or played at a time."""
        return self.questions_in_play * self.rollouts_per_question

    @property
    def steps_ahead(self) -> int:
        """Batches of questions that the trainer has taken beyond those of its finished steps."""
        return -(-self.async_questions // self.questions_played)

    @property
    def steps_per_checkpoint(self) -> int:
        """Steps from one checkpoint to the next; the last step has one in any case."""
        with_validations = self.validate_every if self.guard.action == "stop" else None
        return self.checkpoint_every or with_validations or self.steps

    @property
    def most_checkpoints(self) -> int:
        """The largest number of checkpoints on the disk; the oldest is deleted as soon as the next one is started.

        A guard that may stop the run keeps the best one beside them.
        """
        made = -(-self.steps // self.steps_per_checkpoint)
        return min(made, (self.checkpoints_kept or made) + (self.guard.action == "stop"))

    @field_validator("verl")
    @classmethod
    def _refused(cls, verl: dict[str, Any]) -> dict[str, Any]:
        problems = [f"{path} can not be set: {REFUSED[path]}" for path in _paths(verl) if path in REFUSED]
        if problems:
            raise ValueError("; ".join(problems))
        return verl

    @model_validator(mode="after")
    def _compiles_nothing_on_a_cpu(self) -> Self:
        path = "actor_rollout_ref.rollout.enforce_eager"
        if self.device == "cpu" and OmegaConf.select(OmegaConf.create(literal(self.verl)), path) is False:
            raise ValueError(f"verl.{path}=false: on a CPU the policy server can not compile; leave it out")
        return self

    @model_validator(mode="after")
    def _lora_is_exported(self) -> Self:
        if self.lora is None:
            return self
        if self.checkpoint_policy:
            raise ValueError(
                "lora: the copy of the policy that verl writes into a checkpoint has its adapters apart, and no server "
                "loads it: set checkpoint_policy=false; the policy is exported from the shards"
            )
        path = "actor_rollout_ref.actor.strategy"
        if OmegaConf.select(OmegaConf.create(literal(self.verl)), path, default="fsdp2") != "fsdp2":
            raise ValueError(f"lora needs FSDP2: take verl.{path} out")
        return self

    @model_validator(mode="after")
    def _seeds_repeat(self) -> Self:
        if self.seeded and self.async_questions:
            raise ValueError(
                "seeded plays the same rollouts again, but with async_questions it depends on their times which policy "
                "plays them: set seeded=false"
            )
        return self

    @model_validator(mode="after")
    def _best_is_kept(self) -> Self:
        if self.guard.action != "stop":
            return self
        if self.validate_every is None or self.validate_every % self.steps_per_checkpoint:
            raise ValueError(
                "guard.action=stop keeps the policy that validated best: set validate_every, and leave "
                "checkpoint_every out or set it to a divisor of validate_every"
            )
        return self

    @model_validator(mode="after")
    def _llds_has_an_effect(self) -> Self:
        updates = min(self.questions_per_step // self.mini_batch, self.max_updates or self.questions_per_step)
        if self.llds is not None and updates < 2:
            raise ValueError(
                "llds is 0 in the first update of a step, and a step makes no other: set questions_per_update to a "
                f"quarter of questions_per_step ({self.questions_per_step // 4 or 1}) or less"
            )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.questions_per_step % self.mini_batch:
            raise ValueError(
                f"questions_per_step ({self.questions_per_step}) can not be divided by questions_per_update "
                f"({self.mini_batch}): Agent Lightning would drop the remaining rows of every step"
            )
        rows = self.mini_batch * self.rollouts_per_question
        share, named = self.gpus * self.nodes, "gpus" if self.nodes == 1 else "gpus x nodes"
        if self.tokens_per_gpu is None:
            share, named = share * self.micro_batch, f"{named} x micro_batch"
        if rows % share:
            raise ValueError(
                f"the rows of an update ({self.mini_batch} questions x rollouts_per_question = {rows}) can not be "
                f"divided by {named} ({share}): verl would refuse the first batch; change one of them"
            )
        if self.tokens_per_gpu is not None and self.tokens_per_gpu < self.prompt_tokens + self.response_tokens:
            raise ValueError(
                f"tokens_per_gpu ({self.tokens_per_gpu}) is less than prompt_tokens + response_tokens "
                f"({self.prompt_tokens + self.response_tokens}): the longest row would not fit a micro batch"
            )
        if self.gpus % self.tensor_parallel:
            raise ValueError(f"gpus ({self.gpus}) can not be divided by tensor_parallel ({self.tensor_parallel})")
        return self


class TrainerSettings(TrainerRecipe):
    """The trainer's settings in a recipe, and what the run adds to them.

    `agent_class` and `env_map` are part of each rollout, and name the class that plays it. `generation` counts how
    often the run was resumed; `validate_first` is false when it continues from a checkpoint. `chat_template` is the
    text of a template that is saved with the trained policy, instead of the model's own.
    """

    run: str
    generation: int = 0
    model: str
    chat_template: str | None = None
    agent_class: str | None = None
    env_map: dict[str, str] = Field(default_factory=dict)
    gateway_url: str
    checkpoints: Path
    validation_size: int = Field(ge=1)
    validate_first: bool = True
    ray_address: str | None = None
    seed: int = 0


def _most_updates(settings: TrainerSettings) -> int | None:
    """Rollouts of spare questions make no additional update: Agent Lightning drops as many rows, first those of
    questions whose rollouts all got the same reward."""
    if not settings.spare_questions:
        return settings.max_updates
    updates = settings.questions_per_step // settings.mini_batch
    return min(updates, settings.max_updates or updates)


def _common(settings: TrainerSettings, gateway_key: str) -> dict[str, Any]:
    context = settings.prompt_tokens + settings.response_tokens
    packed = settings.tokens_per_gpu
    template = {} if settings.chat_template is None else {"custom_chat_template": settings.chat_template}
    cap = settings.importance_cap
    correction = {} if cap is None else {"rollout_is": "token", "rollout_is_threshold": cap}
    in_play = settings.questions_in_play
    ahead = {"async_rollout": {"enabled": True, "async_train_batch_size": in_play}} if settings.async_questions else {}
    return {
        "algorithm": {
            "adv_estimator": ESTIMATOR,
            "use_kl_in_reward": False,
            # Without importance_cap it only logs how far the policy server's log-probs are from the trainer's.
            "rollout_correction": {"rollout_is": None, "rollout_rs": None, "bypass_mode": False, **correction},
        },
        "data": {
            "train_batch_size": settings.questions_played,
            "val_batch_size": settings.validation_size,  # AGL keeps only the last validation batch's metrics
            "max_prompt_length": settings.prompt_tokens,
            "max_response_length": settings.response_tokens,
            "dataloader_num_workers": 0,
            "shuffle": False,  # the tasks are already in the order of training (s3_agent.data.tasks.in_training_order)
            "validation_shuffle": False,
            "seed": settings.seed,
        },
        "actor_rollout_ref": {
            "model": {
                "path": settings.model,
                "use_fused_kernels": settings.fused_log_probs,
                "external_lib": WITH_MODEL,
                **template,
            },
            "actor": {
                "strategy": "fsdp2",
                "ppo_mini_batch_size": settings.mini_batch,
                "ppo_micro_batch_size_per_gpu": settings.micro_batch,
                "use_dynamic_bsz": packed is not None,
                "ppo_max_token_len_per_gpu": packed or context,
                "optim": {"lr": settings.learning_rate},
                "clip_ratio_low": settings.clip_low,
                "clip_ratio_high": settings.clip_high,
                "use_kl_loss": settings.kl_loss > 0,
                "kl_loss_type": "low_var_kl",
                "entropy_coeff": 0,
                "fsdp_config": {"param_offload": settings.offload, "optimizer_offload": settings.offload},
                "checkpoint": {
                    "save_contents": ["model", "optimizer", "extra", *["hf_model"] * settings.checkpoint_policy],
                    "load_contents": ["model", "optimizer", "extra"],
                },
            },
            "ref": {"log_prob_micro_batch_size_per_gpu": settings.micro_batch},
            "rollout": {
                "name": "vllm",
                "mode": "async",
                "n": settings.rollouts_per_question,
                "temperature": settings.temperature,
                "log_prob_micro_batch_size_per_gpu": settings.micro_batch,
                "max_model_len": context,
                "gpu_memory_utilization": settings.rollout_memory,
                "tensor_model_parallel_size": settings.tensor_parallel,
            },
        },
        "reward": {"num_workers": 0},  # rewards come with the rollouts
        "trainer": {
            "n_gpus_per_node": settings.gpus,
            "nnodes": settings.nodes,
            "val_before_train": settings.validate_first,
            "critic_warmup": 0,
            "logger": ["file", *settings.trackers],
            "project_name": "s3-agent",
            "experiment_name": settings.run,
            # Both also happen at the last step, whatever their frequency.
            "save_freq": settings.steps_per_checkpoint,
            "test_freq": settings.validate_every or settings.steps,
            "max_actor_ckpt_to_keep": settings.checkpoints_kept,
            "max_critic_ckpt_to_keep": settings.checkpoints_kept,
            "total_epochs": 1_000_000,
            "total_training_steps": settings.steps,
            "resume_mode": "auto",  # the run's own folder is empty, or has the checkpoint to continue from
            "default_local_dir": str(settings.checkpoints),
        },
        "agentlightning": {
            "agl_base_url": settings.gateway_url,
            "agl_key": gateway_key,
            "local": {"agent_class": settings.agent_class, "env_map": settings.env_map},
            "hooks": str(HOOKS) if settings.seeded else None,
            "rollout_timeout_seconds": settings.rollout_timeout_s,
            "max_ppo_update_times": _most_updates(settings),
            "trace_aggregator": {
                "level": "trajectory",
                "trajectory_max_prompt_length": settings.prompt_tokens,
                "trajectory_max_response_length": settings.response_tokens,
            },
            **ahead,
        },
    }


def _on_cpu() -> dict[str, Any]:
    full = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    return {
        "actor_rollout_ref": {
            "model": {
                "use_remove_padding": True,
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
        # Ray has no "cpu" device, so it gets one logical GPU slot instead (see cpu/shim.py).
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


def environment(settings: TrainerSettings, given: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The environment variables for the trainer's process and all processes that it starts.

    `given` is the user's environment: the modules that it lists for verl to load are loaded after ours.
    """
    ours, backend = [TRACKING], {}
    if settings.device == "cpu":
        ours = [cpu.SHIM, TRACKING]  # the shim is first, because the other modules need it
        backend = {**cpu.ENVIRONMENT, cpu.THREADS_VARIABLE: str(settings.threads or os.cpu_count() or 1)}
    theirs = given.get(MODULES_VARIABLE, "").split(",")
    backend[MODULES_VARIABLE] = ",".join(dict.fromkeys(filter(None, [*ours, *theirs])))
    local = settings.ray_address is None or on_loopback_alone(settings.ray_address)
    seed = {SEED_VARIABLE: str(settings.seed)} if settings.seeded else {}
    return {**(LOCAL if local else {}), **backend, **seed}


def _known(config: DictConfig, wanted: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`wanted` without the `+` of new keys. Raises ConfigError for a key that is neither listed nor marked as new."""
    checked: dict[str, Any] = {}
    for key, value in wanted.items():
        name, path = key.removeprefix("+"), f"{prefix}{key.removeprefix('+')}"
        there = config.get(name)
        # An empty section in verl's configuration accepts any key, because verl passes it on to another library.
        if config and name not in config and name == key:
            known = [f"{prefix}{other}" for other in config]
            raise ConfigError(
                f"trainer.verl.{path}: verl and Agent Lightning list no such key",
                remedy=f"{nearest(path, known)} If they read a key that they do not list, write it as `+{name}`",
            )
        if isinstance(value, Mapping) and isinstance(there, DictConfig):
            value = _known(there, value, f"{path}.")
        checked[name] = value
    return checked


def updates_per_step(config: DictConfig) -> int:
    """How many optimizer updates Agent Lightning makes in a step in which every rollout becomes one row."""
    updates = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size
    return max(1, min(updates, config.agentlightning.max_ppo_update_times or updates))


def kl_coefficient(kl_loss: float, config: DictConfig) -> float:
    """The coefficient for verl with which the KL distance has the weight `kl_loss` relative to the policy's loss.

    Agent Lightning's losses divide an update's policy loss by the rows of the whole step, but verl's KL is a mean over
    the rows of the update. So with N updates per step, the KL would count N times as much. verl's own losses are means
    over the same rows as the KL, and need no correction.
    """
    return kl_loss / _loss_divisor(config)


def _loss_divisor(config: DictConfig) -> int:
    loss = OmegaConf.select(config, "actor_rollout_ref.actor.policy_loss.loss_mode") or AGL_LOSS
    return updates_per_step(config) if loss.endswith(AGL_LOSS) else 1


def _lora(lora: Lora, seed: int) -> dict[str, Any]:
    """Frozen weights are held in bfloat16, and PEFT holds adapters in float32; verl's reference switches them off."""
    return {
        "actor_rollout_ref": {
            "model": {
                "lora_rank": lora.rank,
                "lora_alpha": lora.alpha,
                "target_modules": "all-linear" if lora.targets is None else list(lora.targets),
                "lora": {"merge": True},
            },
            "actor": {"fsdp_config": {"model_dtype": "bf16", "seed": seed}},
        }
    }


def _llds(llds: Llds, config: DictConfig) -> dict[str, Any]:
    """The settings of `s3_agent.agl.losses`; the weight is divided as that of the distance to the reference."""
    return {
        "_target_": f"{LOSSES}.LldsLossConfig",
        "llds_weight": llds.weight / _loss_divisor(config),
        "llds_gate": llds.gate,
        "llds_answer_weight": llds.answer_weight,
    }


def _layers(settings: TrainerSettings, gateway_key: str) -> list[Any]:
    """The layers of the run's settings, to merge over verl's and AGL's defaults."""
    layers: list[Any] = [literal(_common(settings, gateway_key))]
    if settings.device == "cpu":
        layers.append(_on_cpu())
    if settings.lora is not None:
        layers.append(literal(_lora(settings.lora, settings.seed)))
    if settings.ray_address:
        elsewhere = {"address": settings.ray_address, "num_cpus": None, "num_gpus": None}
        layers.append({"ray_kwargs": {"ray_init": elsewhere}})
    told = OmegaConf.merge(*layers, settings.verl)
    assert isinstance(told, DictConfig)
    actor: dict[str, Any] = {"kl_loss_coef": kl_coefficient(settings.kl_loss, told)}
    if settings.llds is not None:
        actor["policy_loss"] = _llds(settings.llds, told)
    layers.append({"actor_rollout_ref": {"actor": actor}})
    return layers


def settings_alone(settings: TrainerSettings) -> DictConfig:
    """The run's settings and the recipe's `verl` overrides, without verl's defaults; works if verl is not installed."""
    config = OmegaConf.merge(*_layers(settings, ""), settings.verl)
    assert isinstance(config, DictConfig)
    return config


def ranks_of(settings: TrainerSettings) -> int:
    """How many ranks train; each of them writes a shard of every checkpoint."""
    trainer = settings_alone(settings).trainer
    return trainer.n_gpus_per_node * trainer.nnodes


def trainer_config(settings: TrainerSettings, *, gateway_key: str) -> DictConfig:
    """The defaults of verl and AGL, with the run's settings and then the recipe's `verl` overrides merged over them.

    Raises ImportError if verl or AGL is not installed, and ConfigError for a key that they do not list.
    """
    from hydra import compose, initialize_config_module

    import_module("agentlightning.verl")  # without it, hydra reports a missing configuration when a package is missing
    with initialize_config_module("agentlightning.verl", version_base=None):
        base = compose(config_name="config")
    OmegaConf.set_struct(base, False)
    config = OmegaConf.merge(base, *_layers(settings, gateway_key))
    assert isinstance(config, DictConfig)
    config = OmegaConf.merge(config, _known(config, settings.verl))
    assert isinstance(config, DictConfig)
    return config
