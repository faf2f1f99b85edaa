"""`s3-agent setup`: the pinned training stack, added to the environment that s3-agent is installed in.

A wheel can not contain the overrides that verl and the CPU build of vLLM need to install together. So it contains the
lock file and `scripts/setup.sh`, which also chooses the builds in a clone, and this module runs that script. The script
replaces this process, because none of our modules may be imported while packages are replaced.
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
    """The command to run, and environment variables to add to the present ones."""

    command: list[str]
    environment: dict[str, str]

    def run(self) -> None:
        """Become this command."""
        os.execve(self.command[0], self.command, {**os.environ, **self.environment})


def setup_command(*, device: str | None = None, replace: bool = False, dry_run: bool = False) -> SetupCommand:
    """The command that adds the training stack to this environment.

    `device` is `cpu` or `cuda`, None to detect it; `replace` allows it to replace packages of a training stack that is
    already installed; `dry_run` only prints what would change. Raises ConfigError where it can not work.
    """
    bash = shutil.which("bash")
    if bash is None:
        raise ConfigError("`s3-agent setup` runs a bash script, but bash is not on PATH", remedy="install bash")
    command = [bash, str(ENVIRONMENT / "scripts" / "setup.sh")]
    environment = {} if device is None else {"S3_AGENT_DEVICE": device}
    prefix = Path(sys.prefix)
    ours = IN_CLONE and prefix.resolve() in ((ENVIRONMENT / name).resolve() for name in (".venv", ".venv-core"))
    if ours and not dry_run:  # the clone's own environment, which has every package as the lock file says
        return SetupCommand(command, environment)
    if sys.prefix == sys.base_prefix:
        raise ConfigError(
            f"the Python at {sys.executable} is not in a virtual environment, and `s3-agent setup` installs hundreds "
            "of packages with exact versions",
            remedy="python3.12 -m venv s3-env; install s3-agent with s3-env/bin/pip; then s3-env/bin/s3-agent setup",
        )
    command += ["--into", sys.prefix, *["--replace"] * replace, *["--dry-run"] * dry_run]
    return SetupCommand(command, {**environment, "S3_AGENT_PYTHON": sys.executable})
