"""verl's vLLM server as a CPU replica: a worker that takes new weights, and one engine process instead of two."""

import os
from typing import Any

import ray
import torch
import verl.workers.rollout.vllm_rollout.vllm_async_server as server
import verl.workers.rollout.vllm_rollout.vllm_rollout as rollout
from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform

from s3_agent.agl import cpu


def _run_id() -> str:
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.get_node_id()[:16]}"


class CpuServerAdapter(rollout.ServerAdapter):
    """The trainer's end of the weight exchange."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # verl names the socket by Ray's job id, which is the same in every local Ray: two runs would meet.
        self.zmq_handle = self.zmq_handle.replace(ray.get_runtime_context().get_job_id(), _run_id())


class CpuServer(server.vLLMHttpServer):
    """The policy server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        os.environ["VERL_RAY_JOB_ID"] = _run_id()

    def _get_worker_extension_cls(self) -> str:
        return cpu.VLLM_WORKER


class CpuReplica(server.vLLMReplica):
    """One policy server as a Ray actor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(CpuServer)


def apply() -> None:
    """Patch what the server and the trainer's worker need. Done once at import when there is no CUDA device."""
    # verl/workers/rollout/vllm_rollout/vllm_rollout.py:97: vLLM's CPU platform has no device uuid, nothing reads it.
    rollout.get_device_uuid = lambda device_id: "CPU"

    # vllm/platforms/cpu.py:155 turns one process ("uni") into two ("mp") to pin OpenMP threads. A policy that trains on
    # the CPU is small: the second process costs more than pinning gains.
    platform_check = CpuPlatform.check_and_update_config

    def check_and_update_config(vllm_config: VllmConfig) -> None:
        platform_check(vllm_config)
        if vllm_config.parallel_config.world_size == 1:
            vllm_config.parallel_config.distributed_executor_backend = "uni"

    CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)


if not torch.cuda.is_available():
    apply()
