"""Checks whether the longest episode fits the policy server's window and the rows that the trainer keeps."""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.doctor.serving_memory import read_options
from s3_agent.doctor.training import Training


def check_lengths(case: Case) -> Iterator[Finding]:
    """Token counts from the first prompt to the longest row."""
    yield from _episode(case)
    if (training := case.training) is not None:
        yield from _kept(case, training)
        yield from _served(case, training)
    yield from _generator(case)


def _episode(case: Case) -> Iterator[Finding]:
    limits, prompt = case.recipe.agent.limits, case.first_prompt
    if prompt is not None and prompt >= limits.max_context_tokens:
        yield error(
            "lengths.first-prompt",
            what=f"a first prompt has {prompt} tokens, but agent.limits.max_context_tokens is "
            f"{limits.max_context_tokens}",
            why="passages are left out of the prompt, and a task whose question is too long even then fails",
            fix="raise agent.limits.max_context_tokens, or lower agent.limits.initial_topk",
        )
    if limits.max_observation_tokens is None:
        return
    turns = limits.generations * limits.max_new_tokens + limits.max_searches * limits.max_observation_tokens
    if turns > limits.max_context_tokens:
        yield warning(
            "lengths.context",
            what=f"{limits.generations} responses of {limits.max_new_tokens} and {limits.max_searches} observations of "
            f"{limits.max_observation_tokens} tokens are {turns} tokens, but the context holds "
            f"{limits.max_context_tokens}",
            why="long episodes end before their last turn, and the policy learns to be short only for that reason",
            fix=f"set agent.limits.max_context_tokens and trainer.response_tokens to {turns}, or lower "
            "agent.limits.max_observation_tokens",
        )


def _kept(case: Case, training: Training) -> Iterator[Finding]:
    limits, prompt = case.recipe.agent.limits, case.first_prompt
    if prompt is not None and prompt > training.kept_prompt:
        yield error(
            "lengths.prompt-dropped",
            what=f"a first prompt has {prompt} tokens, but the trainer keeps {training.kept_prompt}",
            why="AGL drops a row with a longer prompt: it is played and never trained on",
            fix=f"set trainer.prompt_tokens={-(-prompt // 256) * 256}, or lower agent.limits.initial_topk",
        )
    if limits.max_context_tokens > training.kept_response:
        yield error(
            "lengths.response-cut",
            what=f"an episode may have {limits.max_context_tokens} tokens, but the trainer keeps "
            f"{training.kept_response} after the first prompt",
            why="AGL cuts longer rows (`training/n_truncated_sample`): their last turns are never trained on",
            fix="raise trainer.response_tokens and take trajectory_max_response_length out of trainer.verl",
        )
    budget = training.sequence_parallel * training.tokens_per_gpu
    if training.dynamic and budget < training.length:
        yield error(
            "lengths.token-budget",
            what=f"a micro batch holds {budget} tokens, but the longest row has {training.length}",
            why="verl asserts that every row fits a micro batch: the first long row ends the run",
            fix=f"set trainer.tokens_per_gpu={training.length} or more",
        )


def _served(case: Case, training: Training) -> Iterator[Finding]:
    limits, shape = case.recipe.agent.limits, case.shape("policy")
    if training.max_model_len is not None and training.max_model_len < limits.max_context_tokens:
        yield warning(
            "lengths.policy-server",
            what=f"the policy server takes {training.max_model_len} tokens, but an episode may have "
            f"{limits.max_context_tokens}",
            why="episodes end when the server's window is full, before the limit that the recipe sets",
            fix="lower agent.limits.max_context_tokens, or raise rollout.max_model_len in trainer.verl",
        )
    if shape is not None and training.max_model_len is not None and training.max_model_len > shape.positions:
        yield error(
            "lengths.positions",
            what=f"rollout.max_model_len is {training.max_model_len}, but the policy has {shape.positions} positions",
            why="verl refuses this when the policy server starts",
            fix="lower trainer.prompt_tokens + trainer.response_tokens",
        )


def _generator(case: Case) -> Iterator[Finding]:
    generator, shape = case.recipe.generator, case.shape("generator")
    if not generator.hosted or not case.recipe.agent.asks_generator:
        return
    served = read_options(generator.serve).max_model_len
    if served is not None and shape is not None and served > shape.positions:
        yield error(
            "lengths.generator-positions",
            what=f"generator.serve asks for --max-model-len {served}, but the model has {shape.positions} positions",
            why="vLLM refuses to start",
            fix=f"set --max-model-len {shape.positions} in generator.serve",
        )
    if served is not None and generator.context_tokens is not None and generator.context_tokens > served:
        yield error(
            "lengths.generator-window",
            what=f"generator.context_tokens is {generator.context_tokens}, but its server takes {served}",
            why="the server would refuse long selections, and their rollouts would fail",
            fix=f"set generator.context_tokens={served}, or leave it out: then the server is asked for its window",
        )
