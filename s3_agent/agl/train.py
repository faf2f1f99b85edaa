"""`python -m s3_agent.agl.train SETTINGS.json TRAIN.jsonl VALIDATION.jsonl METRICS.jsonl`: the real `run_ppo`.

A process of its own, so that the launcher can watch and end it like any other part.
"""

import os
import signal
import sys
from pathlib import Path

from s3_agent.agl.verl_config import TrainerSettings, trainer_config
from s3_agent.data.tasks import read_jsonl


def main(settings_file: str, train_file: str, validation_file: str, metrics_file: str) -> None:
    """Train until the last step. Raises whatever ended it."""
    settings = TrainerSettings.model_validate_json(Path(settings_file).read_text(encoding="utf-8"))
    os.environ["VERL_FILE_LOGGER_PATH"] = metrics_file
    config = trainer_config(settings, gateway_key=os.environ["AGL_KEY"])
    if settings.ray_address is None:
        # Ray's own switch for single machines: every daemon and worker of it listens on 127.0.0.1 alone.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if settings.device == "cpu":
        # The driver reads these before Ray hands them to its workers.
        os.environ.update(config.ray_kwargs.ray_init.runtime_env.env_vars)
    from agentlightning.verl.entrypoint import run_ppo

    run_ppo(config, train_dataset=read_jsonl(Path(train_file)), val_dataset=read_jsonl(Path(validation_file)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(*sys.argv[1:])
