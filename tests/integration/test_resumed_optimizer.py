"""What verl's own engine trains with after it has loaded a checkpoint, on two ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.resumed_ranks import OTHER, STARTED
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(300)

RANKS = Path(__file__).with_name("resumed_ranks.py")


@pytest.fixture(scope="module", params=["full", "lora"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank printed."""
    folder = tmp_path_factory.mktemp(request.param)
    ends = run_ranks(RANKS, folder / "store", str(folder / "actor"), request.param, within_s=250)
    assert [done.returncode for done in ends] == [0, 0], ends[0].stderr[-3000:]
    return [json.loads(done.stdout.splitlines()[-1]) for done in ends]


def test_without_a_change_the_run_continues_bit_for_bit(told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert all(rank["unchanged"].values()), rank["unchanged"]


def test_the_next_update_has_the_settings_of_the_recipe_and_the_saved_moments(told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert rank["moments"] and rank["position"] == 2
        found = rank["other"]
        assert found["as_torch"] and found["moved"], "torch's own AdamW with these settings and these moments"
        assert found["options"]["lr"] == OTHER["lr"], "the new warm-up is over after two updates"
        assert [found["options"]["initial_lr"], *found["last"], found["logged"]] == [OTHER["lr"]] * 3
        assert found["options"]["weight_decay"] == OTHER["weight_decay"]
        assert tuple(found["options"]["betas"]) == OTHER["betas"]


def test_verl_itself_keeps_the_settings_of_the_checkpoint(told: list[dict[str, Any]]) -> None:
    """That there is still something to fix."""
    for rank in told:
        kept = rank["theirs"]
        assert kept["lr"] == STARTED["lr"] / 2 and kept["initial_lr"] == STARTED["lr"]
        assert kept["weight_decay"] == STARTED["weight_decay"] and tuple(kept["betas"]) == STARTED["betas"]
