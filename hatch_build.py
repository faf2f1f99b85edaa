"""Adds files to the wheel: the examples, and the files from which `s3-agent setup` installs the training stack.

hatchling calls it. In git each of these files exists once. It is a build hook and not `force-include`, because
`force-include` would also copy the files into every editable installation, where the next change would make them
outdated.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = {
    "examples": "s3_agent/examples",
    "pyproject.toml": "s3_agent/environment/pyproject.toml",
    "uv.lock": "s3_agent/environment/uv.lock",
    "scripts/setup.sh": "s3_agent/environment/scripts/setup.sh",
}


class ShippedFiles(BuildHookInterface):
    """Adds the files to a wheel; an editable installation finds them beside the packages."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before each build; `version` is `standard` or `editable`."""
        if version == "standard":
            build_data["force_include"] |= {str(Path(self.root, source)): target for source, target in SHIPPED.items()}
