"""An exported policy gives the same logits under transformers 5, which wrote it, and under transformers 4.57."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from s3_agent.embedded import NANO_POLICY
from s3_agent.processes.run_folder import Run
from s3_agent.training.export import export_policy
from s3_agent.training.portable import in_both_forms, make_portable
from tests.installed_wheel import find_uv

OLD = "transformers==4.57.6"
SIZES = {
    **dict(vocab_size=3104, hidden_size=32, intermediate_size=48, num_hidden_layers=2, initializer_range=0.4),
    **dict(num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0),
}
SCALING = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    **{"original_max_position_embeddings": 32},
}
CONFIGS = {
    "qwen2": lambda: Qwen2Config(**SIZES, rope_theta=1e6, tie_word_embeddings=True),  # pyright: ignore[reportCallIssue]
    "llama": lambda: LlamaConfig(**SIZES, rope_theta=5e5, rope_scaling={**SCALING}),  # pyright: ignore[reportCallIssue]
}
TEXT = "<search> Which river flows through the capital of Spain, and where does it end? </search>" * 3
READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
def read(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    said = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].double()
    return {"ids": ids, "chat": said, "special": tokenizer.all_special_tokens, "dtype": str(model.dtype),
            "logits": logits.tolist()}
"""


def read(folder: Path) -> dict[str, Any]:
    """What this environment's transformers make of a folder."""
    names: dict[str, Any] = {}
    exec(READ, names)
    return names["read"](str(folder), TEXT)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers 4.57 and what it needs, before everything else on the import path; torch is this environment's."""
    folder = tmp_path_factory.mktemp("transformers-4")
    command = [find_uv(), "pip", "install", "--quiet", "--target", str(folder), "--python", sys.executable, OLD]
    environment = {**os.environ, "UV_HTTP_RETRIES": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    if done.returncode:
        pytest.skip(f"{OLD} can not be had here: {' '.join(done.stderr.split())[-200:]}")
    return folder


def read_by_old(old: Path, folders: list[Path]) -> Iterator[dict[str, Any]]:
    ask = "assert transformers.__version__.startswith('4.57')\n"
    ask += "for folder in sys.argv[2:]: print(json.dumps(read(folder, sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", READ + ask, TEXT, *map(str, folders)],
        env={**os.environ, "PYTHONPATH": str(old), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    yield from map(json.loads, done.stdout.splitlines())


def trained(folder: Path, kind: str) -> Path:
    """A run whose checkpoint has the policy as verl writes it: a bfloat16 model's configuration, float32 weights."""
    run = Run(folder)
    run.create()
    config = CONFIGS[kind]()
    torch.manual_seed(3)
    weights = AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    target = run.checkpoints / "global_step_1" / "actor" / "huggingface"
    model.save_pretrained(target, state_dict=weights)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(NANO_POLICY)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<search>", "</search>"]})
    tokenizer.save_pretrained(target)
    (target.parents[1] / "data.pt").touch()
    return folder


def start(run: Run, folder: Path, form: str) -> None:
    """The model that the run began with: as published in the old form, as transformers 5 writes it, or not here."""
    run.trainer.write_text(json.dumps({"model": str(folder)}))
    if form == "absent":
        return
    copy = run.checkpoints / "global_step_1" / "actor" / "huggingface"
    shutil.copytree(copy, folder)
    weights = load_file(folder / "model.safetensors")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(
        folder, state_dict={name: value * 1.01 for name, value in weights.items()}
    )
    if form == "old":
        config = json.loads((folder / "config.json").read_text())
        rope = config.pop("rope_parameters")
        config |= {"torch_dtype": config.pop("dtype"), "rope_theta": rope.pop("rope_theta")}
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        (folder / "config.json").write_text(json.dumps(config))
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        del tokenizer["backend"]
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    logits = (torch.tensor(found["logits"]) for found in (one, other))
    return torch.allclose(*logits, rtol=1e-4, atol=1e-4) and all(one[n] == other[n] for n in ("ids", "chat", "dtype"))


def test_old_and_new_readers_read_the_same_policy(old: Path, tmp_path: Path) -> None:
    exported: dict[str, Path] = {}
    expected: dict[str, dict[str, Any]] = {}
    raw: dict[str, Path] = {}
    for kind in CONFIGS:
        for form in ("old", "new", "absent"):
            run = Run(trained(tmp_path / f"{kind}-{form}", kind))
            start(run, tmp_path / f"start-{kind}-{form}", form)
            name = f"{kind}, the start is {form}"
            exported[name] = tmp_path / f"policy-{kind}-{form}"
            export_policy(run, exported[name])
            raw[kind] = run.checkpoints / "global_step_1" / "actor" / "huggingface"
            expected[name] = read(exported[name])
            full = AutoModelForCausalLM.from_pretrained(raw[kind], dtype=torch.float32)
            with torch.no_grad():
                logits = full(torch.tensor([expected[name]["ids"]])).logits[0, -1]
            assert torch.allclose(logits.double(), torch.tensor(expected[name]["logits"]).double(), atol=1e-5), name
    # As it was written, the old reader takes other rotary parameters; only its tokenizer has to be replaced.
    for kind, folder in raw.items():
        shutil.copytree(folder, tmp_path / f"raw-{kind}")
        for path in (NANO_POLICY / "tokenizer.json", exported[f"{kind}, the start is old"] / "tokenizer_config.json"):
            shutil.copy(path, tmp_path / f"raw-{kind}")
        config = json.loads((tmp_path / f"raw-{kind}" / "config.json").read_text()) | {"dtype": "float32"}
        (tmp_path / f"raw-{kind}" / "config.json").write_text(json.dumps(config))
    found = [*read_by_old(old, [*exported.values(), *(tmp_path / f"raw-{kind}" for kind in raw)])]
    for name, seen in zip(exported, found, strict=False):
        assert same(seen, expected[name]), name
        assert set(seen["special"]) >= {"<search>", "</search>"}, name
    for kind, seen in zip(raw, found[len(exported) :], strict=True):
        assert not same(seen, expected[f"{kind}, the start is old"]), f"{kind}: transformers 4 reads the new form"


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_a_run_overrides_of_its_model_is_exported(kind: str, tmp_path: Path) -> None:
    run = Run(trained(tmp_path / "run", kind))
    start(run, tmp_path / "start", "old")
    path = tmp_path / "start" / "config.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps(own | {"rope_theta": 7.0, "my_own_note": 1}))
    export_policy(run, tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert config["rope_theta"] == own["rope_theta"] and "my_own_note" not in config
    path.write_text(json.dumps(own | {"my_own_note": 1}))
    export_policy(run, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["my_own_note"] == 1


def test_both_forms_are_written_once_and_for_inner_models_too() -> None:
    scaled = {"rope_theta": 9.0, "partial_rotary_factor": 0.5, **SCALING}
    config = {
        "rope_parameters": scaled,
        "text_config": {"rope_parameters": {"rope_theta": 2.0, "rope_type": "default"}},
    }
    both = in_both_forms(config)
    assert both == {
        **{"rope_parameters": scaled, "rope_theta": 9.0, "partial_rotary_factor": 0.5, "rope_scaling": SCALING},
        "text_config": {"rope_parameters": {"rope_theta": 2.0, "rope_type": "default"}, "rope_theta": 2.0},
    }
    assert in_both_forms(both) == both
    layers = {"rope_parameters": {"full_attention": scaled, "sliding_attention": scaled}}
    assert in_both_forms(layers) == layers, "there is no one old form"


def test_a_template_that_the_run_set_is_kept(tmp_path: Path) -> None:
    """The tokenizer's files are the start's; the chat template is the checkpoint's."""
    for name in ("start", "policy"):
        shutil.copytree(NANO_POLICY, tmp_path / name)
    (tmp_path / "policy" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    (tmp_path / "policy" / "added_tokens.json").write_text("{}")
    make_portable(tmp_path / "policy", tmp_path / "start")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"
    assert not (tmp_path / "policy" / "added_tokens.json").exists()
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"], config["rope_theta"]) == ("bfloat16", "bfloat16", 10000.0)
