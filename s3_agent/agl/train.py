"""`python -m s3_agent.agl.train SETTINGS.json TRAIN.jsonl VALIDATION.jsonl METRICS.jsonl EPISODES.jsonl`: `run_ppo`.

A separate process, so that the launcher can watch and end it like any other process of a run. The environment variable
AGL_KEY holds the gateway's key. Training continues from the newest checkpoint in the run's folder, if there is one.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from retrieval_server.proxies import NO_PROXY
from s3_agent.agl.run_files import run_environment
from s3_agent.agl.verl_config import TrainerSettings, environment, trainer_config
from s3_agent.data.tasks import read_jsonl
from s3_agent.preloaded import VARIABLE as PRELOADED

KEY_VARIABLE = "AGL_KEY"


def main(settings_file: str, train_file: str, validation_file: str, metrics_file: str, episodes_file: str) -> None:
    """Train until the last step. Raises the exception that ended training."""
    settings = TrainerSettings.model_validate_json(Path(settings_file).read_text(encoding="utf-8"))
    train, validation = read_jsonl(Path(train_file)), read_jsonl(Path(validation_file))
    if KEY_VARIABLE not in os.environ:
        raise ValueError(f"the gateway's key is missing: set the environment variable {KEY_VARIABLE}")
    # Set before verl or Ray is imported, also for the configuration: both read these variables when they are imported.
    variables = environment(settings, os.environ) | run_environment(
        metrics=Path(metrics_file),
        episodes=Path(episodes_file),
        run=settings.run,
        wandb_mode=settings.wandb_mode,
        generation=settings.generation,
    )
    os.environ.update(variables)
    config = trainer_config(settings, gateway_key=os.environ[KEY_VARIABLE])
    if executable := os.environ.get(PRELOADED):
        OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.py_executable", executable, force_add=True)
    if settings.ray_address:
        unproxied = {name: os.environ[name] for name in NO_PROXY if name in os.environ}
        _hand_over_environment(config, variables | unproxied)
    from agentlightning.verl import entrypoint

    if settings.ray_address:
        entrypoint._AglTaskRunner = _OnThisNode(entrypoint._AglTaskRunner)
    entrypoint.run_ppo(config, train_dataset=train, val_dataset=validation)


class _OnThisNode:
    """Agent Lightning's task on the Ray node of this process, where Ray may otherwise place it on any node.

    It is the only process of the trainer that calls the gateway and writes the metrics, both of this machine.
    """

    def __init__(self, task: Any) -> None:
        self._task = task

    def remote(self) -> Any:
        """Start the task; Ray is initialized by then."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return self._task.options(scheduling_strategy=here).remote()


def _hand_over_environment(config: DictConfig, extra: dict[str, str]) -> None:
    """Adds verl's variables, ours and `extra` to the Ray job, because a Ray that we did not start inherits nothing."""
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    ours = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    variables = {**get_ppo_ray_runtime_env()["env_vars"], **ours, **extra}
    OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.env_vars", variables, force_add=True)


def _reason(failure: BaseException) -> str:
    """The innermost cause, in one line; Ray wraps an exception once for each process that passes it on."""
    while cause := getattr(failure, "cause", None) or failure.__cause__:
        failure = cause
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[-1] if lines else ''}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main(*sys.argv[1:])
    except Exception as failure:
        traceback.print_exc()
        sys.exit(f"training failed: {_reason(failure)}")
