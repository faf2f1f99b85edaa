"""Reads the shape of a model from its own config.json or, if that is not on this machine, from a published one.

Used by the doctor and the run's records. The counts are exact for the dense decoders of Llama and Qwen (grouped-query
attention, gated MLP, RMS norm). A model of another kind has no shape here, so its memory is not planned. Nothing is
ever downloaded.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s3_agent.errors import ConfigError

DENSE = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a dense decoder. `bits` of each linear weight, quantized in groups of `group`; 16: not quantized."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    positions: int
    qkv_bias: bool = False
    qk_norm: bool = False
    bits: int = 16
    group: int = 128
    source: str = "published config"

    @property
    def layer_linear(self) -> int:
        """The number of weights in one layer's matrices."""
        attention = 2 * self.hidden * self.heads * self.head_dim + 2 * self.hidden * self.kv_heads * self.head_dim
        return attention + 3 * self.hidden * self.intermediate

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return self.layer_linear + bias + 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding; the output layer has as many, or is the same tensor."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.layer + self.embedding * (1 if self.tied else 2) + self.hidden

    def weight_bytes(self) -> int:
        """Weights as a server holds them: 16 bits, or quantized matrices with their scales and zero points."""
        if self.bits == 16:
            return 2 * self.parameters
        matrices = self.layers * self.layer_linear
        packed = matrices * self.bits // 8 + matrices // self.group * (16 + self.bits) // 8
        return packed + 2 * (self.parameters - matrices)

    def kv_bytes(self) -> int:
        """Bytes of KV cache for one token, in 16 bits."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


_QWEN_3B = ModelShape(2048, 36, 16, 2, 128, 11008, 151936, tied=True, positions=32768, qkv_bias=True)
_QWEN_7B = ModelShape(3584, 28, 28, 4, 128, 18944, 152064, tied=False, positions=32768, qkv_bias=True)
_QWEN_14B = ModelShape(5120, 48, 40, 8, 128, 13824, 152064, tied=False, positions=32768, qkv_bias=True)
_LLAMA_3B = ModelShape(3072, 28, 24, 8, 128, 8192, 128256, tied=True, positions=131072)
PUBLISHED = {
    "Qwen/Qwen2.5-3B": _QWEN_3B,
    "Qwen/Qwen2.5-3B-Instruct": _QWEN_3B,
    "Qwen/Qwen2.5-3B-Instruct-GPTQ-Int4": replace(_QWEN_3B, bits=4),
    "Qwen/Qwen2.5-7B": replace(_QWEN_7B, positions=131072),
    "Qwen/Qwen2.5-7B-Instruct": _QWEN_7B,
    "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4": replace(_QWEN_7B, bits=4),
    "Qwen/Qwen2.5-7B-Instruct-1M": replace(_QWEN_7B, positions=1010000),
    "Qwen/Qwen2.5-14B-Instruct": _QWEN_14B,
    "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4": replace(_QWEN_14B, bits=4),
    "meta-llama/Llama-3.2-3B": _LLAMA_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_3B,
}


def from_config(config: dict[str, Any], *, source: str) -> ModelShape | None:
    """The shape that a config.json describes; None for a kind of model whose parameters we can not count."""
    if config.get("model_type") not in DENSE or config.get("attention_bias"):
        return None
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    quantization = config.get("quantization_config") or {}
    return ModelShape(
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        intermediate=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        positions=config["max_position_embeddings"],
        qkv_bias=config["model_type"] == "qwen2",
        qk_norm=config["model_type"] == "qwen3",
        bits=int(quantization.get("bits", 16)),
        group=int(quantization.get("group_size", 128)),
        source=source,
    )


def model_folder(model: str) -> Path | None:
    """Where a model is on this machine: the folder itself, or its newest snapshot in the Hugging Face cache."""
    if (folder := Path(model)).is_dir():
        return folder
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def model_shape(model: str, folder: Path | None) -> ModelShape | None:
    """The shape of a model: its own config.json first, then a published one. Raises ConfigError for a broken file."""
    if folder is None:
        return PUBLISHED.get(model)
    path = folder / "config.json"
    try:
        return from_config(json.loads(path.read_text(encoding="utf-8")), source=str(path))
    except FileNotFoundError:
        return PUBLISHED.get(model)
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ConfigError(
            f"{path} is not the configuration of a model: {cause!r}", remedy="download the model again"
        ) from cause


def missing_files(folder: Path) -> tuple[str, ...]:
    """The files of configuration, tokenizer and weights that are missing in a model folder, including shards."""
    lacking = []
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        lacking.append("config.json")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        lacking.append("tokenizer.json")
    for index in sorted(folder.glob("*.index.json")):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return (*lacking, index.name)
        return (*lacking, *sorted(shard for shard in shards if not (folder / shard).is_file()))
    if not any(path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)):
        lacking.append("model.safetensors")
    return tuple(lacking)


_BLOCKS = 64


_BLOCK_BYTES = 1 << 16


def model_identity(model: str) -> dict[str, Any]:
    """Identifies a model: a folder by a hash of its files' names and sizes and of 64 blocks of each; else by its name.

    A training step changes weights everywhere in a file, so 64 blocks show the change without reading 15 GB.
    """
    folder = Path(model)
    if not folder.is_dir():
        return {"name": model}
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for block in range(_BLOCKS):
                file.seek(size * block // _BLOCKS)
                digest.update(file.read(_BLOCK_BYTES))
    return {"sha256": digest.hexdigest()}
