"""What the wheel holds besides the packages: the examples, and what `s3-agent setup` makes the training stack from.

In git each of these files is at one place. A build hook rather than `force-include`, because that would also copy them
into every editable installation, where they would be out of date after the next change.
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
