"""The environment variables that give the trainer's processes the paths of the run's files; Ray passes them on."""

from pathlib import Path

MODULES_VARIABLE = "VERL_USE_EXTERNAL_MODULES"
TRACKING = "s3_agent.agl.tracking"
METRICS_VARIABLE = "VERL_FILE_LOGGER_PATH"
SEED_VARIABLE = "S3_AGENT_SEED"
EPISODES_VARIABLE = "S3_AGENT_EPISODES"


def run_environment(*, metrics: Path, episodes: Path, run: str, wandb_mode: str, generation: int) -> dict[str, str]:
    """Variables with the paths of metrics and episodes, and with the folders of trackers, below the run's folder."""
    folder = metrics.absolute().parent
    return {
        METRICS_VARIABLE: str(metrics.absolute()),
        EPISODES_VARIABLE: str(episodes.absolute()),
        # A resumed run logs some steps again: a folder for each generation keeps both curves readable.
        "TENSORBOARD_DIR": str(folder / "tensorboard" / str(generation)),
        "WANDB_DIR": str(folder),
        "WANDB_MODE": wandb_mode,
        "WANDB_RUN_ID": run if generation == 0 else f"{run}-{generation}",
        "WANDB_RUN_GROUP": run,
    }
