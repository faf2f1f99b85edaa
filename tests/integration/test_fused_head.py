"""Fused log-probs of an untied policy: two ranks over gloo, sharded by verl's own functions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from s3_agent.embedded import NANO_POLICY

pytestmark = pytest.mark.timeout(180)

RANKS = Path(__file__).with_name("fused_ranks.py")


def ranks(store: Path, *modules: str) -> list[subprocess.CompletedProcess[str]]:
    """Both ranks' ends. One that fails ends the other as well: it waits for nothing that does not come."""
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(RANKS), str(rank), "2", str(store), *modules],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=150) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *end)
        for process, end in zip(started, ends, strict=True)
    ]


def test_losses_and_gradients_are_those_of_the_models_own_logits(tmp_path: Path) -> None:
    for done in ranks(tmp_path / "store", "s3_agent.agl.fused_head"):
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["fused"] == pytest.approx(found["losses"], rel=1e-5)
        assert "lm_head.weight" in found["apart"] and max(found["apart"].values()) < 1e-4, found["apart"]


def test_without_the_module_the_first_log_probs_fail(tmp_path: Path) -> None:
    """That there is still something to fix: verl's own fused forward, as it is."""
    for done in ranks(tmp_path / "store"):
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
