"""A preloaded interpreter: its forks behave like the plain interpreter, and nothing of them outlives anybody."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from s3_agent.preloaded import VARIABLE, server_command, write_executable

WITHIN_S = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def executable(folder: Path) -> Iterator[Path]:
    """One that has `colorsys` loaded, which nothing else imports."""
    server = subprocess.Popen([*server_command(folder, ["colorsys"])], stderr=subprocess.PIPE, text=True)
    try:
        yield write_executable(folder)
    finally:
        server.kill()
        server.wait()


def run(executable: Path, *arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [executable, *arguments],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        **kwargs,  # pyright: ignore[reportArgumentType, reportCallIssue]
    )


SEEN = """
import json, os, sys
print(json.dumps({
    "loaded": "colorsys" in sys.modules, "argv": sys.argv, "folder": os.getcwd(), "variable": os.environ.get("SEEN"),
    "name": __name__, "main": sys.modules["__main__"].__dict__ is globals(), "input": sys.stdin.read(),
    "shown": "SEEN=here" in open("/proc/self/environ").read().split(chr(0)),
}))
"""


@pytest.mark.parametrize("kind", ["code", "file", "module"])
def test_a_fork_sees_what_the_plain_interpreter_would(executable: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "seen.py").write_text(SEEN, encoding="utf-8")
    arguments = {"code": ["-c", SEEN], "file": ["seen.py"], "module": ["-m", "seen"]}[kind]
    environment = {**os.environ, "SEEN": "here"}
    done = [
        json.loads(run(Path(python), "-u", *arguments, "a", "b c", env=environment, cwd=tmp_path, input="in").stdout)
        for python in (str(executable), sys.executable)
    ]
    forked, plain = done
    assert (forked.pop("loaded"), plain.pop("loaded")) == (True, False)
    if kind == "module":  # the plain interpreter gives its path
        assert [forked["argv"][1:], plain["argv"][1:]] == [["a", "b c"]] * 2
        del forked["argv"], plain["argv"]
    assert forked == plain


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("pass", 0),
        ("1 / 0", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_the_client_ends_as_the_fork_did(executable: Path, code: str, status: int) -> None:
    assert run(executable, "-c", code).returncode == status


def test_what_is_registered_for_the_end_is_run(executable: Path) -> None:
    assert run(executable, "-c", "import atexit; atexit.register(print, 'bye'); print('hi')").stdout == "hi\nbye\n"


def test_files_that_the_client_was_given_are_the_forks(executable: Path) -> None:
    read, write = os.pipe()
    run(executable, "-c", f"import os; os.write({write}, b'through')", pass_fds=(write,))
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "through"


def test_what_a_fork_spawns_is_forked_too(executable: Path, tmp_path: Path) -> None:
    (tmp_path / "spawns.py").write_text(
        "import multiprocessing, sys\n"
        "def loaded(queue): queue.put('colorsys' in sys.modules)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn'); queue = context.Queue()\n"
        "    process = context.Process(target=loaded, args=(queue,)); process.start(); print(queue.get(timeout=20))\n"
        "    process.join(20); print(process.exitcode)\n",
        encoding="utf-8",
    )
    done = run(executable, "spawns.py", cwd=tmp_path, env={**os.environ, VARIABLE: str(executable)})
    assert done.stdout == "True\n0\n", done.stderr


def _started(
    executable: Path, code: str = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A client and its fork, which prints its process id."""
    client = subprocess.Popen([executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    return client, psutil.Process(int(client.stdout.readline()))


def _ends(fork: psutil.Process) -> bool:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        if not fork.is_running() or fork.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_fork_gets_the_clients_signals(executable: Path) -> None:
    code = "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
    client, fork = _started(executable, code + "print(os.getpid(), flush=True)\ntime.sleep(600)")
    client.terminate()
    assert client.wait(WITHIN_S) == 9
    assert _ends(fork)


def test_a_fork_does_not_outlive_a_client_that_was_killed(executable: Path) -> None:
    client, fork = _started(executable)
    assert fork.is_running()
    client.kill()
    client.wait(WITHIN_S)
    assert _ends(fork)


def test_nothing_outlives_the_server(folder: Path) -> None:
    server = subprocess.Popen(server_command(folder, []))
    client, fork = _started(write_executable(folder))
    server.kill()
    server.wait(WITHIN_S)
    assert client.wait(WITHIN_S) == 1
    assert _ends(fork)


def test_where_there_is_no_server_the_plain_interpreter_runs(folder: Path) -> None:
    server = subprocess.Popen(server_command(folder, ["no_such_module"]), stderr=subprocess.DEVNULL)
    assert server.wait(WITHIN_S) == 1
    done = run(write_executable(folder), "-c", "print(1)")
    assert (done.stdout, done.returncode) == ("1\n", 0)
    assert "starting" in done.stderr
