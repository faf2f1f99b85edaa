"""The GPUs of each part: the recipe's numbers, among those that the launcher was given."""

from pathlib import Path

import pytest

from s3_agent.errors import ConfigError
from s3_agent.processes.gpus import VISIBLE, gpu_environment, shared_with
from s3_agent.processes.parts import service_parts, training_parts
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import load_recipe

LARGE = load_recipe("s3_8x40gb")


def test_each_part_sees_its_own_and_the_others_see_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    run = Run(tmp_path)
    seen = {part.name: part.environment[VISIBLE] for part in service_parts(LARGE, run)}
    seen |= {part.name: part.environment[VISIBLE] for part in training_parts(LARGE, run, key="k")}
    assert seen == {"retriever": "6", "generator": "7", "gateway": "", "workers": "", "trainer": "0,1,2,3,4,5"}


def test_nothing_is_said_where_nothing_is_placed() -> None:
    assert gpu_environment(load_recipe("cpu"), "trainer", {}) == {}


def test_numbers_count_among_the_gpus_that_a_scheduler_gave() -> None:
    given = {VISIBLE: "GPU-a,GPU-b,GPU-c,GPU-d,GPU-e,GPU-f,GPU-g,GPU-h"}
    assert gpu_environment(LARGE, "retriever", given) == {VISIBLE: "GPU-g"}
    with pytest.raises(ConfigError, match=r"gpus.generator names GPU 7, but .* gives this process 2"):
        gpu_environment(LARGE, "generator", {VISIBLE: "4,5"})


def test_a_trainer_waits_for_those_that_share_its_gpu(tmp_path: Path) -> None:
    small = load_recipe("s3_1x80gb")
    assert shared_with(small, "trainer") == ["generator"]
    [trainer] = [part for part in training_parts(small, Run(tmp_path), key="k") if part.name == "trainer"]
    assert trainer.needs == ("gateway", "generator")
    [trainer] = [part for part in training_parts(LARGE, Run(tmp_path), key="k") if part.name == "trainer"]
    assert trainer.needs == ("gateway",)


def test_no_generator_is_started_that_nobody_asks(tmp_path: Path) -> None:
    assert [part.name for part in service_parts(load_recipe("search_r1_8x40gb"), Run(tmp_path))] == ["retriever"]
