"""Where the files are that come with the package: the examples, and what the training environment is made from.

A wheel holds them inside the package (`hatch_build.py`); in a clone they are beside it, at their one place in git.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent
IN_CLONE = not (_PACKAGE / "environment").is_dir()
EXAMPLES = _PACKAGE.parent / "examples" if IN_CLONE else _PACKAGE / "examples"
ENVIRONMENT = _PACKAGE.parent if IN_CLONE else _PACKAGE / "environment"
"""A folder with `pyproject.toml`, `uv.lock` and `scripts/setup.sh`."""


def shipped_recipes() -> dict[str, Path]:
    """The recipes by name, in order of their names."""
    paths = EXAMPLES.glob("*/recipes/*.yaml")
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}
