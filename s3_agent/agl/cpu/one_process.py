"""Lets vLLM on a CPU compute in the engine's process. A second process would only make the engine wait for it."""

from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform


def apply() -> None:
    """Patch vLLM's configuration. Call it before a configuration is made."""
    # vllm/platforms/cpu.py:155 replaces one process ("uni") by two ("mp") to pin OpenMP threads. The engine then polls
    # for the worker's results without a pause: on two cores it takes half of the worker's processor time.
    platform_check = CpuPlatform.check_and_update_config

    def check_and_update_config(vllm_config: VllmConfig) -> None:
        platform_check(vllm_config)
        if vllm_config.parallel_config.world_size == 1:
            vllm_config.parallel_config.distributed_executor_backend = "uni"

    CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)
