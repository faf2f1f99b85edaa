"""Makes verl's vLLM server a CPU replica: its worker accepts new weights, and it has one process instead of two."""

import os
from typing import Any

import ray
import torch
import verl.workers.rollout.vllm_rollout.vllm_async_server as server
import verl.workers.rollout.vllm_rollout.vllm_rollout as rollout

from s3_agent.agl import cpu
from s3_agent.agl.cpu import one_process


def _run_id() -> str:
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.get_node_id()[:16]}"


class CpuServerAdapter(rollout.ServerAdapter):
    """The trainer's end of the weight exchange."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # verl names the socket by Ray's job id, which is the same in every local Ray: two runs would share a socket.
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
    """Apply the patches for the server and the trainer's worker. Done once at import, if there is no CUDA device."""
    # verl/workers/rollout/vllm_rollout/vllm_rollout.py:97: vLLM's CPU platform has no device uuid. Nothing reads it.
    rollout.get_device_uuid = lambda device_id: "CPU"
    one_process.apply()


if not torch.cuda.is_available():
    apply()
