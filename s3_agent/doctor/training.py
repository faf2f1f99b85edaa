"""Reads from verl's composed configuration the numbers that the checks calculate with.

Called by `gather`. It reads the composed configuration and not the recipe, because `trainer.verl` can change any value
and verl has its own defaults. verl's names are kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s3_agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Engine:
    """One model that verl spreads over the ranks: `actor`, `ref` or `critic`.

    `place` is the section where a recipe sets it. `sequence_parallel` ranks share a row, and `fsdp_size` ranks share
    one copy of the weights (a negative number: all ranks). `mini_batch_size` is in questions, None for a model that is
    not trained. `micro_batches` are the rows that a rank takes at a time, by the key that sets them; they count only if
    `dynamic` is false.
    """

    name: str
    place: str
    sequence_parallel: int
    fsdp_size: int
    dynamic: bool
    mini_batch_size: int | None
    micro_batches: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Training:
    """Batches in questions and rows, lengths in tokens, memory shares from 0 to 1, sizes in bytes.

    `in_play` is how many questions are queued or played at a time; an asynchronous trainer has more than a batch of
    them. `corrected` is whether the loss accounts for the policy that sampled a rollout. `rollout_dynamic` is whether
    the policy's log-probs are computed in micro batches of tokens; `rollout_parallel` is (tensor, data, pipeline),
    whose product is the number of ranks of one policy server.
    """

    model: str
    gpus: int
    nodes: int
    train_batch_size: int
    in_play: int
    corrected: bool
    rollouts: int
    mini_batch_size: int
    max_update_times: int | None
    micro_batch: int | None
    log_prob_micro_batch: int | None
    dynamic: bool
    tokens_per_gpu: int
    log_prob_tokens_per_gpu: int
    sequence_parallel: int
    prompt_tokens: int
    response_tokens: int
    kept_prompt: int
    kept_response: int
    level: str
    max_model_len: int | None
    model_dtype: str
    compute_dtype: str
    param_offload: bool
    optimizer_offload: bool
    checkpointing: bool
    activation_offload: bool
    remove_padding: bool
    fused: bool
    strategy: str
    external_lib: str | None
    compiled: bool
    entropy: bool
    entropy_in_chunks: bool
    entropy_recomputed: bool
    reference: bool
    lora_rank: int
    fsdp_size: int
    rollout_dtype: str
    utilization: float
    tensor_parallel: int
    rollout_parallel: tuple[int, int, int]
    rollout_dynamic: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    sleeps: bool
    eager: bool
    bucket: int
    temperature: float
    estimator: str
    critic: bool
    rollout_advantage: bool
    ray_cpus: int | None
    engines: tuple[Engine, ...]

    @property
    def asynchronous(self) -> bool:
        """Whether rollouts go on while the trainer updates."""
        return self.in_play > self.train_batch_size

    @property
    def ranks(self) -> int:
        """Processes that train, one for each GPU."""
        return self.gpus * self.nodes

    @property
    def rows(self) -> int:
        """Rows of one batch when every rollout becomes one."""
        return self.train_batch_size * self.rollouts

    @property
    def mini_batch_rows(self) -> int:
        """Rows of one optimizer step."""
        return self.mini_batch_size * self.rollouts

    @property
    def length(self) -> int:
        """The longest row."""
        return self.kept_prompt + self.kept_response

    @property
    def shards(self) -> int:
        """Ranks among which weights, gradients and optimizer state are split."""
        return self.fsdp_size if 0 < self.fsdp_size < self.ranks else self.ranks

    def micro_batch_tokens(self) -> int:
        """The most tokens of one micro batch on one GPU when rows are trained."""
        return self.tokens_per_gpu if self.dynamic else (self.micro_batch or 1) * self.length // self.sequence_parallel

    def log_prob_tokens(self) -> int:
        """The most tokens of one micro batch on one GPU when only log-probs are computed."""
        if self.dynamic:
            return self.log_prob_tokens_per_gpu
        return (self.log_prob_micro_batch or 1) * self.length // self.sequence_parallel


def _engines(at: Callable[..., Any], some: Callable[..., int], *, reference: bool, critic: bool) -> tuple[Engine, ...]:
    """The models that verl spreads over the ranks; `at` and `some` read the configuration."""
    root = "actor_rollout_ref"

    def parallel(place: str, section: str, default: int = 1) -> int:
        # The older key is used if it is more than 1.
        older = at(f"{place}.ulysses_sequence_parallel_size", default)
        return older if older > 1 else some(f"{place}.{section}.ulysses_sequence_parallel_size", 1)

    def sharded(section: str) -> int:
        size = at(f"{section}.fsdp_size", -1)
        return size if size < 0 else some(f"{section}.fsdp_size", -1)

    def size_of(key: str, default: Any = None) -> dict[str, int | None]:
        return {f"trainer.verl.{key}": at(key, default)}

    actor = Engine(
        name="actor",
        place=f"trainer.verl.{root}.actor",
        sequence_parallel=parallel(f"{root}.actor", "fsdp_config"),
        fsdp_size=sharded(f"{root}.actor.fsdp_config"),
        dynamic=at(f"{root}.actor.use_dynamic_bsz", False),
        mini_batch_size=some(f"{root}.actor.ppo_mini_batch_size"),
        micro_batches=size_of(f"{root}.actor.ppo_micro_batch_size_per_gpu")
        | size_of(f"{root}.rollout.log_prob_micro_batch_size_per_gpu"),
    )
    found = [actor]
    if reference:
        found.append(
            Engine(
                name="ref",
                place=f"trainer.verl.{root}.ref",
                sequence_parallel=parallel(
                    f"{root}.ref", "fsdp_config", at(f"{root}.actor.ulysses_sequence_parallel_size", 1)
                ),
                fsdp_size=sharded(f"{root}.ref.fsdp_config"),
                dynamic=at(f"{root}.ref.log_prob_use_dynamic_bsz", actor.dynamic),
                mini_batch_size=None,
                micro_batches=size_of(f"{root}.ref.log_prob_micro_batch_size_per_gpu"),
            )
        )
    if critic:
        found.append(
            Engine(
                name="critic",
                place="trainer.verl.critic",
                sequence_parallel=parallel("critic", "fsdp"),
                fsdp_size=sharded("critic.fsdp"),
                dynamic=at("critic.use_dynamic_bsz", actor.dynamic),
                mini_batch_size=some("critic.ppo_mini_batch_size", actor.mini_batch_size),
                micro_batches=size_of("critic.ppo_micro_batch_size_per_gpu")
                | size_of("critic.forward_micro_batch_size_per_gpu"),
            )
        )
    return tuple(found)


def read_training(config: DictConfig) -> Training:
    """The numbers of a composed configuration of verl and Agent Lightning, with their defaults for missing values.

    Raises ConfigError for a missing value that has no default, and for a size below 1.
    """

    def at(place: str, default: Any = None) -> Any:
        found = OmegaConf.select(config, place)
        return default if found is None else found

    def must(place: str) -> Any:
        if (found := at(place)) is None:
            raise ConfigError(f"verl's configuration has no {place}", remedy="take it out of trainer.verl")
        return found

    def some(place: str, default: int | None = None) -> int:
        if (found := must(place) if default is None else at(place, default)) < 1:
            raise ConfigError(f"{place} is {found}", remedy=f"set trainer.verl.{place} to 1 or more")
        return found

    actor, rollout, fsdp = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.actor.fsdp_config"
    trace, ahead = "agentlightning.trace_aggregator", "agentlightning.async_rollout"
    correction, batch = "algorithm.rollout_correction", some("data.train_batch_size")
    level = str(at(f"{trace}.level", "transition"))
    merged = level.startswith("trajectory")
    prompt, response = must("data.max_prompt_length"), must("data.max_response_length")
    tokens = at(f"{actor}.ppo_max_token_len_per_gpu", 16384)
    offloaded = at(f"{fsdp}.offload_policy", False)
    estimator = str(at("algorithm.adv_estimator", "gae"))
    reference = at(f"{actor}.use_kl_loss", False) or at("algorithm.use_kl_in_reward", False)
    critic = estimator == "gae"
    engines = _engines(at, some, reference=reference, critic=critic)
    return Training(
        model=must("actor_rollout_ref.model.path"),
        gpus=some("trainer.n_gpus_per_node"),
        nodes=some("trainer.nnodes", 1),
        train_batch_size=batch,
        in_play=some(f"{ahead}.async_train_batch_size") if at(f"{ahead}.enabled", False) else batch,
        corrected=at(f"{correction}.rollout_is") is not None or at(f"{correction}.bypass_mode", False),
        rollouts=some(f"{rollout}.n", 1),
        mini_batch_size=some(f"{actor}.ppo_mini_batch_size"),
        max_update_times=at("agentlightning.max_ppo_update_times"),
        micro_batch=at(f"{actor}.ppo_micro_batch_size_per_gpu"),
        log_prob_micro_batch=at(f"{rollout}.log_prob_micro_batch_size_per_gpu"),
        dynamic=engines[0].dynamic,
        tokens_per_gpu=tokens,
        log_prob_tokens_per_gpu=at(f"{rollout}.log_prob_max_token_len_per_gpu", tokens),
        sequence_parallel=engines[0].sequence_parallel,
        prompt_tokens=prompt,
        response_tokens=response,
        kept_prompt=at(f"{trace}.trajectory_max_prompt_length", prompt) if merged else prompt,
        kept_response=at(f"{trace}.trajectory_max_response_length", response) if merged else response,
        level=level,
        max_model_len=at(f"{rollout}.max_model_len"),
        model_dtype=at(f"{fsdp}.model_dtype", "fp32"),
        compute_dtype=at(f"{fsdp}.mixed_precision.param_dtype", "bf16"),
        param_offload=at(f"{fsdp}.param_offload", False) or offloaded,
        optimizer_offload=at(f"{fsdp}.optimizer_offload", False) or offloaded,
        checkpointing=at("actor_rollout_ref.model.enable_gradient_checkpointing", True),
        activation_offload=at("actor_rollout_ref.model.enable_activation_offload", False),
        remove_padding=at("actor_rollout_ref.model.use_remove_padding", True),
        fused=at("actor_rollout_ref.model.use_fused_kernels", False),
        strategy=at(f"{actor}.strategy", "fsdp"),
        external_lib=at("actor_rollout_ref.model.external_lib"),
        compiled=at(f"{fsdp}.use_torch_compile", True) and at(f"{actor}.use_torch_compile", True),
        entropy=at(f"{actor}.calculate_entropy", True) or at(f"{actor}.entropy_coeff", 0) != 0,
        entropy_in_chunks=at(f"{fsdp}.entropy_from_logits_with_chunking", False),
        entropy_recomputed=at(f"{fsdp}.entropy_checkpointing", False),
        reference=reference,
        lora_rank=at("actor_rollout_ref.model.lora_rank", 0),
        fsdp_size=engines[0].fsdp_size,
        rollout_dtype=at(f"{rollout}.dtype", "bfloat16"),
        utilization=at(f"{rollout}.gpu_memory_utilization", 0.5),
        tensor_parallel=some(f"{rollout}.tensor_model_parallel_size", 1),
        rollout_parallel=(
            some(f"{rollout}.tensor_model_parallel_size", 1),
            some(f"{rollout}.data_parallel_size", 1),
            some(f"{rollout}.pipeline_model_parallel_size", 1),
        ),
        rollout_dynamic=at(f"{rollout}.log_prob_use_dynamic_bsz", engines[0].dynamic),
        max_num_seqs=at(f"{rollout}.max_num_seqs", 1024),
        max_num_batched_tokens=at(f"{rollout}.max_num_batched_tokens", 8192),
        sleeps=at(f"{rollout}.free_cache_engine", True) and at(f"{rollout}.enable_sleep_mode", True),
        eager=at(f"{rollout}.enforce_eager", False),
        bucket=at(f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes", 2048) << 20,
        temperature=at(f"{rollout}.temperature", 1.0),
        estimator=estimator,
        critic=critic,
        rollout_advantage=at("algorithm.enable_rollout_level_advantage", True),
        ray_cpus=at("ray_kwargs.ray_init.num_cpus"),
        engines=engines,
    )
