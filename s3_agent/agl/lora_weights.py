"""Adds LoRA's adapters to the weights, one matrix at a time: for the policy server and for the export.

Both use the same functions, so that the exported policy is the one that the policy server had.
"""

from collections.abc import Mapping

import torch

_BASE, _A, _B = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


def adapters_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For the name of each weight that has an adapter: its A of the shape (rank, in), and its B of (out, rank)."""
    stems = [name.removesuffix(_A) for name in state if name.endswith(_A)]
    return {stem + _BASE: (state[stem + _A], state[stem + _B]) for stem in stems}


def with_adapter(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """`weight` of the shape (out, in) plus `scale` times B·A, in bfloat16.

    The adapters are rounded to bfloat16 first, as in the trainer's forward pass and in an exported adapter.
    """
    product = b.bfloat16().float() @ a.bfloat16().float()
    return product.mul_(scale).add_(weight).bfloat16()
