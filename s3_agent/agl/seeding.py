"""A hook of Agent Lightning (`agentlightning.hooks`) that gives each training rollout its own seed.

With it, the same recipe samples the same rollouts again, in any order and on any worker, if the policy server computes
the same numbers. The seed is computed from the run's seed, the task, and how many rollouts the task has had so far. It
is part of the rollout's metadata, and our agents send it to the policy server with each request.
"""

import hashlib
import json
import os
from collections import Counter

from agentlightning.hooks import RolloutHooks
from agentlightning.schemas import RolloutCreate, RolloutMetadata

from s3_agent.agl.run_files import SEED_VARIABLE


class SeededRollouts(RolloutHooks):
    """Gives training rollouts a seed; validation rollouts need none, because they are greedy."""

    def __init__(self) -> None:
        self._seed = os.environ[SEED_VARIABLE]
        self._played: Counter[str] = Counter()

    def on_enqueue(self, request: RolloutCreate) -> RolloutCreate:
        """The request with its seed, below 2**31."""
        if not request.is_train:
            return request
        task = hashlib.sha256(json.dumps(request.input, sort_keys=True, default=str).encode()).hexdigest()
        self._played[task] += 1
        drawn = hashlib.sha256(f"{self._seed} {task} {self._played[task]}".encode()).digest()
        seed = int.from_bytes(drawn[:4], "big") >> 1
        given = request.metadata
        metadata = given.model_dump(exclude_none=True) if isinstance(given, RolloutMetadata) else given or {}
        return request.model_copy(update={"metadata": {**metadata, "seed": seed}})
