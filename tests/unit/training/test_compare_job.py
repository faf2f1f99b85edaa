"""What `s3-agent compare` refuses before anything is started."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from s3_agent.cli.main import app


def compare(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", "--out", str(folder / "out"), *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s3", "s4"], "there is no agent 's4'"),
        (["s3", "rag"], "rag can not be trained"),
        (["s3", "s3"], "named twice"),
        (["s3", "--seeds", "1,1"], "named twice"),
        (["my_agent:Mine", "s3"], "name s3 or search_r1 first, or give --no-controls"),
        (["s3", "gateway.url=http://g", "gateway.key=k"], "its own gateway and workers"),
        (["s3", "workers.external=true"], "its own gateway and workers"),
        (["s3", "trainer.step=3"], "trainer.step: there is no such field"),
    ],
)
def test_it_says_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = compare(tmp_path, *arguments)
    assert done.exit_code != 0
    assert message in f"{done.output} {done.exception}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["s3", "--seeds", "one"], ["trainer.steps=3"], ["s3", "--at-once", "0"]])
def test_options_that_make_no_sense_are_usage_errors(tmp_path: Path, arguments: list[str]) -> None:
    assert compare(tmp_path, *arguments).exit_code == 2
