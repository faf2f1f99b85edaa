"""verl's fused log-probs under FSDP2, for a policy whose output layer is not tied to its embedding.

The fused forward takes `lm_head.weight` instead of calling `lm_head`. verl 0.8 shards an untied `lm_head` as a unit
of its own, and FSDP2 gathers a unit while it is called: the fused forward finds a shard, and the first log-probs
fail. Left to the model's own unit, as a tied one is, it is gathered while the whole model is called, and FSDP2
reduces its gradients like all others. (`full_tensor()` instead would leave them unreduced: each rank would train with
its own.) Without a fused forward everything is sharded as before.

verl loads this module with the model. A trainer of your own names it in VERL_USE_EXTERNAL_MODULES.
"""

from collections.abc import Sequence
from typing import Any

import verl.utils.fsdp_utils as fsdp

FUSED_FORWARDS = frozenset({"forward_with_torch_backend", "forward_with_triton_backend"})
"""The functions of verl's `patch_forward_with_backends`, by the name that they have for every kind of model."""

_targets = fsdp._select_fsdp2_wrap_targets


def wrap_targets(model: Any, layer_classes: Sequence[str]) -> list[Any]:
    """The modules that verl shards one by one, without an output layer whose weight a fused forward takes."""
    taken = {
        id(part.lm_head)
        for part in model.modules()
        if getattr(type(part).forward, "__name__", "") in FUSED_FORWARDS and hasattr(part, "lm_head")
    }
    return [module for module in _targets(model, layer_classes) if id(module) not in taken]


fsdp._select_fsdp2_wrap_targets = wrap_targets
