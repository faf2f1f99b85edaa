"""Loaded inside vLLM: lets its weights be replaced after every step."""

from typing import Any

import torch
import vllm.model_executor.layers.utils as layers
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

import s3_agent.agl.cpu.seeded_worker  # noqa: F401  patches the sampler


def _plain_linear(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


if not torch.cuda.is_available():
    # vllm/model_executor/layers/utils.py:222 packs linear weights and drops the originals; new ones can not be loaded.
    layers.dispatch_cpu_unquantized_gemm = _plain_linear


class CpuWorkerExtension(vLLMColocateWorkerExtension):
    """verl's weight receiver; vLLM's CPU worker has no device of its own (verl …/vllm_rollout/utils.py:231)."""

    def update_weights_from_ipc(self, *args: Any, **kwargs: Any) -> Any:
        """Take the trainer's weights."""
        self.device = self.device or torch.device("cpu")
        return super().update_weights_from_ipc(*args, **kwargs)
