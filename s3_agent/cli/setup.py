"""`s3-agent setup`: the pinned training stack, added to the environment that s3-agent is installed in.

A wheel can not carry the overrides under which verl and the CPU build of vLLM install together. So it carries the lock
file and `scripts/setup.sh`, which chooses the builds for this machine in a clone too, and this module runs that script.
It replaces this process: nothing of ours may be imported while packages are exchanged.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from s3_agent.errors import ConfigError
from s3_agent.shipped import ENVIRONMENT, IN_CLONE


@dataclass(frozen=True, slots=True)
class SetupCommand:
    """What to run, and with which environment variables besides those that are there."""

    command: list[str]
    environment: dict[str, str]

    def run(self) -> None:
        """Become this command."""
        os.execve(self.command[0], self.command, {**os.environ, **self.environment})


def setup_command(*, device: str | None = None, replace: bool = False, dry_run: bool = False) -> SetupCommand:
    """The command that adds the training stack to this environment.

    `device` is `cpu` or `cuda`, None for what the machine has; `replace` lets it exchange the packages of a training
    stack that is there already; `dry_run` only says what would change. Raises ConfigError where it can not work.
    """
    bash = shutil.which("bash")
    if bash is None:
        raise ConfigError("`s3-agent setup` runs a bash script, and there is no bash on PATH", remedy="install bash")
    command = [bash, str(ENVIRONMENT / "scripts" / "setup.sh")]
    environment = {} if device is None else {"S3_AGENT_DEVICE": device}
    prefix = Path(sys.prefix)
    ours = IN_CLONE and prefix.resolve() in ((ENVIRONMENT / name).resolve() for name in (".venv", ".venv-core"))
    if ours and not dry_run:  # the clone's own environment, which follows the lock in every package
        return SetupCommand(command, environment)
    if sys.prefix == sys.base_prefix:
        raise ConfigError(
            f"the Python at {sys.executable} is not in a virtual environment, and `s3-agent setup` installs hundreds "
            "of packages with exact versions",
            remedy="python3.12 -m venv s3-env; install s3-agent with s3-env/bin/pip; then s3-env/bin/s3-agent setup",
        )
    command += ["--into", sys.prefix, *["--replace"] * replace, *["--dry-run"] * dry_run]
    return SetupCommand(command, {**environment, "S3_AGENT_PYTHON": sys.executable})
