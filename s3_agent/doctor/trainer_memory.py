"""Computes the memory of a GPU that trains and samples in turn, for each phase, as verl 0.8 does with FSDP2 and vLLM.

Used by the memory plan. The fp32 master weights, the gradients and Adam's two moments are sharded. Even with
offloading, all of the trainer's state is on the GPU while rows are trained: offloading frees memory only for the
sampling phase (verl's `BaseEngineCtx`).
"""

from s3_agent.doctor.activations import WIDTH, activations, layer_adapters, logits_bytes
from s3_agent.doctor.memory import COLLECTIVES, CONTEXT, GRAPHS, Item, Phase, with_fragments
from s3_agent.doctor.training import Training
from s3_agent.machine.description import GIB
from s3_agent.machine.model_files import ModelShape

TRAIN_CHANGE = (
    "set trainer.fused_log_probs=true and trainer.tokens_per_gpu to prompt_tokens + response_tokens, or train on more "
    "GPUs (trainer.gpus, gpus.trainer)"
)
STEP_CHANGE = "train on more GPUs (trainer.gpus, gpus.trainer), or train a smaller policy"
SAMPLE_CHANGE = "lower trainer.rollout_memory, or set trainer.offload=true"
SYNC_CHANGE = (
    "set trainer.offload=true, trainer.tensor_parallel=2, or a smaller "
    "trainer.verl.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
)


def state_bytes(shape: ModelShape, training: Training) -> dict[str, int]:
    """Bytes of the sharded state on one rank: weights, gradients, Adam's moments.

    With LoRA only the adapters, which are in fp32, have gradients and moments.
    """
    weights = -(-shape.parameters * WIDTH[training.model_dtype] // training.shards)
    if training.lora_rank:
        adapters = 4 * shape.layers * layer_adapters(shape, training.lora_rank) // training.shards
        return {"weights": weights + adapters, "gradients": adapters, "optimizer": 2 * adapters}
    return {"weights": weights, "gradients": weights, "optimizer": 2 * weights}


def _gathered(shape: ModelShape, training: Training, *, gradients: bool) -> int:
    """Bytes of unsharded weights in use: two layers (the next is fetched early), and the output layer or embedding.

    With `gradients`, add the gradients of one layer, in the compute type and, for the reduction, in fp32. If log-probs
    are fused and the output layer is not tied, also add the output layer's gradient, which is kept until the end
    (`s3_agent.agl.fused_head`); the activations include that of a tied one. A single rank gathers as well: FSDP2 copies
    the weights. With LoRA only a layer's adapters have gradients.
    """
    width = WIDTH[training.compute_dtype]
    weights = width * (2 * shape.layer + shape.embedding)
    if not gradients:
        return weights
    if training.lora_rank:
        return weights + (width + 4) * layer_adapters(shape, training.lora_rank)
    waiting = width * shape.embedding if training.fused and not shape.tied else 0
    return weights + (width + 4) * max(shape.layer, shape.embedding) + waiting


def _leftover(training: Training) -> list[Item]:
    """What is on the card in every phase: the CUDA contexts of both processes, and NCCL's buffers."""
    items = [Item("CUDA contexts of trainer and vLLM", 2 * CONTEXT, "assumed")]
    if training.gpus * training.nodes > 1:
        items.append(Item("collectives", COLLECTIVES, "assumed"))
    return items


def _resident(state: dict[str, int], training: Training) -> list[Item]:
    """The trainer's state that stays on the card while the policy server uses it."""
    resident = []
    if not training.param_offload:
        resident.append(Item("trainer's weights (fp32 shard)", state["weights"]))
    if not training.optimizer_offload:
        resident.append(Item("optimizer state (shard)", state["optimizer"]))
    return resident


def training_phases(shape: ModelShape, training: Training, *, total: int) -> tuple[Phase, ...]:
    """The phases of a step on a card of `total` bytes."""
    state, used = state_bytes(shape, training), activations(shape, training)
    asleep = Item(
        "vLLM, asleep" if training.sleeps else "vLLM, which never sleeps",
        GRAPHS if training.sleeps else int(training.utilization * total),
        "assumed" if training.sleeps else "computed",
    )
    weights, gradients = Item("weights (shard)", state["weights"]), Item("gradients (shard)", state["gradients"])
    optimizer = Item("optimizer state (shard)", state["optimizer"])
    update = [
        weights,
        gradients,
        optimizer,
        Item("gathered weights and gradients", _gathered(shape, training, gradients=True)),
        Item("activations", used.kept),
        Item("logits or one layer", used.peak - used.kept),
    ]
    step = [weights, gradients, optimizer, Item("Adam's temporaries", state["gradients"])]
    log_probs = [
        weights,
        *([] if training.optimizer_offload else [optimizer]),
        Item("gathered weights", _gathered(shape, training, gradients=False)),
        Item(
            "logits",
            logits_bytes(
                shape, training.log_prob_tokens(), training, width=WIDTH[training.compute_dtype], backward=False
            ),
        ),
    ]
    served = shape.weight_bytes() // training.tensor_parallel
    largest = max(shape.embedding, shape.hidden * shape.intermediate)
    sync = [
        Item("vLLM's weights", served),
        # verl loads all of them; `s3_agent.agl.lora_exchange` takes them from where they are.
        *([] if training.lora_rank and training.param_offload else [weights]),
        *([] if training.optimizer_offload else [optimizer]),
        Item("two buckets of weights", 2 * training.bucket),
        Item("the largest matrix, gathered", largest * (WIDTH[training.model_dtype] + 2)),
        Item("vLLM, except its weights and its cache", GRAPHS, "assumed"),
    ]
    sample = [Item("vLLM (gpu_memory_utilization)", int(training.utilization * total)), *_resident(state, training)]
    others = _leftover(training)
    change = TRAIN_CHANGE if used.peak > sum(state.values()) else STEP_CHANGE
    return (
        Phase("sampling", tuple([*sample, *others]), SAMPLE_CHANGE),
        Phase("log-probs", (*with_fragments(log_probs), asleep, *others), TRAIN_CHANGE),
        Phase("training", (*with_fragments(update), asleep, *others), change),
        Phase("optimizer step", (*with_fragments(step), asleep, *others), STEP_CHANGE),
        Phase("weight exchange", (*with_fragments(sync), *others), SYNC_CHANGE),
    )


def host_bytes(shape: ModelShape, training: Training) -> dict[str, int]:
    """RAM of one node's ranks: the larger of two, while the models are loaded and during the steps.

    Every rank loads a model with tied weights; otherwise only the first rank loads it (verl's
    `get_init_weight_context_manager`). The reference policy stays in RAM (FSDP2's CPU offloading).
    """
    full = shape.parameters * WIDTH[training.model_dtype]
    held = full * training.gpus // training.shards
    reference = held if training.reference and not training.lora_rank else 0
    loading = {"weights while loading": full * (training.gpus if shape.tied else 1), "reference policy": reference}
    steps = {
        "offloaded weights": held if training.param_offload else 0,
        "offloaded optimizer": 2 * held if training.optimizer_offload and not training.lora_rank else 0,
        "reference policy": reference,
    }
    return max(loading, steps, key=lambda items: sum(items.values()))


def cpu_bytes(shape: ModelShape, training: Training) -> dict[str, int]:
    """RAM of a run that trains and samples on the CPU: the trainer's tensors, and vLLM's weights and cache."""
    state = state_bytes(shape, training)
    return {
        "trainer's weights, gradients and optimizer": sum(state.values()),
        "activations": activations(shape, training).peak,
        "policy server": shape.parameters * WIDTH[training.rollout_dtype] + GIB,  # VLLM_CPU_KVCACHE_SPACE=1
    }
