"""How far training has moved a policy, weight by weight."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s3_agent.errors import ConfigError


def _folder(model: str | Path) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(model), local_files_only=True))


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                yield name, file.get_tensor(name)


def largest_change(before: str | Path, after: Path) -> float:
    """The largest absolute difference of a weight between two model folders. Raises ConfigError for other weights."""
    known, largest, seen = dict(_tensors(_folder(before))), 0.0, 0
    for name, tensor in _tensors(after):
        if name not in known or known[name].shape != tensor.shape:
            raise ConfigError(f"{after} has the weight {name}, {before} has not", remedy="compare a run with its start")
        largest, seen = max(largest, float((tensor.float() - known[name].float()).abs().max())), seen + 1
    if not seen:
        raise ConfigError(f"{after} holds no weights", remedy="read the run's trainer.log")
    return largest
