"""The story of a rollout from files that pools wrote, were killed at, or damaged; and how it is shown."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from s3_agent.cli.main import app
from s3_agent.cli.rollout import overview_view, pool_files, show_rollout, story_view
from s3_agent.errors import ConfigError
from s3_agent.processes.run_folder import EPISODES, POOL_LOG
from s3_agent.rollout.episode_log import EpisodeLog
from s3_agent.rollout.pool.pool_log import EventName, PoolLog
from s3_agent.rollout.story import PoolFiles, Story
from tests.evaluated import write_evaluation, write_run
from tests.full_disk import cut_short

ESCAPE = "\x1b]0;title\x07[red]"


def record(rollout_id: str, **changes: Any) -> dict[str, Any]:
    fields = {
        "rollout_id": rollout_id,
        "attempt_id": f"p-{rollout_id}",
        "attempts": 1,
        "is_train": True,
        "state": "succeeded",
        "reward": 1.0,
        "failures": [],
        "started_at": 1.0,
        "finished_at": 2.0,
    }
    return {**fields, **changes}


class Written:
    """A run's folder, to which pools write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.episodes = EpisodeLog(str(folder / EPISODES))
        self._pools: dict[str, PoolLog] = {}

    def write(self, pool: str, event: EventName, rollout_id: str | None = None, **fields: Any) -> None:
        if pool not in self._pools:
            self._pools[pool] = PoolLog(str(self.folder / POOL_LOG), pool=pool)
        self._pools[pool].write(event, rollout_id, **fields)

    def claimed(self, pool: str, rollout_id: str, *, attempt_id: str = "a1") -> None:
        self.write(pool, "claimed", rollout_id, attempt_id=attempt_id)
        self.started(pool, rollout_id, attempt_id=attempt_id)

    def started(self, pool: str, rollout_id: str, *, attempt_id: str) -> None:
        fields = {"attempt_id": attempt_id, "attempt": 1, "worker": "worker-3", "seconds": 600.0}
        self.write(pool, "attempt_started", rollout_id, **fields)

    def failed(self, pool: str, rollout_id: str, *, attempt_id: str = "a1", message: str = "status 500") -> None:
        fields = {"attempt_id": attempt_id, "attempt": 1, "worker": "worker-3", "seconds": 2.5}
        self.write(pool, "attempt_failed", rollout_id, boundary="generator", message=message, **fields)

    def ended(self, pool: str, rollout_id: str, *, state: str = "succeeded", **fields: Any) -> None:
        self.write(pool, "ended", rollout_id, attempt_id="a9", state=state, reported=True, **fields)
        self.episodes.write(record(rollout_id, state=state, **fields.pop("record", {})))

    @property
    def files(self) -> PoolFiles:
        return pool_files(str(self.folder), runs=self.folder)

    def told(self, rollout_id: str) -> list[str]:
        return [event.event for event in self.files.story(rollout_id).events]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    folder = tmp_path / "run"
    folder.mkdir()
    return Written(folder)


def shown(view: Any, *, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(view)
    assert max(map(len, file.getvalue().splitlines())) <= width
    return file.getvalue()


def test_an_attempt_that_failed_and_the_one_after_it(written: Written) -> None:
    written.write("p", "pool_started", message="process 7 on here")
    written.claimed("p", "r1")
    written.failed("p", "r1")
    written.started("p", "r1", attempt_id="a2")
    written.claimed("p", "r2")
    written.ended("p", "r1")
    written.write("p", "pool_ended", message="")
    story = written.files.story("r1")
    assert [event.event for event in story.events] == [
        *("claimed", "attempt_started", "attempt_failed", "attempt_started", "ended"),
    ]
    failed = story.events[2]
    assert (failed.worker, failed.boundary, failed.seconds) == ("worker-3", "generator", 2.5)
    assert (failed.attempt_id, failed.message) == ("a1", "status 500")
    assert story.ending == "succeeded" and [one.reward for one in story.records] == [1.0]
    text = shown(story_view(story))
    assert "attempt 1 failed on worker-3 after 2.5 s at generator: status 500" in re.sub(r"\s+", " ", text)
    assert "attempt 2 on worker-3" in text and "succeeded with reward 1.000" in text


def test_a_pool_that_is_killed_and_started_again_twice(written: Written) -> None:
    for number in range(3):
        written.write("p", "pool_started", message=f"process {number} on here")
        if number:
            written.write("p", "adopted", "r1")
            written.started("p", "r1", attempt_id=f"a{number + 1}")
        else:
            written.claimed("p", "r1")
    written.ended("p", "r1")
    written.write("other", "pool_started", message="process 9 on there")
    restarted = ["pool_started", "adopted", "attempt_started"]
    assert written.told("r1") == ["claimed", "attempt_started", *restarted, *restarted, "ended"]
    [row] = written.files.overview().troubled
    assert (row.ending, row.attempts) == ("succeeded", 3)
    assert "attempt 3 on worker-3" in shown(story_view(written.files.story("r1")))


@pytest.mark.parametrize(
    ("after", "ending"),
    [(None, "open"), ("pool_ended", "lost"), ("pool_started", "lost"), ("another's end", "open"), ("adopted", "open")],
)
def test_a_rollout_without_an_end(written: Written, after: str | None, ending: str) -> None:
    written.write("p", "pool_started", message="")
    written.claimed("p", "r1")
    if after == "another's end":
        written.write("other", "pool_ended", message="")
    elif after == "adopted":
        written.write("p", "pool_started", message="")
        written.write("p", "adopted", "r1")
    elif after:
        written.write("p", after, message="the gateway is lost")  # pyright: ignore[reportArgumentType]
    overview, story = written.files.overview(), written.files.story("r1")
    assert story.ending == overview.troubled[0].ending == ending
    assert ("the gateway is lost" in shown(story_view(story))) == (after in ("pool_ended", "pool_started"))


def test_the_list_has_what_did_not_simply_succeed_and_why(written: Written) -> None:
    written.write("p", "pool_started", message="")
    for number in range(4):
        written.claimed("p", f"good{number}")
        written.ended("p", f"good{number}")
    written.claimed("p", "retried")
    written.failed("p", "retried", message="status 503\n  What to do: look")
    written.started("p", "retried", attempt_id="a2")
    written.ended("p", "retried")
    written.claimed("p", "failed")
    written.ended("p", "failed", state="failed", boundary="stopped", message="the pool was stopped")
    written.claimed("p", "lost")
    written.write("p", "pool_ended", message="")
    overview = written.files.overview()
    assert overview.endings == {"lost": 1, "failed": 1, "open": 0, "succeeded": 5}
    assert (overview.rollouts, overview.retried) == (7, 1)
    assert [one.rollout_id for one in overview.troubled] == ["lost", "failed", "retried"]
    text = shown(overview_view(overview))
    assert "stopped: the pool was stopped" in text and "generator: status 503" in text and "What to do" not in text
    assert "good0" not in text


def test_records_alone_tell_the_story_of_a_pool_without_a_log(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    files = pool_files("run", runs=tmp_path)
    [row] = [one for one in files.overview().troubled if one.ending == "failed"]
    assert row.rollout_id == "13" and row.message == "the generator was gone"
    story = files.story("13")
    assert story.events == [] and story.records[0].error == "the generator was gone"
    assert "failed: the generator was gone" in shown(story_view(story))
    played = shown(story_view(files.story("14")))
    assert "golden answers" in played and "answer" in played
    assert pool_files(str(folder), runs=tmp_path).ids() == files.ids()


def test_a_resumed_runs_records_are_read_once_each(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    earlier = folder / "generation-0"
    earlier.mkdir()
    lines = (folder / EPISODES).read_bytes().splitlines(keepends=True)
    (earlier / EPISODES).write_bytes(b"".join(lines))
    (folder / EPISODES).write_bytes(b"".join(lines[:5]))
    files = pool_files("run", runs=tmp_path)
    assert len(files.ids()) == len(lines) == files.overview().rollouts
    assert len(files.story("0").records) == len(files.story("50").records) == 1


def test_an_id_may_be_cut_and_a_wrong_one_is_answered_with_near_ones(written: Written) -> None:
    ids = ["aa11ff", "aa12ff", "bb22ff", "aa11"]
    for rollout_id in ids:
        written.claimed("p", rollout_id)
    files = written.files
    assert [files.find(wanted) for wanted in ("aa11", "b", "aa11f")] == ["aa11", "bb22ff", "aa11ff"]
    with pytest.raises(ConfigError, match="3 rollouts begin with 'aa': aa11ff, aa12ff, aa11"):
        files.find("aa")
    with pytest.raises(ConfigError, match="no rollout has the id 'bb2ff'; similar ids: bb22ff"):
        files.find("bb2ff")
    with pytest.raises(ConfigError, match="no rollout has the id 'zz'; there are aa11ff, aa12ff, bb22ff, aa11"):
        files.find("zz")
    (written.folder / POOL_LOG).write_bytes(b"")
    with pytest.raises(ConfigError, match="no rollout was claimed yet"):
        written.files.find("a")


def test_what_has_no_pool_says_so(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "an-evaluation")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"is an evaluation, .* without a pool") as error:
        pool_files("an-evaluation", runs=tmp_path)
    assert "s3-agent report" in error.value.remedy
    with pytest.raises(ConfigError, match=r"has neither pool.jsonl nor episodes.jsonl") as error:
        pool_files("empty", runs=tmp_path)
    assert "--pool-log" in error.value.remedy
    with pytest.raises(ConfigError, match=r"there is no run 'an-evalution'; in .* there is an-evaluation"):
        pool_files("an-evalution", runs=tmp_path)
    with pytest.raises(ConfigError, match=r"there is no run 'x'\n"):
        pool_files("x", runs=tmp_path / "nowhere")


def test_a_comparison_has_the_rollouts_of_all_its_runs(tmp_path: Path) -> None:
    for name in ("s3-seed0", "rag-seed0"):
        folder = tmp_path / "compare" / "runs" / name
        folder.mkdir(parents=True)
        Written(folder).claimed(name, f"of-{name}")
    files = pool_files("compare", runs=tmp_path)
    assert sorted(files.ids()) == ["of-rag-seed0", "of-s3-seed0"]
    assert files.story("of-s3-seed0").events[0].pool == "s3-seed0"


def test_json_is_for_machines(written: Written) -> None:
    written.claimed("p", "r1")
    written.ended("p", "r1", record={"answer": ESCAPE})
    arguments = ["rollout", "run", "--runs", str(written.folder.parent), "--json"]
    found = CliRunner().invoke(app, [*arguments[:2], "r", *arguments[2:]])
    assert found.exit_code == 0 and "\x1b" not in found.stdout
    story = Story.model_validate_json(found.stdout)
    assert (story.rollout_id, story.records[0].answer) == ("r1", ESCAPE)
    listed = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert listed == {
        "rollouts": 1,
        "endings": {"lost": 0, "failed": 0, "open": 0, "succeeded": 1},
        "retried": 0,
        "troubled": [],
    }


def test_nothing_in_the_files_commands_the_terminal(written: Written) -> None:
    written.claimed(ESCAPE, ESCAPE)
    written.failed(ESCAPE, ESCAPE, message=ESCAPE)
    task = {"id": "t", "question": ESCAPE, "golden_answers": [ESCAPE]}
    written.ended(ESCAPE, ESCAPE, state="failed", record={"task": task, "error": ESCAPE, "output": ESCAPE})
    files = written.files
    for view in (story_view(files.story(ESCAPE)), overview_view(files.overview())):
        text = shown(view, width=200)
        assert "\x1b" not in text and "\x07" not in text and "[red]" in text


@given(cut=st.integers(min_value=0), damage=st.binary(max_size=30), at=st.integers(min_value=0))
def test_a_cut_or_damaged_file_is_read_as_far_as_it_is_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int, damage: bytes, at: int
) -> None:
    written = Written(tmp_path_factory.mktemp("run"))
    written.write("p", "pool_started", message="")
    for rollout_id in ("r1", "r2"):
        written.claimed("p", rollout_id)
        written.failed("p", rollout_id)
        written.ended("p", rollout_id)
    for name in (POOL_LOG, EPISODES):
        path = written.folder / name
        whole = path.read_bytes()
        lines = whole[: cut % (len(whole) + 1)].splitlines(keepends=True)
        place = at % (len(lines) + 1)
        path.write_bytes(b"".join([*lines[:place], damage.replace(b"\n", b"") + b"\n", *lines[place:]]))
    files = written.files
    overview = files.overview()
    assert len(files.damaged) <= 4, "the damaged line of each file, and what was cut before it"
    assert overview.rollouts <= 2
    for rollout_id in files.ids():
        shown(story_view(files.story(rollout_id)))


def test_a_full_disk_leaves_lines_out_and_the_rest_whole(
    written: Written, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written.claimed("p", "r1")
    with monkeypatch.context() as disk:
        cut_short(disk, after=40)
        written.failed("p", "r1")
        written.started("p", "r1", attempt_id="a2")
    written.ended("p", "r1")
    assert written.told("r1") == ["claimed", "attempt_started", "ended"]
    assert written.files.damaged == []
    assert "".join(capsys.readouterr()).count("the pool's log can not be written") == 1


def test_a_damaged_line_is_named(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    written.claimed("p", "r1")
    with (written.folder / POOL_LOG).open("ab") as file:
        file.write(b'{"at": 1, "event": "no such event", "rollout_id": "r1"}\nrubbish\n{"at": 3, "torn')
    show_rollout(str(written.folder), None, runs=written.folder)
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition(":")[2] for line in told] == ["3", "4"] and POOL_LOG in told[0]
