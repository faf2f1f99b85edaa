"""docs/extending.md shows the files of the example plug-in as they are, and commands and settings that exist."""

import re
import tomllib

import yaml
from typer.main import get_command

from retrieval_server.index_kinds import INDEX_KINDS
from s3_agent.agents.methods import METHODS
from s3_agent.cli.main import app
from s3_agent.data.published.datasets import DATA_SETS
from s3_agent.rewards.registry import REWARDS
from tests.installed_wheel import ROOT, commands_of

PAGE, EXAMPLE = ROOT / "docs/extending.md", ROOT / "examples/plug_in"


def blocks(language: str) -> list[str]:
    """The page's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_shows_every_file_of_the_example_as_it_is() -> None:
    files = [EXAMPLE / "pyproject.toml", *sorted((EXAMPLE / "harbour_search").glob("[!_]*.py"))]
    assert len(files) == 5
    shown = [*blocks("toml"), *blocks("python")]
    assert sorted(shown) == sorted(path.read_text(encoding="utf-8") for path in files)


def test_the_page_names_each_table_with_its_group_and_its_modules() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if " | `s3-agent " in line]
    registries = (METHODS, REWARDS, INDEX_KINDS, DATA_SETS)
    assert [row[3].strip("`") for row in rows] == [registry.group for registry in registries]
    entry_points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    assert {*entry_points} == {registry.group for registry in registries}
    for row, registry in zip(rows, registries, strict=True):
        pattern = row[1].strip("`").replace("NAME", r"\w+")
        homes = {target.partition(":")[0].replace(".", "/") + ".py" for target in registry.own.values()}
        assert all(re.fullmatch(pattern, home) for home in homes), (pattern, homes)
        assert all((ROOT / home).is_file() for home in homes)


def test_the_commands_of_the_page_and_of_the_example_exist() -> None:
    known = get_command(app)
    commands = [*commands_of(PAGE), *commands_of(EXAMPLE / "README.md")]
    assert len(commands) > 6
    for command in commands:
        assert command[1] in known.commands, command  # pyright: ignore[reportAttributeAccessIssue]


def test_the_settings_of_the_page_are_those_of_a_recipe() -> None:
    from s3_agent.data.published.sources import SourceSettings

    [text] = blocks("yaml")
    assert {*yaml.safe_load(text)["data"]["sources"]} <= {*SourceSettings.model_fields}
