"""The stack over real processes: order, readiness, deaths, and that nothing of a run outlives it."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from s3_agent.errors import LaunchError
from s3_agent.evaluation.job import services_id
from s3_agent.processes import stack as stack_module
from s3_agent.processes.ports import listening
from s3_agent.processes.stack import Interrupted, Part, Stack, own_processes, scratch_folder

ROOT = Path(__file__).parents[2]
SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
port, born, delay = int(sys.argv[1]), time.monotonic(), float(sys.argv[2])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() - born > delay else 503)
        self.end_headers()
    def log_message(self, *_): pass
print("serving", flush=True)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
SLEEPER = "import time; print('last words', flush=True); time.sleep(300)"
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(300)
    os._exit(0)
os.wait()
print("parent sleeps", flush=True)
time.sleep(300)
"""
RENAMED = """
import os, sys, time
from setproctitle import setproctitle
if os.fork() == 0:
    os.setsid()
    setproctitle("VLLM::EngineCore")
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(300)
while not (os.path.exists(sys.argv[1]) and os.path.getsize(sys.argv[1])):
    time.sleep(0.05)
os._exit(1)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def server(folder: Path, name: str, *, delay: float = 0.0, **kwargs: object) -> Part:
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port), str(delay)]
    url = f"http://127.0.0.1:{port}/"
    return Part(name=name, command=command, log=folder / f"{name}.log", ready_url=url, **kwargs)  # pyright: ignore[reportArgumentType]


def script(folder: Path, name: str, source: str, *arguments: str, **kwargs: object) -> Part:
    command = [sys.executable, "-c", source, *arguments]
    return Part(name=name, command=command, log=folder / f"{name}.log", **kwargs)  # pyright: ignore[reportArgumentType]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not reaped by its parent does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(path: Path) -> int:
    """The process id that a script writes to `path`."""
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.05)
    return int(path.read_text())


@pytest.fixture
def run_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A marker of this test's own; whatever carries it at the end is a failure, and is ended."""
    monkeypatch.setattr(stack_module, "STOP_S", 3.0)
    marker = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield marker
    left = own_processes(marker)
    for process in left:
        process.kill()
    assert left == []


def test_a_part_starts_when_what_it_needs_is_ready(tmp_path: Path, run_id: str) -> None:
    slow = server(tmp_path, "slow", delay=1.0)
    job = script(tmp_path, "job", "import time; print(time.time())", needs=("slow",))
    before = time.time()
    with Stack([job, slow], run_id=run_id) as stack:
        stack.run("job")
        assert stack.start_up_s["slow"] >= 1.0
    assert float((tmp_path / "job.log").read_text()) - before >= 1.0


def test_parts_that_need_nothing_start_together(tmp_path: Path, run_id: str) -> None:
    parts = [server(tmp_path, f"slow-{number}", delay=2.0) for number in range(3)]
    started = time.monotonic()
    with Stack(parts, run_id=run_id) as stack:
        stack.run()
        assert time.monotonic() - started < 5.0
        assert stack.starting == []


def test_a_part_is_stopped_after_those_that_need_it(tmp_path: Path, run_id: str) -> None:
    needed = server(tmp_path, "needed")
    asks = """
import signal, sys, time, urllib.request
def ends(*_):
    time.sleep(1.0)
    print(urllib.request.urlopen(sys.argv[1]).status, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, ends)
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""
    user = script(tmp_path, "user", asks, needed.ready_url or "", needs=("needed",))
    with Stack([needed, user], run_id=run_id) as stack:
        stack.run()
        deadline = time.monotonic() + 20
        while not (user.log.exists() and "ready" in user.log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert stack.stop() == 0
    assert user.log.read_text().split() == ["ready", "200"], "what it needs still answered"


def test_not_ready_in_time_names_part_log_and_remedy(tmp_path: Path, run_id: str) -> None:
    part = server(tmp_path, "generator", delay=60.0, ready_within_s=1.0, remedy="give it memory")
    with pytest.raises(LaunchError) as caught, Stack([part], run_id=run_id) as stack:
        stack.run()
    text = str(caught.value)
    assert "generator was not ready within 1 s" in text
    assert str(tmp_path / "generator.log") in text
    assert "serving" in text
    assert "give it memory" in text


def test_a_part_that_exits_is_an_error_with_its_code(tmp_path: Path, run_id: str) -> None:
    part = script(tmp_path, "gateway", "print('no such option'); raise SystemExit(3)", remedy="correct it")
    other = server(tmp_path, "other", delay=60)
    with pytest.raises(LaunchError) as caught, Stack([part, other], run_id=run_id) as stack:
        stack.run()
    text = str(caught.value)
    for expected in ("gateway ended with exit code 3", str(part.log), "no such option", "correct it"):
        assert expected in text


def test_a_killed_part_ends_the_run_and_its_daemons(tmp_path: Path, run_id: str) -> None:
    pid_file = tmp_path / "pid"
    victim = script(tmp_path, "workers", DAEMON, str(pid_file), remedy="start again")
    job = script(tmp_path, "trainer", SLEEPER)
    killed = False

    def kill_once() -> None:
        nonlocal killed
        if not killed and pid_file.exists() and "sleeps" in victim.log.read_text():
            killed = True
            [process] = [p for p in own_processes(run_id) if p.pid == os.getsid(p.pid) and str(pid_file) in p.cmdline()]
            process.send_signal(signal.SIGKILL)

    with pytest.raises(LaunchError) as caught, Stack([victim, job], run_id=run_id) as stack:
        stack.run("trainer", tick=kill_once)
    text = str(caught.value)
    for expected in ("workers was ended by SIGKILL", str(victim.log), "parent sleeps", "start again"):
        assert expected in text
    assert not alive(wait_for(pid_file))


def test_a_process_that_renames_itself_is_still_ours(tmp_path: Path, run_id: str) -> None:
    pytest.importorskip("setproctitle")
    pid_file = tmp_path / "pid"
    part = script(tmp_path, "generator", RENAMED, str(pid_file))
    try:
        with pytest.raises(LaunchError, match="generator ended"), Stack([part], run_id=run_id) as stack:
            stack.run("generator")
        assert not alive(wait_for(pid_file))
    finally:
        if alive(pid := wait_for(pid_file)):
            os.kill(pid, signal.SIGKILL)


def test_what_ignores_sigterm_is_killed_and_counted(tmp_path: Path, run_id: str) -> None:
    part = script(tmp_path, "stubborn", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER)
    stack = Stack([part], run_id=run_id)
    with stack:
        stack.run()
        while "last words" not in part.log.read_text():
            time.sleep(0.05)
        assert stack.stop() == 1


def test_the_run_leaves_strangers_alone(tmp_path: Path, run_id: str) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.DEVNULL)
    try:
        with Stack([server(tmp_path, "own")], run_id=run_id) as stack:
            stack.run()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_open_sockets_are_listed(tmp_path: Path, run_id: str) -> None:
    part = server(tmp_path, "retriever")
    with Stack([part], run_id=run_id) as stack:
        stack.run()
        [row] = listening(run_id)
    assert f":{row['port']}/" in str(part.ready_url)
    assert row["address"] == "127.0.0.1"
    assert row["loopback"] is True
    assert row["part"] == "retriever"


LAUNCHER = """
import signal, sys
from pathlib import Path
from s3_agent.processes import stack as module
from s3_agent.processes.stack import Interrupted, Part, Stack
module.STOP_S = 3.0
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may themselves run under nohup
daemon, pid_file, log, run_id = sys.argv[1:]
part = Part(name="part", command=[sys.executable, "-c", daemon, pid_file], log=Path(log))
try:
    with Stack([part], run_id=run_id) as stack:
        stack.run("part")
except Interrupted as interrupted:
    print("stopped by", interrupted)
    raise SystemExit(interrupted.code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("under_timeout", [False, True])
def test_a_signal_to_the_launcher_leaves_nothing(
    tmp_path: Path, run_id: str, number: signal.Signals, under_timeout: bool
) -> None:
    pid_file = tmp_path / "pid"
    arguments = [DAEMON, str(pid_file), str(tmp_path / "part.log"), run_id]
    launcher = subprocess.Popen(
        [*(["timeout", "60"] if under_timeout else []), sys.executable, "-c", LAUNCHER, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    daemon = wait_for(pid_file)
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=30)
    assert f"stopped by {number.name}" in output
    if not under_timeout:
        assert launcher.returncode == 128 + number
    assert not alive(daemon)
    assert own_processes(run_id) == []


def test_a_second_signal_does_not_end_the_clean_up(tmp_path: Path, run_id: str) -> None:
    second = False
    with pytest.raises(Interrupted), Stack([script(tmp_path, "part", SLEEPER)], run_id=run_id) as stack:
        stack.run()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            second = True
            raise
    assert second and own_processes(run_id) == []


def until_gone(part: int) -> None:
    deadline = time.monotonic() + 20
    while alive(part):
        assert time.monotonic() < deadline, "the part outlives its launcher"
        time.sleep(0.05)


def test_a_launcher_that_is_killed_takes_its_parts_along(tmp_path: Path, run_id: str) -> None:
    pid_file = tmp_path / "pid"
    writes = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(300)"
    arguments = [writes, str(pid_file), str(tmp_path / "part.log"), run_id]
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *arguments], cwd=ROOT)
    part = wait_for(pid_file)
    launcher.kill()
    launcher.wait()
    until_gone(part)


def test_a_launcher_that_is_killed_needs_no_setpriv(tmp_path: Path, run_id: str) -> None:
    """With nothing on PATH but what the test puts there."""
    pid_file = tmp_path / "pid"
    writes = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(300)"
    arguments = [writes, str(pid_file), str(tmp_path / "part.log"), run_id]
    command = [sys.executable, "-c", LAUNCHER, *arguments]
    launcher = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)})
    part = wait_for(pid_file)
    launcher.kill()
    launcher.wait()
    until_gone(part)


def test_a_part_has_the_signals_of_a_fresh_process(tmp_path: Path, run_id: str) -> None:
    shell = shutil.which("sh")
    assert shell
    part = Part(name="part", command=[shell, "-c", "grep SigIgn /proc/self/status"], log=tmp_path / "log")
    with Stack([part], run_id=run_id) as stack:
        stack.run("part")
    ignored = int((tmp_path / "log").read_text().split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_a_scratch_folder_is_for_its_user_alone_and_empty(tmp_path: Path, run_id: str) -> None:
    folder = scratch_folder(run_id)
    folder.mkdir(mode=0o777)
    (folder / "python.socket").touch()  # as a killed launcher leaves it
    with Stack([server(tmp_path, "own")], run_id=run_id):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(folder.iterdir()) == []
    assert not folder.exists()


def test_a_scratch_folder_that_is_a_link_is_refused(tmp_path: Path, run_id: str) -> None:
    target = tmp_path / "of-another"
    target.mkdir()
    (target / "file").touch()
    folder = scratch_folder(run_id)
    folder.symlink_to(target)
    try:
        with pytest.raises(LaunchError, match=r"(?s)not a folder of this user.*TMPDIR"):
            Stack([server(tmp_path, "own")], run_id=run_id)
        assert (target / "file").exists()
    finally:
        folder.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_scratch_folder_of_another_user_is_refused(tmp_path: Path, run_id: str) -> None:
    folder = scratch_folder(run_id)
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    try:
        with pytest.raises(LaunchError, match="not a folder of this user"):
            Stack([server(tmp_path, "own")], run_id=run_id)
        assert folder.stat().st_uid == 65534
    finally:
        folder.rmdir()


def test_evaluations_have_a_mark_that_nobody_can_guess_and_a_copy_has_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    mark = services_id(out)
    assert services_id(out) == mark
    assert stat.S_IMODE((out / ".services").stat().st_mode) == 0o600
    shutil.copytree(out, tmp_path / "copy")
    assert services_id(tmp_path / "copy") != mark
    shutil.rmtree(out)
    assert services_id(out) != mark


def test_a_missing_command_names_the_part(tmp_path: Path, run_id: str) -> None:
    part = Part(name="trainer", command=["/nonexistent/python"], log=tmp_path / "log", remedy="install it")
    with (
        pytest.raises(LaunchError, match=r"(?s)trainer can not be started.*install it"),
        Stack([part], run_id=run_id) as stack,
    ):
        stack.run()


def test_signals_are_handled_afterwards_as_before(tmp_path: Path, run_id: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stack([server(tmp_path, "own")], run_id=run_id) as stack:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            stack.run()
        assert signal.getsignal(signal.SIGINT) is before
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, hang_up)


def test_readiness_does_not_go_through_a_proxy(tmp_path: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with Stack([server(tmp_path, "own", ready_within_s=5.0)], run_id=run_id) as stack:
        stack.run()


def test_a_need_that_is_no_part_is_a_bug_told_at_once(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(AssertionError, match="gatway"):
        Stack([script(tmp_path, "workers", SLEEPER, needs=("gatway",))], run_id=run_id)


def test_parts_that_preload_are_forked_and_known_as_what_they_are(tmp_path: Path) -> None:
    """`listening` names the part of a fork's socket, though the fork was started with another part's environment."""
    port = free_port()
    loaded = "import sys; assert 'colorsys' in sys.modules; " + SERVER
    parts = [
        Part(
            name="forked",
            command=[sys.executable, "-c", loaded, str(port), "0"],
            log=tmp_path / "forked.log",
            ready_url=f"http://127.0.0.1:{port}/",
            environment={"OF_THE_PART": "1"},
            preload=("colorsys",),
        ),
        script(tmp_path, "plain", "import sys, time; assert 'colorsys' not in sys.modules; time.sleep(300)"),
    ]
    with Stack(parts, run_id="preload-test") as stack:
        stack.run()
        [row] = [row for row in listening(stack.run_id) if row["port"] == port]
        assert row["part"] == "forked"
        environment = psutil.Process(row["pid"]).environ()
        assert environment["OF_THE_PART"] == "1"
        assert stack.start_up_s.keys() == {"preloaded", "forked", "plain"}
        assert row["pid"] in {process.pid for process in own_processes(stack.run_id)}
    assert own_processes("preload-test") == []


def test_a_part_whose_modules_do_not_import_is_an_error_that_names_the_set_up(tmp_path: Path) -> None:
    part = Part(
        name="forked",
        command=[sys.executable, "-c", SLEEPER],
        log=tmp_path / "forked.log",
        ready_url=f"http://127.0.0.1:{free_port()}/",
        preload=("no_such_module_at_all",),
    )
    with Stack([part], run_id="preload-broken") as stack, pytest.raises(LaunchError) as told:
        stack.run()
    assert "no_such_module_at_all" in str(told.value)
    assert "setup" in told.value.remedy


def test_where_the_temporary_folder_runs_nothing_each_part_is_started_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module.os, "access", lambda path, mode: False)  # as on a file system mounted `noexec`
    part = server(tmp_path, "plain", preload=("colorsys",))
    with Stack([part], run_id="preload-noexec") as stack:
        stack.run()
        assert stack.start_up_s.keys() == {"plain"}
