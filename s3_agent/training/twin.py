"""A recipe's twin: the same agent, estimator, loss, mini-batch ratio and checkpoints, small enough for two CPU cores.

It uses the embedded corpus, tasks, policy and generator of the recipe `cpu`, and the lengths of that recipe. So
`s3-agent train --recipe NAME --twin` tests in minutes every code path of a run on GPUs except those of CUDA itself.
"""

from collections.abc import Sequence
from typing import Any

from s3_agent.recipe import Recipe, load_recipe, merge_overrides

STEPS = 2
QUESTIONS_PER_UPDATE = 4


def load_twin(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The twin of the recipe `name`, with overrides of the twin's own values. Raises ConfigError."""
    small, large = load_recipe("cpu"), load_recipe(name)
    values = large.model_dump(mode="json") | small.model_dump(
        mode="json", include={"policy", "retriever", "generator", "judge", "workers", "gpus"}
    )
    values["name"] = f"{large.name}-twin"
    values["data"] = small.data.model_dump(mode="json") | {"validation_size": 8}
    if large.data.rag_cache is None:
        values["data"]["rag_cache"] = None
    values["agent"]["prompt"] = "compact"  # the nano policy reads no instructions
    values["agent"]["limits"] |= _limits(small, large)
    values["trainer"] |= _trainer(small, large)
    for service in ("retriever", "generator", "gateway"):
        values[service]["port"] = 0
    return merge_overrides(values, overrides, where=f"the twin of {large.name}")


def _limits(small: Recipe, large: Recipe) -> dict[str, Any]:
    """The nano policy's lengths and passages; values that the agent does not limit stay without a limit."""
    limits = small.agent.limits.model_dump()
    if not large.agent.limits.initial_topk:
        limits["initial_topk"] = 0
    if large.agent.limits.max_observation_tokens is None:
        limits["max_observation_tokens"] = None
    return limits


def _trainer(small: Recipe, large: Recipe) -> dict[str, Any]:
    cpu, trainer = small.trainer, large.trainer
    row, small_row = trainer.prompt_tokens + trainer.response_tokens, cpu.prompt_tokens + cpu.response_tokens
    packed = trainer.tokens_per_gpu and trainer.tokens_per_gpu * small_row // row
    questions = QUESTIONS_PER_UPDATE * (trainer.questions_per_step // trainer.mini_batch)
    return {
        "device": "cpu",
        "gpus": 1,
        "steps": STEPS,
        "questions_per_step": questions,
        "async_questions": questions if trainer.async_questions else 0,  # enough that some are asked during an update
        "questions_per_update": QUESTIONS_PER_UPDATE,
        "learning_rate": cpu.learning_rate,
        "prompt_tokens": cpu.prompt_tokens,
        "response_tokens": cpu.response_tokens,
        "tokens_per_gpu": packed,
        "tensor_parallel": 1,
        "checkpoint_every": 1,
        "validate_every": STEPS,
        "rollout_timeout_s": cpu.rollout_timeout_s,
        "verl": {},  # the recipe's overrides are lengths for the calls of the large policy
    }
