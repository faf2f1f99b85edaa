"""What a stage keeps: once made it is there, also after a kill; nothing that failed is."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from s3_agent.errors import ConfigError, PolicyError
from s3_agent.evaluation.stages import Made, NotKept, Stage, code_of, key_of, only_one


def kept(path: Path) -> Stage:
    return Stage(path)


async def put(stage: Stage, name: str, value: Made) -> Made:
    async def make() -> Made:
        return value

    return await stage.once(key_of(name), make)


async def test_what_is_made_is_found_by_the_next_one_who_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "stages" / "answers.jsonl"
    stage = Stage(path)
    made = {"text": 'a "quoted"\n line\u2028é', "none": None, "n": 1}
    assert await put(stage, "a", made) == made
    stage.close()
    again = Stage(path)
    assert again.find(key_of("a")) == made
    assert await again.once(key_of("a"), None) == made
    with pytest.raises(NotKept):
        await again.once(key_of("b"), None)
    again.close()


@settings(deadline=None)  # files
@given(st.binary(max_size=80))
def test_what_a_kill_left_of_the_last_line_is_cut_off(tmp_path_factory: pytest.TempPathFactory, torn: bytes) -> None:
    path = tmp_path_factory.mktemp("torn") / "answers.jsonl"

    async def fill() -> None:
        stage = Stage(path)
        await put(stage, "a", {"n": 1})
        stage.close()
        whole = path.read_bytes()
        path.write_bytes(whole + (whole + torn)[: len(torn)].replace(b"\n", b""))
        stage = Stage(path)
        await put(stage, "b", {"n": 2})
        stage.close()
        stage = Stage(path)
        assert [stage.find(key_of(name))["n"] for name in "ab"] == [1, 2]
        stage.close()
        assert path.read_bytes().count(b"\n") == 2

    asyncio.run(fill())


@settings(deadline=None)  # files
@given(cut=st.integers(1, 60))
def test_a_line_that_was_appended_behind_half_a_line_costs_these_two_and_names_itself(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "answers.jsonl"

    async def fill(names: str) -> list[Made]:
        stage = Stage(path)
        made = [await put(stage, name, {"n": ord(name)}) for name in names]
        stage.close()
        return made

    asyncio.run(fill("abc"))
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[: min(cut, len(second) - 1)] + third)
    with capture_logs() as logs:
        assert asyncio.run(fill("abc")) == [{"n": ord(name)} for name in "abc"]
    assert [(entry["file"], entry["line"]) for entry in logs] == [(str(path), 2)]
    with capture_logs():
        assert asyncio.run(fill("abc")) == [{"n": ord(name)} for name in "abc"], "they stay readable"


async def test_many_who_ask_at_once_make_it_once(tmp_path: Path) -> None:
    stage, calls = Stage(tmp_path / "x.jsonl"), 0
    go = asyncio.Event()

    async def make() -> Made:
        nonlocal calls
        calls += 1
        await go.wait()
        return {"n": calls}

    asking = [asyncio.create_task(stage.once("k" * 32, make)) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()  # who asked first must not take it from the others
    go.set()
    results = await asyncio.gather(*asking[1:])
    assert (calls, results) == (1, [{"n": 1}] * 4)
    stage.close()


async def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "x.jsonl")

    async def fail() -> Made:
        raise PolicyError("gone")

    with pytest.raises(PolicyError):
        await stage.once(key_of("a"), fail)
    assert len(stage) == 0
    assert await put(stage, "a", {"n": 1}) == {"n": 1}
    stage.close()


def test_keys_tell_everything_apart() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of(1) != key_of("1")


def test_code_is_part_of_a_key() -> None:
    assert code_of("s3_agent.tags") != code_of("s3_agent.agents") == code_of("s3_agent.agents")


def test_only_one_evaluation_writes_into_a_folder(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(ConfigError, match="another evaluation"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass
