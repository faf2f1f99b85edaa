"""The environment in which an env-contract class finds its input: exactly the stock controller's rules.

From agentlightning 1.0.2, `controller/local_reconciler.py`. A path is `input`, or `input.` followed by keys or list
positions; anything else is a constant. Strings are passed as they are, other values as JSON.
"""

import json
from typing import Any

from s3_agent.clients.gateway import Rollout
from s3_agent.errors import ConfigError


def class_path(agent_class: str | None) -> str | None:
    """`module:Class`, however it was written; None for no class."""
    if not agent_class or ":" in agent_class:
        return agent_class or None
    return ":".join(agent_class.rsplit(".", 1))


def _value(row: Any, path: str) -> Any:
    if path == "input":
        return row
    if not path.startswith("input."):
        return path
    value = row
    for part in path.split(".")[1:]:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise ConfigError(
                f"local.env_map path not found: {path}", remedy="name a field that every task of the dataset has"
            )
    return value


def environment_of(rollout: Rollout, *, key: str, policy_url: str, event_url: str) -> dict[str, str]:
    """AGL's variables and the mapped input. Raises ConfigError for a path that the input does not have."""
    environment = {"AGL_KEY": key, "AGL_OPENAI_BASE_URL": policy_url, "AGL_EVENT_URL": event_url}
    for name, path in (rollout.config.local.env_map if rollout.config.local else {}).items():
        value = _value(rollout.input, path)
        environment[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return environment
