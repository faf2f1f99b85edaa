"""`s3-agent init` and `s3-agent recipes`: made from the shipped examples, and losing nothing of a user's."""

import json
from pathlib import Path

import pytest

from s3_agent.cli.recipes import described, list_recipes
from s3_agent.errors import ConfigError
from s3_agent.preparation.own_data import import_own
from s3_agent.preparation.own_folder import AGENT, lay_out, own_recipe
from s3_agent.recipe import load_recipe, recipe_path
from s3_agent.shipped import ENVIRONMENT, EXAMPLES, IN_CLONE, shipped_recipes


def test_in_a_clone_the_files_are_beside_the_package() -> None:
    root = Path(__file__).parents[3]
    assert IN_CLONE and root / "examples" == EXAMPLES and root == ENVIRONMENT


def test_the_folder_holds_a_recipe_with_its_own_class_and_data(tmp_path: Path) -> None:
    said = list(lay_out(tmp_path / "my agent"))
    folder = tmp_path / "my agent"
    assert str(folder) in said[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "documents",
        "my_agent.py",
        "questions.jsonl",
        "recipe.yaml",
    ]
    recipe, cpu = load_recipe(str(folder / "recipe.yaml")), load_recipe("cpu")
    assert recipe.name == "my-agent"
    assert recipe.local.agent_class == AGENT == "my_agent:OneLook"
    assert recipe.data.corpus == Path("data/corpus.jsonl")
    changed = {"name", "data", "local", "trainer"}
    assert recipe.model_dump(exclude=changed) == cpu.model_dump(exclude=changed)
    small = {"steps", "questions_per_step", "prompt_tokens"}
    assert recipe.trainer.model_dump(exclude=small) == cpu.trainer.model_dump(exclude=small)
    example = EXAMPLES / "your_own_agent" / "one_look_agent" / "__init__.py"
    assert (folder / "my_agent.py").read_bytes() == example.read_bytes()


def test_another_agent_takes_the_place_of_the_class() -> None:
    assert "--agent s3" in own_recipe("x")


def test_the_import_of_the_folder_writes_no_second_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(lay_out(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = {"validation": None, "validation_share": 0.2, "words": 180, "overrides": []}
    files = Path("documents"), Path("questions.jsonl")
    [*_, said] = import_own(*files, Path("data"), base="recipe.yaml", **arguments)
    assert said == "next: s3-agent data all --recipe recipe.yaml"
    assert not Path("data/recipe.yaml").exists()
    [*_, said] = import_own(*files, Path("data"), base="cpu", **arguments)
    assert said == "next: s3-agent data all --recipe data/recipe.yaml"
    assert load_recipe("data/recipe.yaml").data.train == Path("data/train.jsonl")


def test_an_empty_folder_is_taken_and_a_full_one_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    list(lay_out(tmp_path / "empty"))
    kept = tmp_path / "full" / "recipe.yaml"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and nothing in it is overwritten"):
        list(lay_out(kept.parent))
    assert [path.read_text() for path in kept.parent.iterdir()] == ["mine"]
    with pytest.raises(ConfigError, match="is a file"):
        list(lay_out(kept))


def test_a_folder_that_can_not_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can not be written"):
        list(lay_out(tmp_path / "file" / "below"))


def test_every_shipped_recipe_is_described_in_one_line() -> None:
    rows = {row.name: row for row in described()}
    assert list(rows) == list(shipped_recipes())
    assert rows["cpu"].machine == "CPU" and rows["s3_1x80gb"].machine == "1 GPU"
    assert rows["s3_8x40gb"].machine == rows["search_r1_8x40gb"].machine == "8 GPUs"
    assert rows["s3_2x8x40gb"].machine == "2 x 8 GPUs"
    assert rows["search_r1_8x40gb"].agent == "search_r1_agl_chat"
    assert all(0 < len(row.what) <= 80 for row in rows.values())
    assert all(recipe_path(name) == Path(row.path) for name, row in rows.items())


def test_recipes_are_listed_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    list_recipes(as_json=True)
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(shipped_recipes())
