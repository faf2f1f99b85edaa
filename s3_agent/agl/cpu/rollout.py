"""verl's vLLM server as a CPU replica."""

from typing import Any

import ray
import verl.workers.rollout.vllm_rollout.vllm_async_server as server
import verl.workers.rollout.vllm_rollout.vllm_rollout as rollout

# verl/workers/rollout/vllm_rollout/vllm_rollout.py:97: vLLM's CPU platform has no device uuid, nothing reads it.
rollout.get_device_uuid = lambda device_id: "CPU"


class CpuServerAdapter(rollout.ServerAdapter):
    """The trainer's end of the weight exchange."""


class CpuServer(server.vLLMHttpServer):
    """The policy server, with a worker that can take new weights on the CPU."""

    def _get_worker_extension_cls(self) -> str:
        return "s3_agent.agl.cpu.vllm_worker.CpuWorkerExtension"


class CpuReplica(server.vLLMReplica):
    """One policy server as a Ray actor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(CpuServer)
