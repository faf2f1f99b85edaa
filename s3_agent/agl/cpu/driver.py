"""Loaded in the driver just before rollout servers are created: it registers our replica and starts no agent loops.

AGL runs rollouts through its gateway and never uses verl's agent-loop workers, so they are not started.
"""

from typing import Any, Self

import torch
from verl.workers.rollout.replica import RolloutReplicaRegistry


class NoAgentLoops:
    """Replaces the manager of verl's agent-loop workers."""

    @classmethod
    def create(cls, *_: Any, **__: Any) -> Self:
        """Start nothing."""
        return cls()


def _load_replica() -> type:
    from s3_agent.agl.cpu.rollout import CpuReplica

    return CpuReplica


if not torch.cuda.is_available():
    RolloutReplicaRegistry.register("vllm", _load_replica)
