"""`s3-agent init`: writes a folder with everything that a user changes to train their own agent on their own documents.

Called by the command. The folder is built from the shipped examples: the recipe is `cpu` with other data and a class,
the class comes from `your_own_agent`, documents and questions come from `custom_corpus`. So only one copy of each
exists, and tests run it.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from s3_agent.errors import ConfigError
from s3_agent.names import recipe_name
from s3_agent.shipped import EXAMPLES

AGENT = "my_agent:OneLook"
_FILES = {
    "own_folder/README.md": "README.md",
    "your_own_agent/one_look_agent/__init__.py": "my_agent.py",
    "s3/custom_corpus/questions.jsonl": "questions.jsonl",
    "s3/custom_corpus/documents": "documents",
}
_HEADER = """\
# Your own class on your own documents, on two CPU cores. Run it in this folder: paths are relative to it.
"""
_DATA = """\
data:                        # the files that `s3-agent data import` and `s3-agent data all` write
  corpus: data/corpus.jsonl
  train: data/train.jsonl
  validation: data/validation.jsonl
  rag_cache: data/rag_cache.json
  folder: data

local:
  agent_class: my_agent:OneLook   # without this line, or with `--agent s3`, the agent below is trained
"""


def own_recipe(name: str) -> str:
    """The text of the recipe `cpu`, including its comments, changed to use the files of the folder."""
    text = (EXAMPLES / "s3" / "recipes" / "cpu.yaml").read_text(encoding="utf-8")
    changes = (
        (r"\A(?:#.*\n)+", _HEADER),
        (r"^name: .*", f"name: {name}"),
        (r"^data:\n(?:  .*\n)+", _DATA),
        (
            r"^(  steps:) \d+.*",
            r"\1 2                   # the example has questions for four steps; more steps repeat them",
        ),
        (r"^(  questions_per_step:) \d+.*", r"\1 8"),
        (r"^(  prompt_tokens:) \d+.*", r"\1 448         # long: the nano policy's tokenizer does not know these names"),
    )
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
        assert count == 1, f"the recipe cpu has no {pattern!r}"
    return text


def lay_out(folder: Path) -> Iterator[str]:
    """Write the files into a new or empty folder; yields lines to print. Raises ConfigError, and then changes
    nothing."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", remedy="name a folder that does not exist, or an empty one")
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty, and nothing in it is overwritten", remedy="name a new folder, or an empty one"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in _FILES.items():
            path = EXAMPLES / source
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, folder / target)
        (folder / "recipe.yaml").write_text(own_recipe(recipe_name(folder)), encoding="utf-8")
    except OSError as cause:
        raise ConfigError(f"{folder} can not be written: {cause}", remedy="name a folder of yours") from cause
    yield f"{folder}: recipe.yaml, my_agent.py, documents, questions.jsonl"
    yield f"next: cd {shlex.quote(str(folder))}, and the commands of its README.md"
