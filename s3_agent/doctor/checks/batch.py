"""Do the batches divide as verl and Agent Lightning need them to?

A recipe's own fields are checked when it is loaded; `trainer.verl` can still change any of them, so what is checked
here is what verl is told in the end. AGL floors the rows of a step to whole mini-batches and drops the rest.
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
"""verl's estimators that compare the rollouts of a question, and take the reward of one that is alone as it is."""


def check_batch(case: Case) -> Iterator[Finding]:
    """Batch sizes, their division among GPUs, and what AGL would drop."""
    if (training := case.training) is None:
        return
    yield from _mini_batches(training)
    for engine in training.engines:
        yield from _engine(training, engine)
    yield from _rollout(training)
    yield from _heads(case, training)
    if training.rollouts < 2:
        yield error(
            "batch.group-of-one",
            what="one rollout a question",
            why="rollouts of a question are compared with each other: "
            + (
                "verl takes the raw reward of one alone for its advantage, so that all of them are reinforced"
                if training.estimator in REWARD_ALONE
                else "one alone has nothing to be compared with, and nothing is learned"
            ),
            fix="set trainer.rollouts_per_question=4 and take rollout.n out of trainer.verl",
        )
    elif training.estimator in REWARD_ALONE:
        yield warning(
            "batch.lone-reward",
            what=f"the advantage estimator is verl's {training.estimator}",
            why="where rows are lost or dropped, a question with one rollout left gets its raw reward for an advantage",
            fix=f"take adv_estimator out of trainer.verl: {ESTIMATOR} is GRPO in which such a rollout counts 0",
        )
    if not training.level.startswith("trajectory"):
        yield warning(
            "batch.rows-per-turn",
            what=f"agentlightning.trace_aggregator.level is {training.level}: every turn becomes a row",
            why="the rows of a step, and with them its optimizer updates, grow with the turns that the policy takes"
            + ("" if training.max_update_times else ", without a limit"),
            fix="take trace_aggregator out of trainer.verl, or set trainer.max_updates",
        )
    if training.critic and training.rollout_advantage:
        yield error(
            "batch.rollout-advantage",
            what="the advantage estimator is gae, and algorithm.enable_rollout_level_advantage is on",
            why="rollout-level advantages replace the critic's: it would be trained and not used",
            fix="set trainer.verl.algorithm.enable_rollout_level_advantage=false",
        )


def _mini_batches(training: Training) -> Iterator[Finding]:
    rows, mini = training.rows, training.mini_batch_rows
    if mini > rows:
        yield error(
            "batch.mini-batch-too-large",
            what=f"a mini-batch has {mini} rows, a step {rows}",
            why="no step has a whole mini-batch: verl refuses it, or AGL drops every row and skips every step",
            fix="set trainer.questions_per_update to a divisor of trainer.questions_per_step",
        )
        return
    if rows % mini:
        yield error(
            "batch.rows-dropped",
            what=f"{rows % mini} of a step's {rows} rows are dropped: mini-batches have {mini}",
            why="AGL floors the rows of a step to whole mini-batches: what was played for the rest is thrown away",
            fix="set trainer.questions_per_update to a divisor of trainer.questions_per_step",
        )
    if training.max_update_times is not None and training.max_update_times * mini < rows - rows % mini:
        yield error(
            "batch.updates-capped",
            what=f"max_ppo_update_times={training.max_update_times} trains {training.max_update_times * mini} of a "
            f"step's {rows} rows",
            why="AGL drops the others, those of groups with equal rewards first",
            fix="raise trainer.max_updates, or trainer.questions_per_update",
        )


def _engine(training: Training, engine: Engine) -> Iterator[Finding]:
    """A model's sizes against the ranks that it is spread over."""
    ranks, together, copy = training.ranks, engine.sequence_parallel, engine.fsdp_size
    if 0 < copy < ranks and ranks % copy:
        yield error(
            "batch.fsdp-size",
            what=f"{ranks} ranks can not be divided by fsdp_size={copy} ({engine.place})",
            why="verl's `create_device_mesh` makes whole groups of so many ranks: the last ranks are in none and fail "
            "when the workers start",
            fix=f"set fsdp_size to -1 (all ranks) or to a divisor of {ranks}",
        )
    if ranks % together:
        yield error(
            "batch.sequence-parallel",
            what=f"{ranks} ranks can not be divided by ulysses_sequence_parallel_size={together} ({engine.place})",
            why="so many ranks share each row: verl's engine makes whole groups of them, and the last ranks are in "
            "none and fail when the workers start",
            fix=f"set {engine.place}.ulysses_sequence_parallel_size to a divisor of {ranks}",
        )
        return
    if together > 1 and not training.remove_padding:
        yield error(
            "batch.sequence-parallel-padding",
            what=f"ulysses_sequence_parallel_size is more than 1 ({engine.place}) with padded rows",
            why="verl's FSDPActorConfig refuses sequence parallelism without `use_remove_padding`",
            fix="set trainer.verl.actor_rollout_ref.model.use_remove_padding=true",
        )
    yield from _rows_of_a_rank(training, engine, ranks // together)


def _rows_of_a_rank(training: Training, engine: Engine, parallel: int) -> Iterator[Finding]:
    """How a mini-batch divides among the `parallel` groups of ranks that see rows of their own."""
    questions = engine.mini_batch_size or training.mini_batch_size
    mini = questions * training.rollouts
    if mini % parallel:
        yield error(
            "batch.mini-batch-gpus",
            what=f"a mini-batch of {mini} rows can not be divided among {parallel} data-parallel GPUs ({engine.place})",
            why="verl's `train_mini_batch` asserts it, after the first step's rollouts were played",
            fix="change trainer.questions_per_update, trainer.rollouts_per_question or trainer.gpus",
        )
        return
    if engine.dynamic:
        return
    if engine.name == "actor" and training.rows % training.ranks:
        yield error(
            "batch.rows-gpus",
            what=f"a step's {training.rows} rows can not be divided among {training.ranks} GPUs",
            why="verl's `validate_config` asserts it when the trainer starts",
            fix="change trainer.questions_per_step or trainer.gpus, or set trainer.tokens_per_gpu",
        )
    for place, micro in engine.micro_batches.items():
        if micro and (mini // parallel) % micro:
            trained = place.endswith("ppo_micro_batch_size_per_gpu")
            yield error(
                "batch.micro-batch" if trained else "batch.log-prob-micro-batch",
                what=f"{mini // parallel} rows a GPU can not be divided into {'training' if trained else 'log-prob'} "
                f"micro batches of {micro} ({engine.name})",
                why="verl's `prepare_micro_batches` asserts it, after the first step's rollouts were played",
                fix=f"set trainer.micro_batch to a divisor of {mini // parallel} and take {place} out, or set "
                "trainer.tokens_per_gpu",
            )


def _splits_nodes(server: int, sizes: tuple[int, int, int], node: int) -> bool:
    here = min(server, node)
    return server % here > 0 or node % here > 0 or (sizes[1] > 1 and here % sizes[0] > 0)


def _rollout(training: Training) -> Iterator[Finding]:
    """The policy servers' ranks against the trainer's, which they share."""
    ranks, sizes = training.ranks, training.rollout_parallel
    server = prod(sizes)
    named = "tensor_model_parallel_size" if server == sizes[0] else "tensor x data x pipeline parallel sizes"
    if ranks % server:
        yield error(
            "batch.tensor-parallel",
            what=f"{ranks} GPUs can not be divided by {named}={server}",
            why="verl asserts it when it builds its policy servers",
            fix="set trainer.tensor_parallel to a divisor of trainer.gpus",
        )
    elif _splits_nodes(server, sizes, training.gpus):
        yield error(
            "batch.server-nodes",
            what=f"policy servers of {server} GPUs (tensor, data, pipeline parallel: {sizes}) do not go with nodes of "
            f"{training.gpus} GPUs",
            why="verl places a server on GPUs of one node, or on whole nodes, with its tensor parallel GPUs on one of "
            "them where it is also data parallel",
            fix="set trainer.tensor_parallel to a divisor of trainer.gpus",
        )
    if training.rollout_dynamic != training.engines[0].dynamic:
        yield error(
            "batch.dynamic",
            what="actor.use_dynamic_bsz and rollout.log_prob_use_dynamic_bsz differ",
            why="verl asserts that training and log-probs are packed alike, when the workers start",
            fix=f"take {_ROLLOUT}.log_prob_use_dynamic_bsz out of trainer.verl, and set trainer.tokens_per_gpu or not",
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
            what = f"of {shape.kv_heads} key-value heads and {size} ({place}) neither divides the other"
        else:
            continue
        yield error(
            "batch.heads",
            what=what,
            why="each GPU takes whole heads: vLLM and verl refuse the model",
            fix="set it to a divisor of the heads",
        )
