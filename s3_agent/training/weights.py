"""Compares the weights of two model folders: their names and shapes, and how far training has moved them.

Called by the export and by comparisons. It reads the safetensors files directly, one tensor at a time, because the
launcher should need neither torch nor the memory for a model.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3_agent.errors import ConfigError
from s3_agent.machine.model_files import model_folder

SHOWN = 3
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# Tensors that some models publish but training does not load: computed tables, and layers that predict more tokens.
_UNTRAINED = re.compile(r"(.*\.)?rotary_emb\.inv_freq|(model\.)?mtp\..*")
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a safetensors file: `dtype` as the file names it; its bytes are from `begin` to `end` in the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def values(self) -> Any:
        """Its values as a flat array: bfloat16, which numpy lacks, as float32; dtypes that are not floats as bytes."""
        import numpy as np

        kind = np.dtype(_NUMPY.get(self.dtype, "u1"))
        raw = np.fromfile(self.path, kind, count=(self.end - self.begin) // kind.itemsize, offset=self.begin)
        return (raw.astype("<u4") << 16).view("<f4") if self.dtype == "BF16" else raw


def start_folder(model: str) -> Path | None:
    """The folder of a run's starting weights; None when they are not on this machine as safetensors."""
    folder = model_folder(model)
    return folder if folder is not None and any(folder.glob("*.safetensors")) else None


def tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model folder by name, from the headers of its files. Raises ConfigError for a damaged file."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found |= _of_file(path)
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise ConfigError(
                f"{path} is not a complete safetensors file: {cause}",
                remedy="export the policy again, or of another step",
            ) from cause
    return found


def _of_file(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
        if data > (size := path.stat().st_size):
            raise ValueError("it is cut short")
        described: dict[str, Any] = json.loads(file.read(data - 8))
    described.pop("__metadata__", None)
    found = {}
    for name, told in described.items():
        begin, end = (data + offset for offset in told["data_offsets"])
        if end > size:
            raise ValueError("it is cut short")
        found[name] = Tensor(path, told["dtype"], tuple(told["shape"]), begin, end)
    return found


def require_same_names(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, folder: Path, tied: bool) -> None:
    """Raises ConfigError unless `after`, read from `folder`, has exactly the tensors of `before`.

    `tied`: the output layer is the embedding, so its tensor may be present or missing.
    """
    free = {_HEAD} if tied else set[str]()
    missing = {name for name in before.keys() - after.keys() - free if not _UNTRAINED.fullmatch(name)}
    unexpected = after.keys() - before.keys() - free
    shapes = {name for name in before.keys() & after.keys() if before[name].shape != after[name].shape}
    wrong = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if wrong:
        raise ConfigError(
            f"the weights in {folder} are not those of the model that the run started from: {'; '.join(wrong)}",
            remedy="the checkpoint is of another model, or a trainer of your own wrapped its weights (LoRA): a server "
            "would ignore tensors that it does not know; train with trainer.lora or all weights",
        )


def changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Iterator[float]:
    """The largest absolute change of each tensor that both have, in the precision of `after`.

    Rounding to a narrower precision does not count as a change.
    """
    import numpy as np

    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if new.dtype not in _NUMPY or old.dtype not in _NUMPY:
            yield float(old.dtype != new.dtype or not np.array_equal(old.values(), new.values()))
            continue
        difference = np.abs(new.values() - _rounded(old.values(), new.dtype))
        yield float(difference.max(initial=0.0))


def _rounded(values: Any, dtype: str) -> Any:
    if dtype != "BF16":
        return values.astype(_NUMPY[dtype])
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype("<u4").view("<f4")


def largest_change(before: str | Path, after: Path) -> float:
    """The largest absolute change of a weight between two model folders. Raises ConfigError for other weights."""
    start = start_folder(str(before))
    if start is None:
        raise ConfigError(
            f"the weights of {before} are not on this machine", remedy="download the starting model of the run"
        )
    known, new = tensors(start), tensors(after)
    require_same_names(known, new, folder=after, tied=is_tied(after))
    return max(changes(known, new), default=0.0)


def is_tied(folder: Path) -> bool:
    """Whether the model's output layer is its embedding, by its config.json."""
    try:
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"))
    except (OSError, ValueError, AttributeError):
        return False
