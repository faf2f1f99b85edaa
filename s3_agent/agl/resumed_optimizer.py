"""Lets a resumed run train with the learning rate, weight decay and betas of its recipe.

A checkpoint holds the optimizer's moments together with its settings, and the rate that the schedule began with. verl
0.8 takes all of it, so a resumed run would keep the settings that it was started with, whatever its recipe says. This
module loads the moments and the schedule's position, and keeps the settings of the configuration. With settings that
have not changed, it changes no number.

verl loads this module with the model (`s3_agent.agl.with_model`).
"""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

CONFIGURED = ("lr", "initial_lr", "weight_decay", "betas")
"""The options of a group of parameters that verl's configuration of an optimizer sets."""

_load_checkpoint = FSDPCheckpointManager.load_checkpoint


def load_checkpoint(self: Any, *args: Any, **kwargs: Any) -> None:
    """verl's `load_checkpoint`, after which optimizer and schedule have the settings that they had before."""
    optimizer: Optimizer | None = self.optimizer
    groups = [] if optimizer is None else optimizer.param_groups
    options = [{name: group[name] for name in CONFIGURED if name in group} for group in groups]
    _load_checkpoint(self, *args, **kwargs)
    if optimizer is None:
        return
    for group, configured in zip(optimizer.param_groups, options, strict=True):
        group.update(configured)
    if isinstance(self.lr_scheduler, LambdaLR):
        _continue_schedule(self.lr_scheduler)


def _continue_schedule(schedule: LambdaLR) -> None:
    """Set the rates to those of the schedule at its position. Its functions are not part of a checkpoint."""
    groups = schedule.optimizer.param_groups
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in groups]


FSDPCheckpointManager.load_checkpoint = load_checkpoint
