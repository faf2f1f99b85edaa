"""Every promise of the README to someone who has the wheel alone: an empty environment, an empty folder, no clone."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from s3_agent.processes.ports import reserve_port
from tests.installed_wheel import ROOT, Installation, build_wheel, commands_of, install

README = ROOT / "README.md"
STACK = {"ask", "compare", "eval", "train"}
"""Commands of the README that need the training stack, unless they are dry runs."""
LISTS_PUBLISHED_FILES = ["s3-agent", "data", "all", "--recipe", "s3_8x40gb", "--dry-run"]
"""It asks a hub for sizes, by a package that the core does not bring."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """`pip install s3_agent-*.whl`, and nothing more."""
    return install(wheel, tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def with_retriever(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return install(wheel, tmp_path_factory.mktemp("retriever"), extras="[retriever,data]")


def needs_stack(command: list[str]) -> bool:
    return (command[1] in STACK and "--dry-run" not in command) or command == LISTS_PUBLISHED_FILES


def test_the_readme_starts_with_the_commands_of_an_installation() -> None:
    commands = commands_of(README)
    assert commands[:2] == [["s3-agent", "setup"], ["s3-agent", "train"]]
    assert {command[1] for command in commands} >= {"ask", "compare", "data", "doctor", "eval", "init", "report"}
    assert ".venv/bin/s3-agent" not in README.read_text(encoding="utf-8")


def test_every_command_of_the_readme_that_needs_no_training_stack_works(core: Installation) -> None:
    """In the README's order and in one folder, since a command may use what one before it made."""
    played = []
    for command in commands_of(README):
        if needs_stack(command) or command[1] == "report":  # there is nothing to report yet
            continue
        if command[1] == "setup":  # what it really installs takes minutes: tests/e2e/test_from_wheel.py
            command = [*command, "--cpu", "--dry-run"]
        done = core.run(*command)
        assert done.returncode == 0, (command, done.stderr)
        played.append(command[1])
    assert {"doctor", "init", "setup", "train"} <= set(played)
    assert (core.folder / "my-agent" / "recipe.yaml").is_file()
    assert [path.name for path in core.folder.iterdir()] == ["my-agent"], "a dry run writes nothing"


def test_commands_that_need_the_training_stack_say_how_to_get_it(core: Installation, tmp_path: Path) -> None:
    commands = [command for command in commands_of(README) if needs_stack(command)]
    assert {command[1] for command in commands} == STACK | {"data"}
    alone = [["s3-agent", "serve"], ["s3-agent", "generator"], ["s3-agent", "data", "all"]]
    for command in [*commands, *alone]:
        if command[1] in STACK:  # a port that is taken on this machine would be said first
            command = [*command, "retriever.port=0", "generator.port=0", "gateway.port=0"]
        done = core.run(*command, folder=tmp_path)
        assert done.returncode == 2, (command, done.stderr)
        assert "What to do: " in done.stderr and "s3-agent setup" in done.stderr, (command, done.stderr)
        assert "Traceback" not in done.stderr, command


def test_every_command_in_the_table_exists(core: Installation) -> None:
    rows = re.findall(r"^\| `s3-agent ([a-z -]+?)(?: [A-Z\"-].*?)?`", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 13
    listed = core.run("s3-agent", "--help").stdout
    for row in rows:
        assert re.search(rf"^\W*{row.split()[0]} ", listed, re.MULTILINE), row


def test_the_shipped_recipes_are_listed_in_eighty_columns(core: Installation) -> None:
    printed = core.run("s3-agent", "recipes").stdout
    rows = json.loads(core.run("s3-agent", "recipes", "--json").stdout)
    assert [row["name"] for row in rows] == sorted(path.stem for path in (ROOT / "examples").glob("*/recipes/*.yaml"))
    for row in rows:
        assert row["name"] in printed
        assert Path(row["path"]).is_relative_to(core.environment), "found in the installation, not in a clone"
    table = printed.partition("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 80


def test_doctor_names_the_command_that_installs_what_is_missing(core: Installation) -> None:
    done = core.run("s3-agent", "doctor", "--json")
    findings = json.loads(done.stdout)["findings"]
    missing = [finding for finding in findings if finding["id"] == "versions.missing"]
    assert missing and {finding["fix"] for finding in missing} == {"s3-agent setup --cpu"}


def test_the_retrieval_server_serves_the_embedded_corpus(with_retriever: Installation) -> None:
    port = reserve_port("retriever", 0)
    command = [str(with_retriever.environment / "bin" / "s3-agent"), "serve", f"retriever.port={port}"]
    with subprocess.Popen(command, cwd=with_retriever.folder, env=with_retriever.variables) as server:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and server.poll() is None:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            body = {"queries": ["capital of Austria"], "topk": 3}
            [hits] = httpx.post(f"http://127.0.0.1:{port}/retrieve", json=body).json()["result"]
        finally:
            server.send_signal(signal.SIGTERM)
    assert any("Vienna" in json.dumps(hit) for hit in hits)


def test_a_folder_of_ones_own_works_as_its_readme_says(with_retriever: Installation) -> None:
    """Up to the commands that need the training stack, which say so."""
    assert with_retriever.run("s3-agent", "init", "mine").returncode == 0
    mine = with_retriever.folder / "mine"
    commands = commands_of(mine / "README.md")
    assert [command[1] for command in commands][:4] == ["setup", "data", "data", "train"]
    imported = with_retriever.run(*commands[1], folder=mine)
    assert imported.returncode == 0, imported.stderr
    assert "next: s3-agent data all --recipe recipe.yaml" in imported.stderr
    assert not (mine / "data" / "recipe.yaml").exists(), "the folder has one recipe"
    for stage in ("corpus", "index", "questions", "retrieve"):
        done = with_retriever.run("s3-agent", "data", stage, "--recipe", "recipe.yaml", folder=mine)
        assert done.returncode == 0, done.stderr
    assert (mine / "data" / "retrieved.jsonl").is_file()
    done = with_retriever.run("s3-agent", "train", "--recipe", "recipe.yaml", "--dry-run", folder=mine)
    assert done.returncode == 0 and "data/corpus.jsonl" in done.stdout, done.stderr
    importable = with_retriever.run("python", "-c", "from my_agent import OneLook; OneLook.run", folder=mine)
    assert importable.returncode == 0, importable.stderr
    for command in commands[2:]:
        if command[1] in ("report", "ask"):  # about runs that are not there yet
            continue
        done = with_retriever.run(*command, folder=mine)
        assert done.returncode == 2 and "s3-agent setup" in done.stderr, (command, done.stderr)
