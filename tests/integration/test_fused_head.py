"""Fused log-probs of an untied policy: two ranks over gloo, sharded by verl's own functions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from s3_agent.embedded import NANO_POLICY
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(180)

RANKS = Path(__file__).with_name("fused_ranks.py")


def test_losses_and_gradients_are_those_of_the_models_own_logits(tmp_path: Path) -> None:
    for done in run_ranks(RANKS, tmp_path / "store", "s3_agent.agl.fused_head", within_s=150):
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["fused"] == pytest.approx(found["losses"], rel=1e-5)
        assert "lm_head.weight" in found["apart"] and max(found["apart"].values()) < 1e-4, found["apart"]


def test_without_the_module_the_first_log_probs_fail(tmp_path: Path) -> None:
    """That there is still something to fix: verl's own fused forward, as it is."""
    for done in run_ranks(RANKS, tmp_path / "store", within_s=150):
        assert done.returncode != 0
        assert "got mixed torch.Tensor and DTensor" in done.stderr


MADE = """
import sys
from verl.workers.config import HFModelConfig
import verl.utils.fsdp_utils as fsdp
before = fsdp._select_fsdp2_wrap_targets.__module__
HFModelConfig(path=sys.argv[1], external_lib=sys.argv[2])
print(before, fsdp._select_fsdp2_wrap_targets.__module__)
"""


def test_verl_loads_the_module_with_the_models_configuration() -> None:
    """Each process that trains reads one before it makes its model."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MADE, str(NANO_POLICY), "s3_agent.agl.fused_head"],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].split() == ["verl.utils.fsdp_utils", "s3_agent.agl.fused_head"]
