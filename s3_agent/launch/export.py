"""The trained policy as a Hugging Face folder that vLLM, `s3-agent ask` and transformers load.

It is the copy that verl wrote with the checkpoint when the recipe asks for one (float32), or is merged from the
checkpoint's shards by verl's own merger (bfloat16, the precision that the policy server has it in).
"""

import os
import shutil
import subprocess
from pathlib import Path

from s3_agent.errors import ConfigError, S3AgentError
from s3_agent.launch import commands
from s3_agent.launch.resume import STEP_FOLDER, checkpoint_steps, latest_step
from s3_agent.launch.run import Run
from s3_agent.launch.stack import last_lines
from s3_agent.rollout.process import ending_with_parent


def has_weights(folder: Path) -> bool:
    """Whether a Hugging Face folder holds more than a configuration."""
    return any(folder.glob("model*.safetensors"))


def export_policy(run: Run, target: Path, *, step: int | None = None) -> int:
    """Write the policy after `step` (the last checkpoint's by default) to `target`; its step. Raises S3AgentError."""
    if target.exists():
        raise ConfigError(f"{target} exists", remedy="give another folder, or remove it")
    wanted = step or latest_step(run)
    actor = run.checkpoints / f"{STEP_FOLDER}{wanted}" / "actor"
    if not actor.is_dir():
        steps = ", ".join(map(str, checkpoint_steps(run))) or "none"
        raise ConfigError(
            f"{run.folder} has no checkpoint of step {wanted}", remedy=f"there are: {steps}; read logs/trainer.log"
        )
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if has_weights(actor / "huggingface"):
        shutil.copytree(actor / "huggingface", partial)
    else:
        _merge(actor, partial, log=run.logs / "export.log")
    partial.replace(target)
    return wanted


def _merge(actor: Path, target: Path, *, log: Path) -> None:
    log.parent.mkdir(exist_ok=True)
    # The merger works on the CPU; what it sees of a GPU it would only take memory of.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with log.open("ab") as output:
        command = ending_with_parent(commands.merge_command(actor, target))
        done = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if done.returncode or not has_weights(target):
        raise S3AgentError(
            f"the shards in {actor} could not be merged; {log} ends:\n{last_lines(log)}",
            remedy="check that the disk has room for two bytes a parameter and the host memory for four, then "
            "`s3-agent export-policy` again",
        )
