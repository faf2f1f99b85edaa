"""How the trainer's processes learn where the run's files are: Ray hands environment variables to each of them."""

from pathlib import Path

MODULES_VARIABLE = "VERL_USE_EXTERNAL_MODULES"
TRACKING = "s3_agent.agl.tracking"
METRICS_VARIABLE = "VERL_FILE_LOGGER_PATH"
SEED_VARIABLE = "S3_AGENT_SEED"
EPISODES_VARIABLE = "S3_AGENT_EPISODES"


def run_environment(*, metrics: Path, episodes: Path, run: str, wandb_mode: str, generation: int) -> dict[str, str]:
    """Where metrics and episodes are, and where trackers write: below the run's folder, by generation of the run."""
    folder = metrics.absolute().parent
    return {
        METRICS_VARIABLE: str(metrics.absolute()),
        EPISODES_VARIABLE: str(episodes.absolute()),
        # A resumed run logs some steps again: a folder of its own keeps both curves readable.
        "TENSORBOARD_DIR": str(folder / "tensorboard" / str(generation)),
        "WANDB_DIR": str(folder),
        "WANDB_MODE": wandb_mode,
        "WANDB_RUN_ID": run if generation == 0 else f"{run}-{generation}",
        "WANDB_RUN_GROUP": run,
    }
