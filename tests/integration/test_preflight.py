"""The doctor over real files: the recipe `cpu` is sound, and what is broken in a copy of its files is found."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from s3_agent.cli import main as cli
from s3_agent.doctor import gather as preflight
from s3_agent.doctor.checks.memory import plans, ram_items
from s3_agent.doctor.examine import examine
from s3_agent.doctor.findings import errors
from s3_agent.doctor.job import doctor_job, dry_run_extra, require_sound
from s3_agent.embedded import CORPUS, NANO_POLICY, RAG_CACHE, TRAIN, VALIDATION
from s3_agent.errors import ConfigError
from s3_agent.machine.description import GIB, Disk, Machine, described
from s3_agent.recipe import load_recipe
from tests.doctor_cases import HOST


@pytest.fixture(autouse=True)
def on_a_sound_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*, paths: Any, inputs: Any, packages: Any) -> Machine:
        return Machine((), replace(HOST, packages=packages, disks=dict.fromkeys(paths, Disk(1, 100 * GIB)), cuda=None))

    monkeypatch.setattr(preflight, "this_machine", taken)


def found(*overrides: str) -> dict[str, str]:
    return {finding.id: finding.what for finding in examine(preflight.gather(load_recipe("cpu", overrides)))}


def test_the_shipped_cpu_recipe_is_sound() -> None:
    assert found() == {}


def test_an_environment_that_can_not_serve_the_generator_is_found(tmp_path: Path) -> None:
    told = found(f"generator.python={tmp_path / 'python'}")
    assert "is not a Python interpreter" in told["versions.generator"]
    assert found(f"generator.python={tmp_path / 'python'}", "generator.url=http://127.0.0.1:1/v1") == {}


def test_training_is_refused_with_every_error(tmp_path: Path) -> None:
    require_sound(load_recipe("cpu"))
    wrong = load_recipe("cpu", [f"data.train={tmp_path / 'none.jsonl'}", "gateway.port=8000"])
    with pytest.raises(ConfigError, match=r"(?s)files\.train.*ports\.same|ports\.same.*files\.train"):
        require_sound(wrong)


@pytest.mark.parametrize(
    ("field", "source", "id"),
    [
        ("train", TRAIN, "files.train"),
        ("validation", VALIDATION, "files.validation"),
        ("rag_cache", RAG_CACHE, "files.rag_cache"),
        ("corpus", CORPUS, "files.corpus"),
    ],
)
def test_a_file_that_is_missing_or_cut_is_found(field: str, source: Path, id: str, tmp_path: Path) -> None:
    assert id in found(f"data.{field}={tmp_path / 'missing'}")
    if field in ("corpus",):
        (tmp_path / "empty.jsonl").touch()
        assert id in found(f"data.{field}={tmp_path / 'empty.jsonl'}")
        return
    cut = tmp_path / source.name
    cut.write_bytes(source.read_bytes()[:-20])
    assert id in found(f"data.{field}={cut}")


def test_a_cache_of_another_corpus_is_found(tmp_path: Path) -> None:
    other = tmp_path / "corpus.jsonl"
    other.write_text("\n".join(CORPUS.read_text(encoding="utf-8").splitlines()[:-1]), encoding="utf-8")
    problems = found(f"data.corpus={other}")
    assert set(problems) == {"rag-cache.fingerprint"}
    assert "corpus is" in problems["rag-cache.fingerprint"]


def test_a_cache_of_another_generator_is_found() -> None:
    assert set(found("generator.max_tokens=25")) == {"rag-cache.fingerprint"}


def test_a_cut_model_and_a_foreign_tokenizer_are_found(tmp_path: Path) -> None:
    model = tmp_path / "policy"
    shutil.copytree(NANO_POLICY, model)
    assert found(f"policy.model={model}") == {}
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 3000}), encoding="utf-8")
    assert set(found(f"policy.model={model}")) == {"protocol.vocabulary"}
    (model / "model.safetensors").unlink()
    assert "files.policy-incomplete" in found(f"policy.model={model}")


def test_a_policy_without_a_chat_template_is_found(tmp_path: Path) -> None:
    model = tmp_path / "policy"
    shutil.copytree(NANO_POLICY, model)
    (model / "chat_template.jinja").unlink()
    assert "files.tokenizer" in found(f"policy.model={model}")


def test_a_setting_that_verl_does_not_have_is_found() -> None:
    assert "files.trainer-config" in found("trainer.verl.actor_rollout_ref.actor=3")


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        *(
            (name, "8x40gb")
            for name in ("s3_8x40gb", "s3_3b_8x40gb", "s3_async_8x40gb", "s3_2x8x40gb", "search_r1_8x40gb")
        ),
        ("s3_1x80gb", "1x80gb"),
        ("s3_lora_1x24gb", "1x24gb"),
        ("s3_lora_1x80gb", "1x80gb"),
    ],
)
def test_a_dry_run_without_gpus_plans_for_the_cards_that_a_recipe_was_made_for(name: str, machine: str) -> None:
    assert f"planned for {machine}, the smallest" in str(dry_run_extra(load_recipe(name))[0])


def test_the_plan_of_a_dry_run_names_every_card() -> None:
    lines = "\n".join(map(str, dry_run_extra(load_recipe("s3_8x40gb"))))
    assert "GPU 0,1,2,3,4,5: trainer" in lines
    assert "index 30.1 GiB" in lines
    assert "TOO MUCH" not in lines


def test_the_command_prints_json_and_ends_with_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor_job(load_recipe("cpu"), as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["findings"] == [] and told["checked_files"]
    assert doctor_job(load_recipe("s3_8x40gb"), machine="8x24gb", as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert {row["id"] for row in told["findings"]} >= {"memory.trainer", "memory.retriever"}
    assert not told["checked_files"]


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    assert runner.invoke(cli.app, ["doctor"]).output.strip().endswith("nothing found")
    refused = runner.invoke(cli.app, ["doctor", "--recipe", "s3_8x40gb", "--machine", "8x24gb"])
    assert refused.exit_code == 1
    assert "[memory.trainer]" in refused.output


ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (Path(__file__).parents[2] / "docs" / "runbook.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d+x\d+gb \|", line)
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row[:2]))
def test_the_runbooks_table_is_what_the_doctor_computes(row: list[str]) -> None:
    machine, name, overrides, phase, gpu, ram, runs = row
    case = preflight.gather(load_recipe(name, overrides.strip("`").split()), machine=described(machine))
    trainer = plans(case)[0]
    assert (phase, gpu) == (trainer.peak.name, f"{trainer.peak.size / GIB:.1f} of {trainer.free / GIB:.1f}")
    assert int(ram) == round(sum(ram_items(case).values()) / GIB)
    assert runs.startswith("yes") == (not errors(examine(case)))


def test_the_runbook_has_a_table() -> None:
    assert len(ROWS) > 5
