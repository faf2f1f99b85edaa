"""Loaded inside the vLLM servers that we start on a CPU: a request's `seed` decides its tokens in any batch.

vLLM 0.20.2 on a CPU fails with "CPU Generator does not use offset" when a seeded prompt is prefilled in more than one
piece, and ignores all seeds of a batch if one of its requests has none.
"""

from typing import Any

import torch
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


class SeededWorker:
    """A class for `--worker-extension-cls` to mix into vLLM's worker. Only the import of this module matters."""


def apply() -> None:
    """Apply both patches. Done once at import, if there is no CUDA device."""
    # When a prompt is not completely prefilled, vllm/v1/worker/gpu_model_runner.py:3386 sets its generator back by an
    # offset, which a CPU generator does not have. So we remove the generator of such a prompt while tokens are sampled.
    sample_tokens = CPUModelRunner.sample_tokens

    def sample_seeded(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.input_batch
        unfinished = self.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist()
        aside = {index: batch.generators.pop(index) for index in unfinished if index in batch.generators}
        try:
            return sample_tokens(self, *args, **kwargs)
        finally:
            batch.generators.update(aside)

    CPUModelRunner.sample_tokens = sample_seeded  # pyright: ignore[reportAttributeAccessIssue]

    # vllm/v1/sample/ops/topk_topp_sampler.py:161 uses seeds only if every request of the batch has one.
    forward = TopKTopPSampler.forward_cpu

    def forward_seeded(self: Any, logits: Any, generators: dict[int, Any], *args: Any) -> Any:
        if generators:
            generators = {row: generators.get(row, torch.default_generator) for row in range(len(logits))}
        return forward(self, logits, generators, *args)

    TopKTopPSampler.forward_cpu = forward_seeded  # pyright: ignore[reportAttributeAccessIssue]


if not torch.cuda.is_available():
    apply()
