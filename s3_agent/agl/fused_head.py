"""Lets verl's fused log-probs work under FSDP2 for a policy whose output layer is not tied to its embedding.

The fused forward reads `lm_head.weight` instead of calling `lm_head`. verl 0.8 makes an untied `lm_head` a separate
FSDP2 unit, and FSDP2 gathers the weights of a unit only while it is called: the fused forward gets a shard, and the
first log-probs fail. This module leaves `lm_head` in the unit of the whole model, where a tied one also is. Then it is
gathered while the model is called, and FSDP2 reduces its gradients like all others. (With `full_tensor()` instead, the
gradients would not be reduced, and each rank would train with its own.) Without a fused forward, nothing changes.

verl loads this module with the model. Your own trainer names it in VERL_USE_EXTERNAL_MODULES.
"""

from collections.abc import Sequence
from typing import Any

import verl.utils.fsdp_utils as fsdp

FUSED_FORWARDS = frozenset({"forward_with_torch_backend", "forward_with_triton_backend"})
"""The functions of verl's `patch_forward_with_backends`; they have these names for every kind of model."""

_targets = fsdp._select_fsdp2_wrap_targets


def wrap_targets(model: Any, layer_classes: Sequence[str]) -> list[Any]:
    """The modules that verl shards one by one, without an output layer whose weight a fused forward reads."""
    taken = {
        id(part.lm_head)
        for part in model.modules()
        if getattr(type(part).forward, "__name__", "") in FUSED_FORWARDS and hasattr(part, "lm_head")
    }
    return [module for module in _targets(model, layer_classes) if id(module) not in taken]


fsdp._select_fsdp2_wrap_targets = wrap_targets
