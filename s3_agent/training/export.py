"""The trained policy as a Hugging Face folder that vLLM, `s3-agent ask` and transformers load.

Called at the end of a run and by `s3-agent export-policy`. If the recipe asks verl to write a copy with each
checkpoint, the export is that copy (float32). Otherwise verl's own merger makes it from the checkpoint's shards
(bfloat16, the precision that the policy server uses). The folder gets its final name only after its weights were
compared with those of the starting model.
"""

import json
import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3_agent.data.files.whole import follow_umask
from s3_agent.errors import ConfigError, S3AgentError
from s3_agent.machine.inherited import inherited
from s3_agent.processes import commands
from s3_agent.processes.run_folder import Run
from s3_agent.processes.stack import last_lines
from s3_agent.rollout.process import ending_with_parent
from s3_agent.training.portable import make_portable
from s3_agent.training.resume import (
    checkpoint_steps,
    exportable_step,
    has_whole_actor,
    holds_policy,
    is_whole,
    step_folder,
)
from s3_agent.training.weights import changes, is_tied, require_same_names, start_folder, tensors


@dataclass(frozen=True, slots=True)
class Exported:
    """The step whose policy was exported, and a note for the user about its weights, or ""."""

    step: int
    note: str = ""


def has_weights(folder: Path) -> bool:
    """Whether a Hugging Face folder holds weights, not only a configuration."""
    return any(folder.glob("model*.safetensors"))


def export_policy(run: Run, target: Path, *, step: int | None = None) -> Exported:
    """Write the policy after `step` (by default that of the last checkpoint) to `target`.

    Raises S3AgentError, and leaves no folder, when the tensors are not those of the starting model, or when no weight
    has changed although the trainer logged gradients.
    """
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
    try:
        # verl writes the shards first, then the copy, then `data.pt`.
        if has_weights(actor / "huggingface") and (has_whole_actor(folder) is None or is_whole(folder)):
            _copy(actor / "huggingface", partial)
        else:
            _merge(actor, partial, log=run.logs / "export.log")
        model = _started_with(run)
        start = start_folder(model) if model else None
        note = _compared(run, partial, start, model, step=wanted)
        make_portable(partial, start)
        follow_umask(partial)
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Exported(wanted, note)


def replace_policy(run: Run) -> Exported:
    """Export the policy of the newest checkpoint into the run; an existing export stays until the new one is complete.

    Raises S3AgentError.
    """
    new = run.policy.with_name(run.policy.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    exported = export_policy(run, new)
    for kept in checkpoint_steps(run):
        follow_umask(step_folder(run, kept) / "actor" / "huggingface")
    shutil.rmtree(run.policy, ignore_errors=True)
    new.replace(run.policy)
    return exported


def keep_start(run: Run) -> Exported:
    """Put the model that the run started from into the run as its policy. Raises ConfigError when it is not on disk."""
    model = _started_with(run)
    start = start_folder(model) if model else None
    if start is None:
        raise ConfigError(
            f"no step validated better than the policy that the run started from, and {model} is not on this machine",
            remedy="use that model; the run's checkpoints are in after-best",
        )
    shutil.rmtree(run.policy, ignore_errors=True)
    _copy(start, run.policy)
    make_portable(run.policy, start)
    follow_umask(run.policy)
    return Exported(0, "no step validated better than the policy that the run started from: that one is kept")


def _started_with(run: Run) -> str | None:
    """The model that the trainer started from; None when the run has no record of it."""
    try:
        return str(json.loads(run.trainer.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _compared(run: Run, folder: Path, start: Path | None, model: str | None, *, step: int) -> str:
    """A note on the weights in `folder`, compared with the starting model. Raises S3AgentError for wrong ones."""
    after = tensors(folder)
    if start is None:
        named = f"the model that the run started from ({model})" if model else "the model that the run started from"
        return f"{named} is not on this machine as safetensors: the weights were not compared with it"
    before = tensors(start)
    require_same_names(before, after, folder=folder, tied=is_tied(start) or is_tied(folder))
    if any(changes(before, after)):
        return ""
    if _updated(run, until=step):
        raise S3AgentError(
            f"the policy of step {step} in {run.checkpoints} still has the weights of the starting model, although "
            "its steps had gradients: the trained weights are not in it",
            remedy="read logs/trainer.log; with LoRA the trained weights are stored separately from the model's",
        )
    return "all weights equal those of the starting model: no step had a gradient"


def _updated(run: Run, *, until: int) -> bool:
    """Whether a logged step changed weights: it had a gradient and a learning rate."""
    lines = run.metrics.read_bytes().splitlines() if run.metrics.exists() else []
    for line in lines:
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:  # the line is incomplete: the run was killed while writing it
            continue
        data = row["data"]
        gradient, rate = data.get("actor/grad_norm") or 0.0, data.get("actor/lr", 1.0)
        if row["step"] <= until and gradient > 0 and math.isfinite(gradient) and rate:
            return True
    return False


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
    # The merger computes on the CPU. If it saw a GPU, it would only occupy memory there.
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
