"""Sends the policy server the weights with LoRA's adapters added.

verl 0.8's merged exchange (`lora.merge`) sends the weights without the adapters: it reads the merged weights only after
it has restored the original ones. Without `lora.merge`, the exchange through shared memory fails; otherwise the server
would get the adapters as a second model, but Agent Lightning's gateway asks for the first one, which is not trained.
This module replaces the merged exchange. It changes no weight of the trainer and copies none; weights that are
offloaded reach the GPU one at a time.

verl loads this module with the model (`s3_agent.agl.with_model`). Without LoRA, nothing changes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import verl.workers.engine.fsdp.transformer_impl as fsdp
from torch.distributed.tensor import DTensor
from verl.utils.device import get_device_id

from s3_agent.agl.lora_weights import adapters_of, with_adapter


def plain_name(name: str) -> str:
    """The name of a weight in the model without adapters."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def merged(state: Mapping[str, torch.Tensor], scale: float) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the model without adapters, whole and in bfloat16, from the sharded state of one with adapters."""
    adapters = adapters_of(state)
    for name, shard in state.items():
        if ".lora_" in name:
            continue
        weight = _whole(shard)
        if found := adapters.get(name):
            weight = with_adapter(weight, _whole(found[0]), _whole(found[1]), scale)
        yield plain_name(name), weight.bfloat16()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.to(get_device_id())
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


_exchanged = fsdp.FSDPEngine.get_per_tensor_param
_adapted = fsdp.FSDPEngine._build_lora_module


def exchanged(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any] | None]:
    """verl's `get_per_tensor_param`: the weights for the policy server, and no adapter."""
    if not (self._is_lora and self.model_config.lora.get("merge")):
        return _exchanged(self, *args, **kwargs)
    config = self.module.peft_config["default"]
    return merged(self.module.state_dict(), config.lora_alpha / config.r), None


def adapted(self: Any, module: Any) -> Any:
    """verl's `_build_lora_module`; the adapters start with random numbers of the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(self.engine_config.seed)
        return _adapted(self, module)


fsdp.FSDPEngine.get_per_tensor_param = exchanged
fsdp.FSDPEngine._build_lora_module = adapted
