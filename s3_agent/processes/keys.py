"""Reads the keys of services from the environment or a file, because `ps` shows a command line to every user."""

import os
from collections.abc import Sequence
from pathlib import Path

from s3_agent.agl.train import KEY_VARIABLE
from s3_agent.errors import ConfigError
from s3_agent.recipe import Recipe

KEY_REMEDY = f"export {KEY_VARIABLE}=…, or name a file that holds it: gateway.key_file=…"
SHOWN = ("--key", "--policy-key", "gateway.key")
"""Options and overrides that can hold a key on a command line."""


def read_key(file: Path) -> str:
    """The key in a file. Raises ConfigError."""
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"the key file {file} can not be read: {cause}", remedy="name a file with the key") from cause
    if not key or len(key.split()) > 1:
        raise ConfigError(f"the key file {file} holds no key", remedy="write only the key into it")
    return key


def given_key(key: str | None, file: Path | None) -> str | None:
    """The key from an option or its environment variable, or from the named key file. Raises ConfigError."""
    return read_key(file) if file is not None else key


def with_gateway_key(recipe: Recipe) -> Recipe:
    """The recipe with the key of the user's gateway, from its file or the environment. Raises ConfigError."""
    gateway = recipe.gateway
    if gateway.url is None or gateway.key:
        return recipe
    key = given_key(os.environ.get(KEY_VARIABLE), gateway.key_file)
    return recipe.model_copy(update={"gateway": gateway.model_copy(update={"key": key})})


def shown_keys(arguments: Sequence[str]) -> list[str]:
    """The names of the arguments that show a key on a command line."""
    return [argument.partition("=")[0] for argument in arguments if argument.partition("=")[0] in SHOWN]
