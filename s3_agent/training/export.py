"""The trained policy as a Hugging Face folder that vLLM, `s3-agent ask` and transformers load.

Called at the end of a run and by `s3-agent export-policy`. If the recipe asks verl to write a copy with each
checkpoint, the export is that copy (float32). Otherwise verl's own merger makes it from the checkpoint's shards
(bfloat16, the precision that the policy server uses). A policy trained with LoRA has its adapters added, and they are
also beside it in PEFT's format (`lora_adapter`). The folder gets its final name only after its weights were compared
with those of the starting model.
"""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3_agent.agl.guard import validation_of
from s3_agent.data.files.whole import follow_umask, write_whole
from s3_agent.errors import ConfigError, S3AgentError
from s3_agent.machine.inherited import inherited
from s3_agent.processes import commands
from s3_agent.processes.run_folder import Run
from s3_agent.processes.stack import last_lines
from s3_agent.rollout.process import ending_with_parent
from s3_agent.training.portable import make_portable
from s3_agent.training.resume import exportable_step, has_whole_actor, is_whole, policies, step_folder
from s3_agent.training.weights import changes, is_tied, require_same_names, start_folder, tensors

ADAPTER = "lora_adapter"
"""The folder of the adapters in a policy's folder, as verl's merger names it."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The step whose policy was exported, and a note for the user about its weights, or ""."""

    step: int
    note: str = ""


def has_weights(folder: Path) -> bool:
    """Whether a Hugging Face folder holds weights, not only a configuration."""
    return any(folder.glob("model*.safetensors"))


def best_step(run: Run) -> int:
    """The step that validated best, of equal ones one whose policy can be exported. Raises ConfigError without one."""
    results = {row["step"]: found for row in _logged(run) if (found := validation_of(row)) is not None}
    there = policies(run)
    if not results:
        raise ConfigError(f"{run.metrics} has no validation", remedy=f"give a step; {_listed(there)}")
    ranked = sorted(results, key=lambda step: (-results[step], step not in there, step))
    if (best := ranked[0]) in there:
        return best
    if not best:
        raise ConfigError(
            f"the policy that training began with validated best ({results[best]:.3f})",
            remedy=f"use {_started_with(run) or 'that model'}; {_listed(there)}",
        )
    second = next((step for step in ranked if step in there), None)
    raise ConfigError(
        f"step {best} validated best ({results[best]:.3f}), and its checkpoint was not kept",
        remedy=f"of the others, step {second} validated best ({results[second]:.3f}): --step {second}"
        if second is not None
        else _listed(there),
    )


def _listed(there: Mapping[int, Path]) -> str:
    steps = ", ".join(map(str, there))
    return f"steps that can be exported: {steps}" if steps else "no step can be exported: read logs/trainer.log"


def export_policy(run: Run, target: Path, *, step: int | None = None) -> Exported:
    """Write the policy after `step` (by default that of the last checkpoint) to `target`.

    Raises S3AgentError, and leaves no folder, when the tensors are not those of the starting model, or when no weight
    has changed although the trainer logged gradients.
    """
    if target.exists():
        raise ConfigError(f"{target} exists", remedy="give another folder, or remove it")
    wanted, there = step or exportable_step(run), policies(run)
    if (folder := there.get(wanted)) is None:
        damaged = step_folder(run, wanted)
        what = f"{run.folder} has no checkpoint" + (f" of step {wanted}" if wanted else "")
        if (damaged / "actor").is_dir():
            what = f"the checkpoint {damaged} was cut short"
        raise ConfigError(what, remedy=_listed(there))
    actor = folder / "actor"
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
        note = _compared(run, partial, start, model, step=wanted, checkpoint=folder)
        make_portable(partial, start)
        _name_base(partial / ADAPTER, model)
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
    with _replaced(run) as new:
        return export_policy(run, new)


def keep_start(run: Run) -> Exported:
    """Put the model that the run started from into the run as its policy. Raises ConfigError when it is not on disk."""
    model = _started_with(run)
    start = start_folder(model) if model else None
    if start is None:
        raise ConfigError(
            f"no step validated better than the policy that the run started from, and {model} is not on this machine",
            remedy=f"use that model; the run's checkpoints are in {run.after_best}; to train again from the beginning, "
            f"remove {run.guard} and resume",
        )
    with _replaced(run) as new:
        _copy(start, new)
        make_portable(new, start)
        follow_umask(new)
    return Exported(0, "no step validated better than the policy that the run started from: that one is kept")


@contextmanager
def _replaced(run: Run) -> Iterator[Path]:
    """Yields a folder that becomes the run's policy, and gives verl's copies of it the permissions of the umask."""
    new = run.policy.with_name(run.policy.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    yield new
    for checkpoint in policies(run).values():
        for copied in checkpoint.glob("actor/huggingface"):
            follow_umask(copied)
    shutil.rmtree(run.policy, ignore_errors=True)
    new.replace(run.policy)


def _started_with(run: Run) -> str | None:
    """The model that the trainer started from; None when the run has no record of it."""
    try:
        return str(json.loads(run.trainer.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name_base(adapter: Path, model: str | None) -> None:
    """Write into an adapter's configuration, if there is one, the model that it was trained on."""
    path = adapter / "adapter_config.json"
    if model and path.exists():
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": model, "target_modules": sorted(config["target_modules"])}
        write_whole(path, json.dumps(config, indent=2) + "\n")


def _compared(run: Run, folder: Path, start: Path | None, model: str | None, *, step: int, checkpoint: Path) -> str:
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
            f"the policy in {checkpoint} still has the weights of the starting model, although its steps had "
            "gradients: the trained weights are not in it",
            remedy="read logs/trainer.log; if a trainer of your own uses LoRA, its adapters are apart from the weights",
        )
    return "all weights equal those of the starting model: no step had a gradient"


def _updated(run: Run, *, until: int) -> bool:
    """Whether a logged step changed weights: it had a gradient and a learning rate."""
    for row in _logged(run):
        data = row["data"]
        gradient, rate = data.get("actor/grad_norm") or 0.0, data.get("actor/lr", 1.0)
        if row["step"] <= until and gradient > 0 and math.isfinite(gradient) and rate:
            return True
    return False


def _logged(run: Run) -> Iterator[dict[str, Any]]:
    """The rows of the run's metrics; an incomplete line is left out: the run was killed while writing it."""
    for line in run.metrics.read_bytes().splitlines() if run.metrics.exists() else ():
        with suppress(ValueError):
            yield json.loads(line)


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
