"""Agents for control experiments: they must not learn anything, so that a rising curve is not taken for learning."""

import random
from dataclasses import replace

from s3_agent.rollout.jobs import Job
from s3_agent.rollout.worker.native import Played, RecipeAgent, WorkerSettings

KEPT = 64


class ShuffledRewards(RecipeAgent):
    """The recipe's agent, whose training rollouts report the reward of an earlier rollout of the same process.

    The rewards keep their distribution but do not depend on the rollout that gets them. Validation is scored as usual,
    and the record's accuracy is always the rollout's own.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        self._rng = random.Random(0)
        self._earlier = [0.0, 1.0]

    async def play(self, job: Job) -> Played:
        played = await super().play(job)
        if not job.is_train:
            return played
        reward = self._rng.choice(self._earlier)
        self._earlier = [*self._earlier, played.reward][-KEPT:]
        return replace(played, reward=reward)
