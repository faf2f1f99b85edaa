"""A key comes from the environment or a file, and one on the command line is pointed out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3_agent.agl.train import KEY_VARIABLE
from s3_agent.errors import ConfigError
from s3_agent.processes.keys import given_key, read_key, shown_keys, with_gateway_key
from s3_agent.recipe import load_recipe

URL = "gateway.url=http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("of-the-file\n")
    return path


def test_a_gateways_key_is_its_files_or_the_environments(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_gateway_key(load_recipe("cpu", [URL])).gateway.key is None
    monkeypatch.setenv(KEY_VARIABLE, "of-the-environment")
    assert with_gateway_key(load_recipe("cpu", [URL])).gateway.key == "of-the-environment"
    named = [URL, f"gateway.key_file={file}"]
    assert with_gateway_key(load_recipe("cpu", named)).gateway.key == "of-the-file"
    assert with_gateway_key(load_recipe("cpu", [*named, "gateway.key=own"])).gateway.key == "own"


def test_our_own_gateway_takes_no_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "of-another-gateway")
    assert with_gateway_key(load_recipe("cpu")).gateway.key is None


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"\xff"])
def test_a_file_without_a_key_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="key file"):
        read_key(path)
    with pytest.raises(ConfigError, match="can not be read"):
        read_key(tmp_path / "missing")


def test_a_file_that_is_named_goes_before_the_environment(file: Path) -> None:
    assert given_key("of-the-environment", file) == "of-the-file"
    assert given_key("of-the-environment", None) == "of-the-environment"


def test_what_shows_a_key_is_named() -> None:
    arguments = ["workers", "--key", "x", "--policy-key=y", "gateway.key=z", "--key-file", "f", "gateway.key_file=f"]
    assert shown_keys(arguments) == ["--key", "--policy-key", "gateway.key"]


@pytest.mark.parametrize(("options", "told"), [(["--policy-key", "secret"], True), ([], False)])
def test_a_key_on_the_command_line_is_pointed_out(options: list[str], told: bool) -> None:
    command = [sys.executable, "-m", "s3_agent.cli", "ask", " ", *options]
    environment = {**os.environ, "S3_AGENT_POLICY_KEY": "x"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert "the question is empty" in done.stderr
    assert ("every user of this machine can read it" in done.stderr) is told
    assert "secret" not in done.stderr
