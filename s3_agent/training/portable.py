"""Makes transformers 4 and 5, and the servers built on them, read the same model from an exported folder.

Called by the export. transformers 5 writes rotary parameters only under new names: transformers 4 finds neither
`rope_theta` nor `rope_scaling`, uses its defaults without a warning, and does not know the tokenizer's class. So the
folder gets the files of the model that the run started from, and its configuration gets the old names too.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from s3_agent.data.files.whole import write_whole
from s3_agent.training.weights import DTYPES, tensors

CARRIED = (
    "*token*",
    "vocab*",
    "merges.txt",
    "*.model",
    "generation_config.json",
    "*processor_config.json",
    "*.py",
)
"""Files of the starting model that training does not change. A run can set its own chat template."""

# Filled in by the trainer from the tokenizer, written by each release about itself, or compared by `_rope`.
_NOT_COMPARED = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"),
}


def make_portable(folder: Path, start: Path | None) -> None:
    """Rewrite a model folder that the trainer wrote. `start`: the model that the run started from, or None."""
    config = _read(folder / "config.json")
    if start is not None:
        own = _read(start / "config.json")
        if own and _means_the_same(own, config):
            config = own
        if any(start.glob("tokenizer*")):
            _carry(start, folder)
    if config:
        config = in_both_forms(config)
        if found := {DTYPES[tensor.dtype] for tensor in tensors(folder).values() if tensor.dtype in DTYPES}:
            dtype = "float32" if len(found) > 1 else found.pop()
            config |= {"dtype": dtype, "torch_dtype": dtype}
        _write(folder / "config.json", config)
    if tokenizer := _read(path := folder / "tokenizer_config.json"):
        _write(path, tokenizer_in_both_forms(tokenizer))


def _carry(start: Path, folder: Path) -> None:
    for pattern in CARRIED:
        for path in folder.glob(pattern):
            path.unlink()
        for path in start.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def in_both_forms(config: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration with the names of transformers 4 and of transformers 5.

    Rotary parameters that differ between kinds of layers have no general old form, and stay as they are.
    """
    both = {
        key: in_both_forms(value) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
    }
    rope = both.get("rope_parameters")
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        return both
    scaling = dict(rope)
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in scaling:
            both.setdefault(name, scaling.pop(name))
    if set(scaling) - {"rope_type"} and not both.get("rope_scaling"):
        both["rope_scaling"] = scaling
    return both


def tokenizer_in_both_forms(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration with the names of transformers 4, which transformers 5 reads as well."""
    both = dict(config)
    if both.get("tokenizer_class") == "TokenizersBackend":
        both["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(both.get("extra_special_tokens"), list):
        both["additional_special_tokens"] = both.pop("extra_special_tokens")
    return both


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary parameters of either form, as transformers 5 reads them."""
    found = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    if "type" in found:
        found.setdefault("rope_type", found.pop("type"))
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in config:
            found.setdefault(name, config[name])
    return found


def _means_the_same(own: dict[str, Any], trained: dict[str, Any]) -> bool:
    """Whether the starting model's configuration also describes the trained model; a run can override some values."""
    for key in (own.keys() & trained.keys()) - _NOT_COMPARED:
        if key.endswith("_config") and isinstance(own[key], dict) and isinstance(trained[key], dict):
            if not _means_the_same(own[key], trained[key]):
                return False
        elif own[key] != trained[key]:
            return False
    rope = _rope(trained)
    return all(rope.get(name) == value for name, value in _rope(own).items())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
