"""Do the batches divide as verl and Agent Lightning need them to?

A recipe's own fields are checked when it is loaded; `trainer.verl` can still change any of them, so what is checked
here is what verl is told in the end. AGL floors the rows of a step to whole mini-batches and drops the rest.
"""

from collections.abc import Iterator

from s3_agent.agl.verl_config import ESTIMATOR
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.doctor.training import Training

_ROLLOUT = "trainer.verl.actor_rollout_ref.rollout"
_ACTOR = "trainer.verl.actor_rollout_ref.actor"
REWARD_ALONE = frozenset({"grpo", "grpo_vectorized", "rloo", "opo", "gpg", "gdpo", "reinforce_plus_plus_baseline"})
"""verl's estimators that compare the rollouts of a question, and take the reward of one that is alone as it is."""


def check_batch(case: Case) -> Iterator[Finding]:
    """Batch sizes, their division among GPUs, and what AGL would drop."""
    if (training := case.training) is None:
        return
    yield from _mini_batches(training)
    yield from _micro_batches(training)
    yield from _parallel(case, training)
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
            mend="set trainer.rollouts_per_question=4 and take rollout.n out of trainer.verl",
        )
    elif training.estimator in REWARD_ALONE:
        yield warning(
            "batch.lone-reward",
            what=f"the advantage estimator is verl's {training.estimator}",
            why="where rows are lost or dropped, a question with one rollout left gets its raw reward for an advantage",
            mend=f"take adv_estimator out of trainer.verl: {ESTIMATOR} is GRPO in which such a rollout counts 0",
        )
    if not training.level.startswith("trajectory"):
        yield warning(
            "batch.rows-per-turn",
            what=f"agentlightning.trace_aggregator.level is {training.level}: every turn becomes a row",
            why="the rows of a step, and with them its optimizer updates, grow with the turns that the policy takes"
            + ("" if training.max_update_times else ", without a limit"),
            mend="take trace_aggregator out of trainer.verl, or set trainer.max_updates",
        )
    if training.critic and training.rollout_advantage:
        yield error(
            "batch.rollout-advantage",
            what="the advantage estimator is gae, and algorithm.enable_rollout_level_advantage is on",
            why="rollout-level advantages replace the critic's: it would be trained and not used",
            mend="set trainer.verl.algorithm.enable_rollout_level_advantage=false",
        )


def _mini_batches(training: Training) -> Iterator[Finding]:
    rows, mini = training.rows, training.mini_batch_rows
    if mini > rows:
        yield error(
            "batch.mini-batch-too-large",
            what=f"a mini-batch has {mini} rows, a step {rows}",
            why="no step has a whole mini-batch: verl refuses it, or AGL drops every row and skips every step",
            mend="set trainer.questions_per_update to a divisor of trainer.questions_per_step",
        )
        return
    if rows % mini:
        yield error(
            "batch.rows-dropped",
            what=f"{rows % mini} of a step's {rows} rows are dropped: mini-batches have {mini}",
            why="AGL floors the rows of a step to whole mini-batches: what was played for the rest is thrown away",
            mend="set trainer.questions_per_update to a divisor of trainer.questions_per_step",
        )
    if training.max_update_times is not None and training.max_update_times * mini < rows - rows % mini:
        yield error(
            "batch.updates-capped",
            what=f"max_ppo_update_times={training.max_update_times} trains {training.max_update_times * mini} of a "
            f"step's {rows} rows",
            why="AGL drops the others, those of groups with equal rewards first",
            mend="raise trainer.max_updates, or trainer.questions_per_update",
        )


def _micro_batches(training: Training) -> Iterator[Finding]:
    mini, ranks = training.mini_batch_rows, training.data_parallel
    if mini % ranks:
        yield error(
            "batch.mini-batch-gpus",
            what=f"a mini-batch of {mini} rows can not be divided among {ranks} data-parallel GPUs",
            why="verl's `train_mini_batch` asserts it, after the first step's rollouts were played",
            mend="change trainer.questions_per_update, trainer.rollouts_per_question or trainer.gpus",
        )
        return
    if training.dynamic:
        return
    for id, name, micro, place in (
        ("batch.micro-batch", "training", training.micro_batch, f"{_ACTOR}.ppo_micro_batch_size_per_gpu"),
        (
            "batch.log-prob-micro-batch",
            "log-prob",
            training.log_prob_micro_batch,
            f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu",
        ),
    ):
        if micro and (mini // ranks) % micro:
            yield error(
                id,
                what=f"{mini // ranks} rows a GPU can not be divided into {name} micro batches of {micro}",
                why="verl's `prepare_micro_batches` asserts it, after the first step's rollouts were played",
                mend=f"set trainer.micro_batch to a divisor of {mini // ranks} and take {place} out, or set "
                "trainer.tokens_per_gpu",
            )


def _parallel(case: Case, training: Training) -> Iterator[Finding]:
    gpus, shape = training.gpus * training.nodes, case.shape("policy")
    if gpus % training.tensor_parallel:
        yield error(
            "batch.tensor-parallel",
            what=f"{gpus} GPUs can not be divided by tensor_model_parallel_size={training.tensor_parallel}",
            why="verl asserts it when it builds its policy servers",
            mend="set trainer.tensor_parallel to a divisor of trainer.gpus",
        )
    for size, name in ((training.tensor_parallel, "trainer.tensor_parallel"), (training.sequence_parallel, _ACTOR)):
        if shape is not None and shape.heads % size:
            yield error(
                "batch.heads",
                what=f"{shape.heads} attention heads can not be divided by {size} ({name})",
                why="each GPU takes whole heads: vLLM and verl refuse the model",
                mend="set it to a divisor of the heads",
            )
    if training.sequence_parallel > 1 and not training.remove_padding:
        yield error(
            "batch.sequence-parallel-padding",
            what="ulysses_sequence_parallel_size is more than 1 with padded rows",
            why="verl's FSDPActorConfig refuses sequence parallelism without `use_remove_padding`",
            mend="set trainer.verl.actor_rollout_ref.model.use_remove_padding=true",
        )
