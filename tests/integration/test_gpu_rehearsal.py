"""The measurements for a GPU, rehearsed on a CPU: every part runs to its end and says all that docs/gpu.md lists."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("verl")

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "rates": 1,
    "index": 1,
    "search": 6,
    "equality": 2,
    "http": 1,
    "http_without_search": 1,
    "steps": 4,
    "step": 4,
    "pieces": 1,
    "kernel": 1,
    "pass": 1,
    "training": 2,
    "optimizer step": 2,
    "vectors": 1,
    "passages": 1,
    "queries": 2,
    "ended": 7,
}
"""How many lines of each name there are."""


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("findings")
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    command = ["bash", str(ROOT / "tests/gpu/run.sh"), "--small", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]
    return lines


def test_parts_that_hang_end_within_the_time_of_all(tmp_path: Path) -> None:
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 600\n")
    hangs.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(hangs), "GPU_SECONDS": "16"}
    done = subprocess.run(["bash", str(ROOT / "tests/gpu/run.sh")], env=environment, capture_output=True, timeout=120)
    ended = [(line["part"], line["code"]) for line in map(json.loads, done.stdout.splitlines())]
    assert done.returncode == 1 and ended[0] == ("card", "124")
    assert len(ended) == 9 and {code for _, code in ended[1:]} == {"skipped"}


@pytest.mark.timeout(600)
def test_every_part_ends_and_says_everything(findings: list[dict[str, Any]]) -> None:
    ended = {(line["part"], line["options"]): line["code"] for line in findings if line["name"] == "ended"}
    assert set(ended.values()) == {"0"} and len(ended) == 7
    counts = {name: sum(line["name"] == name for line in findings) for name in SMALLEST}
    assert counts == SMALLEST


@pytest.mark.timeout(600)
def test_figures_are_numbers_that_can_be(findings: list[dict[str, Any]]) -> None:
    signed = {"loss", "loss_of_reference", "fragments"}
    for line in findings:
        for name, value in line.items():
            if isinstance(value, int | float):
                assert math.isfinite(value) and (value >= 0 or name in signed), (line, name)
    of = {(line["part"], line["name"]): line for line in findings}
    for line in findings:
        if line["name"] == "equality":
            assert line["known_first"] == 1 and line["recall"] > 0.9 and line["largest_difference"] < 0.01
    assert of["search", "http"]["wrong"] == of["search", "http_without_search"]["wrong"] == 0
    assert of["search", "http"]["queries_a_search"] > 1
    assert 0 < of["encoder", "passages"]["tokenizing_share"] < 1
    assert of["encoder", "vectors"]["least_cosine"] > 0.99


@pytest.mark.timeout(600)
def test_the_plans_sizes_are_near_what_the_memory_tracker_sees(findings: list[dict[str, Any]]) -> None:
    """The shapes are far too small for the plan to be right within a tenth; on a card they are the recipes' own."""
    ratios = [line["ratio"] for line in findings if line["part"] == "memory" and "ratio" in line]
    assert len(ratios) == 5 and all(0.4 < ratio < 2 for ratio in ratios), ratios


@pytest.mark.timeout(600)
def test_a_step_is_the_same_step_again(findings: list[dict[str, Any]]) -> None:
    steps = [line for line in findings if line["part"] == "learning" and line["name"] == "step"]
    assert [(line["policy"], line["dtype"]) for line in steps] == [
        (policy, dtype) for policy in ("nano", "135M") for dtype in ("float32", "bfloat16")
    ]
    assert all(line["within"] and line["cosine"] > 0.99 and line["loss_difference"] < 0.01 for line in steps)


def test_every_figure_is_explained(findings: list[dict[str, Any]]) -> None:
    """docs/gpu.md names each line and each of its fields."""
    page = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`\n]+)`", page))
    common = {"part", "name", "device"}
    wanted = {name for line in findings for name in line} - common | {line["name"] for line in findings}
    assert wanted <= named, sorted(wanted - named)


def test_the_candidate_kernel_is_never_loaded_without_a_card() -> None:
    """Triton is not in the environment of a CPU; the engine must not need it."""
    code = "import sys; import retrieval_server.backends.dense.torch_exact; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
