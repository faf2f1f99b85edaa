"""The doctor's findings on sizes and ranks are where verl's own functions refuse, and nowhere else."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from s3_agent.agl.verl_config import trainer_config
from s3_agent.doctor.checks.batch import check_batch
from s3_agent.doctor.training import Training, read_training
from s3_agent.errors import ConfigError
from tests.doctor_cases import settings, sound, training

pytest.importorskip("verl")
SIZES = range(1, 9)
VERL = "trainer.verl.actor_rollout_ref"


def found(chosen: Training) -> set[str]:
    case = sound("s3_3b_8x40gb")
    return {finding.id for finding in check_batch(replace(case, training=chosen, models={}))}


def spread(ranks: int, **engine: int) -> Training:
    """A training on `ranks` GPUs whose batches divide by everything."""
    chosen = training("s3_3b_8x40gb")
    [actor, *_] = chosen.engines
    changed = replace(actor, **engine)
    return replace(chosen, gpus=ranks, train_batch_size=840, mini_batch_size=840, engines=(changed,))


@pytest.fixture(params=SIZES)
def ranks(request: pytest.FixtureRequest) -> Iterator[int]:
    """torch.distributed as the last of so many ranks, none of which exists."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=request.param - 1, world_size=request.param, store=FakeStore())
    yield request.param
    dist.destroy_process_group()


def refuses(ranks: int, *, fsdp_size: int = -1, sequence_parallel: int = 1) -> bool:
    """Whether verl's engine can not make its groups, or leaves the last rank out of them."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    engine = FSDPEngine.__new__(FSDPEngine)
    vars(engine)["engine_config"] = SimpleNamespace(
        fsdp_size=fsdp_size, ulysses_sequence_parallel_size=sequence_parallel
    )
    try:
        engine._init_device_mesh()
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return True
    meshes = [engine.device_mesh, *([engine.ulysses_device_mesh] if engine.ulysses_device_mesh else [])]
    return any(mesh.get_coordinate() is None for mesh in meshes)


def test_sequence_parallel_ranks(ranks: int) -> None:
    for size in SIZES:
        told = found(spread(ranks, sequence_parallel=size, fsdp_size=-1))
        assert ("batch.sequence-parallel" in told) == refuses(ranks, sequence_parallel=size), (ranks, size)


def test_the_ranks_of_one_copy_of_the_weights(ranks: int) -> None:
    for size in (-1, *SIZES):
        told = found(spread(ranks, sequence_parallel=1, fsdp_size=size))
        assert ("batch.fsdp-size" in told) == refuses(ranks, fsdp_size=size), (ranks, size)


@pytest.mark.parametrize("gpus", [1, 2, 4, 6, 8])
def test_policy_servers_across_nodes(gpus: int) -> None:
    from verl.workers.rollout.replica import RolloutReplica

    for tensor in SIZES:
        for data in (1, 2, 3):
            chosen = replace(spread(gpus), nodes=2, rollout_parallel=(tensor, data, 1), tensor_parallel=tensor)
            told = found(chosen) & {"batch.tensor-parallel", "batch.server-nodes"}
            config = SimpleNamespace(
                tensor_model_parallel_size=tensor, data_parallel_size=data, pipeline_model_parallel_size=1
            )
            divides = 2 * gpus % (tensor * data) == 0  # asserted by verl's ActorRolloutRefWorker.init_model
            try:
                RolloutReplica.__init__(SimpleNamespace(), 0, config, None, gpus)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
            except AssertionError:
                assert told, (gpus, tensor, data)
            else:
                assert divides or told, (gpus, tensor, data)


@pytest.mark.parametrize(("questions", "refused"), [(120, False), (115, True)])
def test_the_rows_of_a_step(questions: int, refused: bool) -> None:
    from verl.utils.config import validate_config

    changes = [
        f"trainer.verl.data.train_batch_size={questions}",
        f"{VERL}.actor.ppo_mini_batch_size={questions}",
        f"{VERL}.actor.use_dynamic_bsz=false",
        f"{VERL}.rollout.n=2",
        "trainer.kl_loss=0.001",
    ]
    config = trainer_config(settings("s3_3b_8x40gb", *changes), gateway_key="")
    told = found(read_training(config))
    assert ("batch.rows-gpus" in told or "batch.mini-batch-gpus" in told) == refused
    if refused:
        with pytest.raises(AssertionError, match="must be divisible by minimal possible batch size"):
            validate_config(config=config, use_reference_policy=True, use_critic=False)
    else:
        validate_config(config=config, use_reference_policy=True, use_critic=False)


@pytest.mark.parametrize(
    "place",
    [
        "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size",
        "actor_rollout_ref.actor.fsdp_config.fsdp_size",
        "actor_rollout_ref.rollout.tensor_model_parallel_size",
        "actor_rollout_ref.rollout.n",
        "trainer.n_gpus_per_node",
    ],
)
def test_a_size_of_nothing_is_refused(place: str) -> None:
    config = trainer_config(settings("s3_3b_8x40gb", f"trainer.verl.{place}=0"), gateway_key="")
    with pytest.raises(ConfigError, match=f"{place} is 0"):
        read_training(config)


def test_the_older_key_counts_where_verl_lets_it() -> None:
    config = trainer_config(
        settings(
            "s3_3b_8x40gb",
            f"{VERL}.actor.ulysses_sequence_parallel_size=2",
            f"{VERL}.actor.fsdp_config.ulysses_sequence_parallel_size=3",
        ),
        gateway_key="",
    )
    from verl.utils.config import omega_conf_to_dataclass

    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.engine.ulysses_sequence_parallel_size == read_training(config).sequence_parallel == 2
