"""Loaded with the model in the trainer's worker: adds FSDP on the CPU over gloo, and AGL's policy losses."""

import functools
import gc
import os

import agentlightning.verl.per_rollout_loss  # noqa: F401  registers the losses that AGL's setup hook would
import torch

from s3_agent.agl import cpu


def apply() -> None:
    """Register verl's FSDP engine for the CPU and our rollout adapter, and let updates use all their threads."""
    # Nothing else computes while the trainer does.
    torch.set_num_threads(int(os.environ.get(cpu.THREADS_VARIABLE, "1")))
    # verl collects garbage a dozen times in a step, and each time checks all imported objects, which takes 0.4 s.
    gc.freeze()
    import verl.workers.engine.fsdp.transformer_impl as fsdp
    import verl.workers.engine_workers as workers
    import verl.workers.rollout.base as rollout
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp import FSDPEngineWithLMHead

    import s3_agent.agl.with_model  # noqa: F401  with CUDA, verl loads it instead of this module

    # verl/utils/distributed.py:86 would use "cpu:gloo,cpu:nccl".
    workers.initialize_global_process_group_ray = functools.partial(
        workers.initialize_global_process_group_ray, backend="cpu:gloo"
    )
    # verl/workers/engine/fsdp/transformer_impl.py:415 pins the reference policy's memory, which needs a CUDA driver.
    policy = fsdp.CPUOffloadPolicy
    assert policy is not None, "torch 2.11 has it"
    fsdp.CPUOffloadPolicy = lambda **_: policy(pin_memory=False)
    # verl/workers/engine/fsdp/transformer_impl.py:921 registers the engine only for cuda and npu.
    register = EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
    register(FSDPEngineWithLMHead)
    rollout._ROLLOUT_REGISTRY[("vllm", "async")] = "s3_agent.agl.cpu.rollout.CpuServerAdapter"


if not torch.cuda.is_available():
    apply()
