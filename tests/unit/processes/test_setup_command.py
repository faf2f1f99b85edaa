"""`s3-agent setup`, and what commands say whose packages are not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from s3_agent.cli import setup as environment
from s3_agent.cli.setup import setup_command
from s3_agent.errors import ConfigError
from s3_agent.processes import requirements
from s3_agent.processes.stack import Part, Stack
from s3_agent.shipped import ENVIRONMENT


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "is_installed", lambda name: False)


def test_an_installation_gets_the_stack_into_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "IN_CLONE", False)
    monkeypatch.setattr(sys, "prefix", "/some/environment")
    made = setup_command(device="cuda", replace=True, dry_run=True)
    assert made.command[1:] == [
        str(ENVIRONMENT / "scripts" / "setup.sh"),
        "--into",
        "/some/environment",
        "--replace",
        "--dry-run",
    ]
    assert made.environment == {"S3_AGENT_DEVICE": "cuda", "S3_AGENT_PYTHON": sys.executable}
    assert "S3_AGENT_DEVICE" not in setup_command().environment, "the machine decides"


def test_the_environment_of_a_clone_is_set_up_as_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(ENVIRONMENT / ".venv"))
    assert setup_command().command[1:] == [str(ENVIRONMENT / "scripts" / "setup.sh")]
    assert "--into" in setup_command(dry_run=True).command


def test_outside_a_virtual_environment_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    with pytest.raises(ConfigError, match="not in a virtual environment") as caught:
        setup_command()
    assert "-m venv" in caught.value.remedy


def test_without_bash_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="bash is not on PATH"):
        setup_command()


def test_both_devices_at_once_are_refused() -> None:
    command = [sys.executable, "-m", "s3_agent.cli", "setup", "--cpu", "--cuda"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "not both" in done.stderr


def test_the_packages_are_those_of_our_own_extras(nothing_installed: None) -> None:
    assert {"agentlightning", "verl", "torch"} <= set(requirements.missing_packages("train"))
    assert {"bm25s", "fastapi"} <= set(requirements.missing_packages("retriever"))
    assert "bm25s" not in requirements.missing_packages("train")


def test_what_is_installed_is_not_missing() -> None:
    assert requirements.missing_packages("train") == requirements.missing_packages("retriever") == []
    requirements.require_training_stack("training")
    assert requirements.missing_module(ModuleNotFoundError("no x", name="x")) is None, "that is a fault of another kind"


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["-m", "s3_agent.cli", "serve", "--recipe", "x"], "bm25s"),
        (["-m", "s3_agent.cli", "generator", "--recipe", "x"], "vllm"),
        (["-m", "vllm.entrypoints.openai.api_server", "--model", "x"], "vllm"),
        (["-m", "s3_agent.agl.gateway"], "agentlightning"),
        (["-m", "s3_agent.agl.train", "x"], "agentlightning"),
    ],
)
def test_a_run_starts_no_process_whose_packages_are_missing(
    nothing_installed: None, command: list[str], missing: str, tmp_path: Path
) -> None:
    part = Part(name="one", command=[sys.executable, *command], log=tmp_path / "log")
    with pytest.raises(ConfigError, match=f"the one needs packages that are not installed: .*{missing}") as caught:
        Stack([part], run_id="none")
    assert "s3-agent setup" in caught.value.remedy


def test_a_failed_import_names_the_module_and_the_command(nothing_installed: None) -> None:
    error = requirements.missing_module(ModuleNotFoundError("no numpy", name="numpy"))
    assert error is not None and "numpy" in error.message and "s3-agent setup" in error.remedy
    assert requirements.missing_module(ModuleNotFoundError("no x", name="s3_agent.x")) is None
