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
from s3_agent.launch.resume import (
    checkpoint_steps,
    exportable_step,
    has_whole_actor,
    holds_policy,
    is_whole,
    step_folder,
)
from s3_agent.launch.run import Run
from s3_agent.launch.stack import last_lines
from s3_agent.rollout.inherited import inherited
from s3_agent.rollout.process import ending_with_parent


def has_weights(folder: Path) -> bool:
    """Whether a Hugging Face folder holds more than a configuration."""
    return any(folder.glob("model*.safetensors"))


def export_policy(run: Run, target: Path, *, step: int | None = None) -> int:
    """Write the policy after `step` (the last checkpoint's by default) to `target`; its step. Raises S3AgentError."""
    if target.exists():
        raise ConfigError(f"{target} exists", remedy="give another folder, or remove it")
    wanted = step or exportable_step(run)
    folder = step_folder(run, wanted)
    actor = folder / "actor"
    if not actor.is_dir():
        steps = ", ".join(map(str, checkpoint_steps(run))) or "none"
        raise ConfigError(
            f"{run.folder} has no checkpoint of step {wanted}", remedy=f"there are: {steps}; read logs/trainer.log"
        )
    if not holds_policy(folder):
        raise ConfigError(f"the checkpoint {folder} was cut short", remedy="export the policy of another step")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # The copy is written after the shards, and `data.pt` after both.
    if has_weights(actor / "huggingface") and (has_whole_actor(folder) is None or is_whole(folder)):
        _copy(actor / "huggingface", partial)
    else:
        _merge(actor, partial, log=run.logs / "export.log")
    partial.replace(target)
    return wanted


def replace_policy(run: Run) -> None:
    """Export the policy of the newest checkpoint into the run; one that is there stays until it is whole.

    Raises S3AgentError.
    """
    new = run.policy.with_name(run.policy.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    export_policy(run, new)
    shutil.rmtree(run.policy, ignore_errors=True)
    new.replace(run.policy)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target)
    except (OSError, shutil.Error) as cause:
        shutil.rmtree(target, ignore_errors=True)
        raise S3AgentError(
            f"{source} could not be copied to {target}: {cause}",
            remedy="make room on the disk, then `s3-agent export-policy` again",
        ) from cause


def _merge(actor: Path, target: Path, *, log: Path) -> None:
    log.parent.mkdir(exist_ok=True)
    # The merger works on the CPU; what it sees of a GPU it would only take memory of.
    environment = {**inherited(os.environ), "CUDA_VISIBLE_DEVICES": ""}
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
