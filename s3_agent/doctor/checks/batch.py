"""Checks whether the batches divide as verl and Agent Lightning require.

A recipe's own fields are checked when it is loaded, but `trainer.verl` can still change any of them. So these checks
read verl's final configuration. AGL cuts the rows of a step down to whole mini-batches and drops the rest.
"""

from collections.abc import Iterator
from math import prod

from s3_agent.agl.verl_config import ESTIMATOR
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.doctor.training import Engine, Training

_ROLLOUT = "trainer.verl.actor_rollout_ref.rollout"
_ACTOR = "trainer.verl.actor_rollout_ref.actor"
REWARD_ALONE = frozenset({"grpo", "grpo_vectorized", "rloo", "opo", "gpg", "gdpo", "reinforce_plus_plus_baseline"})
"""verl's estimators that compare the rollouts of a question, and use the raw reward of a rollout that is alone."""


def check_batch(case: Case) -> Iterator[Finding]:
    """Batch sizes, their division among GPUs, and the rows that AGL would drop."""
    if (training := case.training) is None:
        return
    yield from _mini_batches(training, spare=case.recipe.trainer.spare_questions * training.rollouts)
    for engine in training.engines:
        yield from _engine(training, engine)
    yield from _rollout(training)
    yield from _heads(case, training)
    if training.rollouts < 2:
        yield error(
            "batch.group-of-one",
            what="each question has one rollout",
            why="rollouts of a question are compared with each other: "
            + (
                "the advantage of a single one is its raw reward in verl, so all of them are reinforced"
                if training.estimator in REWARD_ALONE
                else "a single one has nothing to be compared with, so nothing is learned"
            ),
            fix="set trainer.rollouts_per_question=4 and take rollout.n out of trainer.verl",
        )
    elif training.estimator in REWARD_ALONE:
        yield warning(
            "batch.lone-reward",
            what=f"the advantage estimator is verl's {training.estimator}",
            why="if rows are lost or dropped, and a question has one rollout left, its advantage is its raw reward",
            fix=f"take adv_estimator out of trainer.verl: {ESTIMATOR} is GRPO in which such a rollout counts 0",
        )
    if not training.level.startswith("trajectory"):
        yield warning(
            "batch.rows-per-turn",
            what=f"agentlightning.trace_aggregator.level is {training.level}: every turn becomes a row",
            why="a step has more rows, and more optimizer updates, the more turns the policy takes"
            + ("" if training.max_update_times else ", without a limit"),
            fix="take trace_aggregator out of trainer.verl, or set trainer.max_updates",
        )
    if training.asynchronous and not training.corrected:
        yield warning(
            "batch.async-uncorrected",
            what="rollouts span updates (trainer.async_questions), and trainer.importance_cap is not set",
            why="the update takes every token as if the newest policy had sampled it",
            fix="set trainer.importance_cap=2.0",
        )
    if training.critic and training.rollout_advantage:
        yield error(
            "batch.rollout-advantage",
            what="the advantage estimator is gae, and algorithm.enable_rollout_level_advantage is on",
            why="rollout-level advantages replace the critic's: the critic would be trained but not used",
            fix="set trainer.verl.algorithm.enable_rollout_level_advantage=false",
        )


def _mini_batches(training: Training, *, spare: int) -> Iterator[Finding]:
    """`spare` rows of a step are played to replace others: AGL is meant to drop as many."""
    rows, mini = training.rows - spare, training.mini_batch_rows
    if mini > rows:
        yield error(
            "batch.mini-batch-too-large",
            what=f"a mini-batch has {mini} rows, but a step has {rows}",
            why="no step fills a mini-batch: verl refuses this, or AGL drops every row and skips every step",
            fix="set trainer.questions_per_update to a divisor of trainer.questions_per_step",
        )
        return
    if rows % mini:
        yield error(
            "batch.rows-dropped",
            what=f"{rows % mini} of a step's {rows} rows are dropped: mini-batches have {mini}",
            why="AGL cuts the rows of a step down to whole mini-batches: the rollouts of the other rows are lost",
            fix="set trainer.questions_per_update to a divisor of trainer.questions_per_step",
        )
    if training.max_update_times is not None and training.max_update_times * mini < rows - rows % mini:
        yield error(
            "batch.updates-capped",
            what=f"max_ppo_update_times={training.max_update_times} trains {training.max_update_times * mini} of a "
            f"step's {rows} rows",
            why="AGL drops the other rows, and first those of groups with equal rewards",
            fix="raise trainer.max_updates, or trainer.questions_per_update",
        )


def _engine(training: Training, engine: Engine) -> Iterator[Finding]:
    """Whether a model's sizes divide the ranks that it is spread over."""
    ranks, together, copy = training.ranks, engine.sequence_parallel, engine.fsdp_size
    if 0 < copy < ranks and ranks % copy:
        yield error(
            "batch.fsdp-size",
            what=f"{ranks} ranks can not be divided by fsdp_size={copy} ({engine.place})",
            why="verl's `create_device_mesh` makes only complete groups of that size: the last ranks are in no group "
            "and fail when the workers start",
            fix=f"set fsdp_size to -1 (all ranks) or to a divisor of {ranks}",
        )
    if ranks % together:
        yield error(
            "batch.sequence-parallel",
            what=f"{ranks} ranks can not be divided by ulysses_sequence_parallel_size={together} ({engine.place})",
            why="that many ranks share each row: verl's engine makes only complete groups, so the last ranks are in "
            "no group and fail when the workers start",
            fix=f"set {engine.place}.ulysses_sequence_parallel_size to a divisor of {ranks}",
        )
        return
    if together > 1 and not training.remove_padding:
        yield error(
            "batch.sequence-parallel-padding",
            what=f"ulysses_sequence_parallel_size is more than 1 ({engine.place}), and rows are padded",
            why="verl's FSDPActorConfig refuses sequence parallelism without `use_remove_padding`",
            fix="set trainer.verl.actor_rollout_ref.model.use_remove_padding=true",
        )
    yield from _rows_of_a_rank(training, engine, ranks // together)


def _rows_of_a_rank(training: Training, engine: Engine, parallel: int) -> Iterator[Finding]:
    """Whether a mini-batch divides among `parallel` groups of ranks, each of which gets different rows."""
    questions = engine.mini_batch_size or training.mini_batch_size
    mini = questions * training.rollouts
    if mini % parallel:
        yield error(
            "batch.mini-batch-gpus",
            what=f"a mini-batch of {mini} rows can not be divided among {parallel} data-parallel GPUs ({engine.place})",
            why="verl's `train_mini_batch` stops the run with an assertion after the first step's rollouts",
            fix="change trainer.questions_per_update, trainer.rollouts_per_question or trainer.gpus",
        )
        return
    if engine.dynamic:
        return
    if engine.name == "actor" and training.rows % training.ranks:
        yield error(
            "batch.rows-gpus",
            what=f"a step's {training.rows} rows can not be divided among {training.ranks} GPUs",
            why="verl's `validate_config` stops the trainer at its start with an assertion",
            fix="change trainer.questions_per_step, trainer.spare_questions or trainer.gpus, or set "
            "trainer.tokens_per_gpu",
        )
    for place, micro in engine.micro_batches.items():
        if micro and (mini // parallel) % micro:
            trained = place.endswith("ppo_micro_batch_size_per_gpu")
            yield error(
                "batch.micro-batch" if trained else "batch.log-prob-micro-batch",
                what=f"the {mini // parallel} rows of a GPU can not be divided into "
                f"{'training' if trained else 'log-prob'} micro batches of {micro} ({engine.name})",
                why="verl's `prepare_micro_batches` stops the run with an assertion after the first step's rollouts",
                fix=f"set trainer.micro_batch to a divisor of {mini // parallel} and take {place} out, or set "
                "trainer.tokens_per_gpu",
            )


def _splits_nodes(server: int, sizes: tuple[int, int, int], node: int) -> bool:
    here = min(server, node)
    return server % here > 0 or node % here > 0 or (sizes[1] > 1 and here % sizes[0] > 0)


def _rollout(training: Training) -> Iterator[Finding]:
    """Whether the policy servers' ranks divide those of the trainer, because both use the same GPUs."""
    ranks, sizes = training.ranks, training.rollout_parallel
    server = prod(sizes)
    named = "tensor_model_parallel_size" if server == sizes[0] else "tensor x data x pipeline parallel sizes"
    if ranks % server:
        yield error(
            "batch.tensor-parallel",
            what=f"{ranks} GPUs can not be divided by {named}={server}",
            why="verl stops with an assertion when it builds its policy servers",
            fix="set trainer.tensor_parallel to a divisor of trainer.gpus",
        )
    elif _splits_nodes(server, sizes, training.gpus):
        yield error(
            "batch.server-nodes",
            what=f"policy servers of {server} GPUs (tensor, data, pipeline parallel: {sizes}) do not fit nodes of "
            f"{training.gpus} GPUs",
            why="verl places a server on GPUs of one node, or on whole nodes; if it is also data parallel, its tensor "
            "parallel GPUs must be on one node",
            fix="set trainer.tensor_parallel to a divisor of trainer.gpus",
        )
    if training.rollout_dynamic != training.engines[0].dynamic:
        yield error(
            "batch.dynamic",
            what="actor.use_dynamic_bsz and rollout.log_prob_use_dynamic_bsz differ",
            why="when the workers start, verl asserts that training and log-probs pack rows in the same way",
            fix=f"take {_ROLLOUT}.log_prob_use_dynamic_bsz out of trainer.verl: trainer.tokens_per_gpu sets both",
        )


def _heads(case: Case, training: Training) -> Iterator[Finding]:
    if (shape := case.shape("policy")) is None:
        return
    sizes = {"trainer.tensor_parallel": training.tensor_parallel}
    for engine in training.engines:
        if engine.name != "critic":
            sizes[f"{engine.place}.ulysses_sequence_parallel_size"] = engine.sequence_parallel
    for place, size in sizes.items():
        if shape.heads % size:
            what = f"{shape.heads} attention heads can not be divided by {size} ({place})"
        elif shape.kv_heads % size and size % shape.kv_heads:
            what = f"{shape.kv_heads} key-value heads and {size} ({place}): neither divides the other"
        else:
            continue
        yield error(
            "batch.heads",
            what=what,
            why="each GPU takes whole heads: vLLM and verl refuse the model",
            fix="set it to a divisor of the heads",
        )
