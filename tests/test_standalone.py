"""The file `export_via_api.py` alone, in an empty folder, with nothing installed but requests."""

import base64
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import export_via_api
import pytest

from tests.fault_server import (
    Exchange,
    Fault,
    FaultServer,
    Hold,
    TrackState,
    as_json,
    close,
    cut,
    gzipped,
    login_page,
    mutated,
    other_batch,
    payload,
    redirect,
    reset,
    status,
)

SCRIPT = Path(export_via_api.__file__)
NEEDED = ("requests", "urllib3", "idna", "certifi", "charset-normalizer")
TOKEN = "s3cret-bearer-token-0123456789"
NO_PAUSE = "0"  # of Retry-After


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `requests` needs, and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for name in NEEDED:
        distribution = importlib.metadata.distribution(name)
        files = distribution.files or []
        for top in {file.parts[0] for file in files if file.parts[0] != ".."}:
            folder.joinpath(top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


@dataclass
class Exporter:
    """Runs a copy of the file in a folder of its own."""

    folder: Path
    home: Path
    packages: Path
    base_url: str
    environ: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        plain = {
            name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ
        }
        return subprocess.Popen(
            # -S: no site-packages, so that only `packages` is seen.
            [sys.executable, "-S", self.folder / SCRIPT.name, *arguments],
            env={
                **plain,
                "HOME": str(self.home),
                "PYTHONPATH": str(self.packages),
                "PYTHONDONTWRITEBYTECODE": "1",
                "EXPORT_API_BASE": self.base_url,
                **self.environ,
                **environ,
            },
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, *arguments: str, expect: int = 0, **environ: str) -> tuple[list[str], list[str]]:
        """Run it, and return the lines of its output and of its errors."""
        return self.finish(self.start(*arguments, **environ), expect)

    def finish(self, process: subprocess.Popen[str], expect: int) -> tuple[list[str], list[str]]:
        out, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors, errors
        assert process.returncode == expect, out + errors
        for line in errors.splitlines():
            assert line.isprintable()
            assert line.endswith("."), line
            assert len(line) < 800, line
        assert not list(self.folder.glob(".*")), "a partial file is left"
        return out.splitlines(), errors.splitlines()

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {SCRIPT.name}

    def state(self) -> dict[str, tuple[bytes, os.stat_result]]:
        """The files with all that is known of them (but when they were read)."""
        paths = [self.folder / name for name in self.names()]
        return {path.name: (path.read_bytes(), as_it_was(path)) for path in paths}

    def payload(self, key: str, status_filter: str = "complete") -> bytes:
        return (self.folder / export_via_api.export_file_name(key, status_filter)).read_bytes()


def as_it_was(path: Path) -> os.stat_result:
    values = list(path.stat())
    values[7] = 0  # when it was last read
    return os.stat_result(values)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.add("guns", {"p": TrackState(), "q": TrackState(pending=1)})
        server.add("tablets", {"p": TrackState(manually_completed=True, pending=3)})
        yield server


@pytest.fixture
def exporter(packages: Path, server: FaultServer, tmp_path: Path) -> Exporter:
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    shutil.copy(SCRIPT, tmp_path / "work")
    return Exporter(tmp_path / "work", tmp_path / "home", packages, server.base_url)


def test_nothing_else_is_installed(exporter: Exporter) -> None:
    code = """
        import importlib.util, requests
        for name in ("msgspec", "snakemake", "fastapi", "jsonschema", "yaml", "pytest"):
            assert not importlib.util.find_spec(name), name
    """
    (exporter.folder / SCRIPT.name).write_text("if True:" + code)
    exporter.run()


# Exports


@pytest.mark.parametrize("status_filter", ["", "complete", "all"])
def test_all_batches(exporter: Exporter, server: FaultServer, status_filter: str) -> None:
    out, errors = exporter.run(EXPORT_STATUS_FILTER=status_filter)
    kept = status_filter or "complete"
    assert exporter.names() == {f"guns_{kept}_tracks.json", f"tablets_{kept}_tracks.json"}
    for key, line in zip(("tablets", "guns"), out, strict=False):
        assert exporter.payload(key, kept) == server.bodies[key, kept]
        assert line == f"{key}: {len(server.bodies[key, kept]):,} bytes in {key}_{kept}_tracks.json"
    assert out[2:] == ["2 exported, 0 skipped (no matching tracks), 0 failed."]
    assert errors == []
    assert [request.method for request in server.requests] == ["GET"] * 3
    assert server.connections == 1


def test_it_runs_again(exporter: Exporter, server: FaultServer) -> None:
    exporter.run()
    before = exporter.state()
    exporter.run()
    after = exporter.state()
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in after)
    assert exporter.payload("guns") == server.bodies["guns", "complete"]


def test_chosen_batches(exporter: Exporter, server: FaultServer) -> None:
    server.add("a b")
    out, _ = exporter.run(EXPORT_BATCH_KEY=" a b, guns,,guns")
    assert [line.partition(":")[0] for line in out[:-1]] == ["a b", "guns"]
    assert exporter.names() == {"a%20b_complete_tracks.json", "guns_complete_tracks.json"}
    assert server.count("export", "tablets") == 0


def test_unknown_keys_fail_with_a_hint(exporter: Exporter, server: FaultServer) -> None:
    out, errors = exporter.run(EXPORT_BATCH_KEY="gunz,guns,\udcff,x/y", expect=1)
    assert exporter.names() == {"guns_complete_tracks.json"}
    assert out[-1] == "1 exported, 0 skipped (no matching tracks), 3 failed."
    assert len(errors) == 3
    assert errors[0].startswith("gunz: FAILED: ")
    assert "'guns'" in errors[0]
    assert server.count("export") == 1


def test_nothing_to_export_is_no_failure(exporter: Exporter, server: FaultServer) -> None:
    server.add("pending", {"p": TrackState(pending=3)})
    server.add("bare", {})
    out, errors = exporter.run()
    assert out[-1] == "2 exported, 2 skipped (no matching tracks), 0 failed."
    assert out[0].startswith("bare: skipped (No tracks found for export): ")
    assert out[1].startswith("pending: skipped (No completed tracks available for export): ")
    assert errors == []
    for key in ("pending", "bare"):
        value = json.loads(exporter.payload(key))
        assert value["info"]["batch_key"] == key
        assert value["tracks"] == value["annotations"] == value["images"] == []


def test_no_batches(exporter: Exporter, server: FaultServer) -> None:
    server.batches.clear()
    assert exporter.run() == (["0 exported, 0 skipped (no matching tracks), 0 failed."], [])


def test_hostile_keys(exporter: Exporter, server: FaultServer) -> None:
    keys = ["../x", "/abs", "a/b", "{x}", "a b", "a,b", "-n", ".hidden", "k" * 300, "Жёлтый-🦉"]
    keys += ["guns" + "_" * 30, "a\nb", "%2F", "\x1b[31m", "\u202e"]
    refused = ["", ".", "..", "\ud800"]
    for key in keys + refused:
        server.add(key)
    out, errors = exporter.run(expect=1)
    assert out[-1] == f"{2 + len(keys)} exported, 0 skipped (no matching tracks), 4 failed."
    assert all(line.isprintable() for line in out)
    for key in keys:
        assert exporter.payload(key) == server.bodies[key, "complete"]
    assert len(exporter.names()) == 2 + len(keys)
    for key, line in zip(reversed(refused), errors, strict=True):
        assert f"the batch key {export_via_api.show(key)} cannot be part of a URL" in line


def test_a_terminal_that_cannot_show_a_key(exporter: Exporter, server: FaultServer) -> None:
    server.add("Жёлтый")
    out, _ = exporter.run(PYTHONIOENCODING="ascii", EXPORT_BATCH_KEY="Жёлтый,guns")
    assert len(out) == 3
    assert len(exporter.names()) == 2


def test_entries_without_a_key(exporter: Exporter, server: FaultServer) -> None:
    server.fail("batches", mutated(lambda batches: batches.insert(0, {"batch_key": None})))
    out, errors = exporter.run(expect=1)
    assert out[-1] == "2 exported, 0 skipped (no matching tracks), 1 failed."
    assert "no such batch" in errors[0]


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("API_BASE", "localhost:8081"), ("API_BASE", "ftp://host/api"), ("API_BASE", "http://")),
        *(("API_BASE", "http://h/api?x=1"), ("API_BASE", "http://me:hunter22@h:99999/")),
        *(("STATUS_FILTER", "completed"), ("STATUS_FILTER", "ALL"), ("REQUEST_TIMEOUT", "0")),
        *(("REQUEST_TIMEOUT", "soon"), ("REQUEST_TIMEOUT", "-1"), ("REQUEST_TIMEOUT", "nan")),
        *(("API_TOKEN", "a\nb-hunter22"), ("API_TOKEN", "hunter22-ü")),
    ],
)
def test_a_bad_setting_is_2(exporter: Exporter, server: FaultServer, name: str, value: str) -> None:
    out, errors = exporter.run(expect=2, **{f"EXPORT_{name}": value})
    assert (out, len(errors)) == ([], 1)
    assert errors[0].startswith(f"Error: EXPORT_{name} ")
    assert "hunter22" not in errors[0]
    assert server.connections == 0
    assert exporter.names() == set()


def test_help_and_wrong_arguments(exporter: Exporter, server: FaultServer) -> None:
    out, _ = exporter.run("--help")
    for name in ("API_BASE", "BATCH_KEY", "STATUS_FILTER", "REQUEST_TIMEOUT", "API_TOKEN"):
        assert any(f"EXPORT_{name}" in line for line in out)
    with exporter.start("guns") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert server.connections == 0


# Failures


NOT_RETRIED: dict[str, tuple[Fault, str]] = {
    "batch gone": (status(404, {"detail": "Batch not found"}), "no such batch"),
    "route gone": (status(404, {"detail": "Not Found"}), "does not know this path"),
    "401": (status(401, {"detail": "Expired"}), "401: Expired): set EXPORT_API_TOKEN"),
    "403": (status(403, "<title>Forbidden</title>"), "403: Forbidden): set EXPORT_API_TOKEN"),
    "422": (status(422, {"detail": [{"msg": "bad filter"}]}), "422: bad filter"),
    "500": (status(500, "Internal Server Error"), "500: Internal Server Error"),
    "500 without words": (status(500, b"\xff\x00" * 99_999), "server error 500"),
    "503": (status(503, {"detail": "No"}, Retry_After=NO_PAUSE), "server error 503: No"),
    "429": (status(429, {"detail": "Slower"}, Retry_After=NO_PAUSE), "429: Slower"),
    "204": (status(204), "204"),
    "206": (status(206, {}), "206"),
    "login page": (login_page(), "HTML page titled 'Sign in'"),
    "malformed": (payload(b'{"info":{"batch_key" 1}}'), "malformed JSON"),
    "NaN": (mutated(lambda value: value.update(more=float("nan"))), "malformed JSON"),
    "nested": (payload(b'{"a":' * 99_999 + b"0" + b"}" * 99_999), "nested"),
    "detail with 200": (payload(b'{"detail":"Not authenticated"}'), "lacks one of"),
    "other batch": (other_batch("else"), "another batch, 'else'"),
    "no gzip": (status(200, b"{}", Content_Encoding="gzip"), "no usable answer"),
    "loop": (redirect(), "redirects"),
    "redirect to nonsense": (status(302, Location="http://[::1/"), "no usable answer"),
}
CUT: dict[str, tuple[Fault, str]] = {
    "empty": (payload(b""), "the body is empty"),
    "cut under a length": (cut(200), "cut short"),
    "cut under chunking": (cut(200, "chunked"), "cut short"),
    "close-delimited cut": (cut(200, "close"), "cut short after 200 bytes"),
    "gzip cut in a whole body": (gzipped(-20), "cut short"),
    "closed": (close(), "cannot reach"),
    "reset": (reset(100), "cut short"),
}


def test_failures_leave_the_old_files(exporter: Exporter, server: FaultServer) -> None:
    """Each batch fails in its own way and names its cause; the next is exported all the same."""
    for key in NOT_RETRIED:
        server.add(key)
    server.add("last")
    exporter.run()
    before = exporter.state()
    for key, (fault, _) in NOT_RETRIED.items():
        server.fail("export", fault, batch=key)
    assert_old_files_stay(exporter, before, server, NOT_RETRIED, exporter.run(expect=1))
    server.heal()
    assert (
        exporter.run()[0][-1]
        == f"{3 + len(NOT_RETRIED)} exported, 0 skipped (no matching tracks), 0 failed."
    )
    for key in server.batches:
        assert exporter.payload(key) == server.bodies[key, "complete"]


def assert_old_files_stay(
    exporter: Exporter,
    before: dict[str, Any],
    server: FaultServer,
    faults: dict[str, tuple[Fault, str]],
    said: tuple[list[str], list[str]],
) -> None:
    out, errors = said
    sound = [key for key in server.batches if key not in faults]
    count = f"{len(sound)} exported, 0 skipped (no matching tracks), {len(faults)} failed."
    assert out[-1] == count
    assert len(errors) == len(faults)
    after = exporter.state()
    assert after.keys() == before.keys()
    for key, (_, cause) in faults.items():
        name = export_via_api.export_file_name(key, "complete")
        assert after[name] == before[name], key
        [line] = [line for line in errors if line.startswith(f"{key}: FAILED: ")]
        assert cause in line
        assert "/tracks/export: " in line
    for key in sound:
        assert exporter.payload(key) == server.bodies[key, "complete"]


def test_a_failure_makes_no_file(exporter: Exporter, server: FaultServer) -> None:
    server.fail("export", status(500), batch="guns")
    exporter.run(expect=1)
    assert exporter.names() == {"tablets_complete_tracks.json"}


def in_process(
    exporter: Exporter, capsys: pytest.CaptureFixture[str]
) -> tuple[list[str], list[str]]:
    capsys.readouterr()
    assert export_via_api.main([]) == 1
    said = capsys.readouterr()
    assert not list(exporter.folder.glob(".*"))
    return said.out.splitlines(), said.err.splitlines()


def test_cut_bodies_leave_the_old_files(
    exporter: Exporter,
    server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As above for what is tried again, without the pauses."""
    for key in CUT:
        server.add(key)
    exporter.run()
    before = exporter.state()
    server.reset()
    for key, (fault, _) in CUT.items():
        server.fail("export", fault, batch=key)
    pauses: list[float] = []
    monkeypatch.setattr("export_via_api.time.sleep", pauses.append)
    monkeypatch.chdir(exporter.folder)
    monkeypatch.setenv("EXPORT_API_BASE", exporter.base_url)
    for name in ("BATCH_KEY", "STATUS_FILTER", "REQUEST_TIMEOUT", "API_TOKEN"):
        monkeypatch.delenv(f"EXPORT_{name}", raising=False)
    said = in_process(exporter, capsys)
    assert_old_files_stay(exporter, before, server, CUT, said)
    assert all(server.count("export", key) == 4 for key in CUT)
    assert len(pauses) == 3 * len(CUT)


@pytest.mark.slow
def test_cut_bodies_and_real_pauses(exporter: Exporter, server: FaultServer) -> None:
    faults = {
        key: CUT[key] for key in ("close-delimited cut", "gzip cut in a whole body", "closed")
    }
    for key in faults:
        server.add(key)
    exporter.run()
    before = exporter.state()
    for key, (fault, _) in faults.items():
        server.fail("export", fault, batch=key)
    processes = {key: exporter.start(EXPORT_BATCH_KEY=key) for key in faults}
    gone = exporter.start(EXPORT_API_BASE="http://127.0.0.1:1/api")
    with ThreadPoolExecutor() as pool:
        done = {key: pool.submit(p.communicate, timeout=60) for key, p in processes.items()}
        _, no_backend = gone.communicate(timeout=60)
    assert exporter.state() == before
    for key, (_, cause) in faults.items():
        out, error = done[key].result()
        assert processes[key].returncode == 1
        assert cause in error
        assert error.count("\n") == 1
        assert out == "0 exported, 0 skipped (no matching tracks), 1 failed.\n"
    assert gone.returncode == 1
    assert no_backend.startswith(
        "Error: GET /batches: cannot reach the backend at http://127.0.0.1:1"
    )
    assert "port-forward" in no_backend
    assert no_backend.count("\n") == 1


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (login_page("Log in"), "titled 'Log in'"),
        (status(401, {"detail": "No token"}), "EXPORT_API_TOKEN"),
        (status(403, {"detail": "Not yours"}), "EXPORT_API_TOKEN"),
        (status(404, {"detail": "Not Found"}), "EXPORT_API_BASE"),
        (status(500, "Internal Server Error"), "500: Internal Server Error"),
        (status(503, "", Retry_After=NO_PAUSE), "503"),
        (payload(b'{"detail":"No"}'), "not the list"),
        (payload(b'[{"batch_key":"guns"},]'), "malformed"),
    ],
    ids=["login", "401", "403", "404", "500", "503", "no list", "malformed"],
)
def test_no_batch_list(exporter: Exporter, server: FaultServer, fault: Fault, cause: str) -> None:
    exporter.run()
    before = exporter.state()
    server.fail("batches", fault)
    for chosen in ("", "guns"):
        out, errors = exporter.run(expect=1, EXPORT_BATCH_KEY=chosen)
        assert (out, len(errors)) == ([], 1)
        assert errors[0].startswith("Error: GET /batches: ")
        assert cause in errors[0]
    assert exporter.state() == before


def test_wrong_base_path(exporter: Exporter) -> None:
    _, errors = exporter.run(expect=1, EXPORT_API_BASE=exporter.base_url + "/v2/")
    assert len(errors) == 1
    assert "EXPORT_API_BASE" in errors[0]


def test_no_room_for_a_file(exporter: Exporter, server: FaultServer) -> None:
    """A limit on file sizes stands in for a full disk: both fail in a write."""
    server.embedding = 500
    server.add("bare", {})
    exporter.run()
    before = exporter.state()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        process = exporter.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out, errors = exporter.finish(process, expect=1)
    assert out[-1] == "0 exported, 1 skipped (no matching tracks), 2 failed."
    after = exporter.state()
    for key, line in zip(("tablets", "guns"), errors, strict=True):
        name = f"{key}_complete_tracks.json"
        assert line == f"{key}: FAILED: Cannot write {name}: File too large."
        assert before[name] == after[name]
    assert server.count("export", "guns") == 2, "not tried again"


def test_a_folder_in_the_way(exporter: Exporter, server: FaultServer) -> None:
    (exporter.folder / "guns_complete_tracks.json" / "full").mkdir(parents=True)
    out, errors = exporter.run(expect=1)
    assert errors == ["guns: FAILED: Cannot write guns_complete_tracks.json: Is a directory."]
    assert out[-1] == "1 exported, 0 skipped (no matching tracks), 1 failed."


def stopped_midway(exporter: Exporter, server: FaultServer, how: int) -> subprocess.Popen[str]:
    """Stop a run while the second of its two batches comes in."""
    exporter.run()
    before = exporter.payload("guns")
    hold = Hold(after=1000)
    server.fail("export", hold, batch="guns")
    process = exporter.start()
    assert process.stdout
    assert process.stdout.readline().startswith("tablets: "), "a line as soon as a batch is done"
    assert hold.reached.wait(30)
    process.send_signal(how)
    process.wait(30)
    assert exporter.payload("guns") == before
    assert exporter.payload("tablets") == server.bodies["tablets", "complete"]
    server.heal()
    return process


def test_an_interrupt(exporter: Exporter, server: FaultServer) -> None:
    process = stopped_midway(exporter, server, signal.SIGINT)
    _, errors = exporter.finish(process, expect=1)
    assert len(errors) == 1
    assert errors[0].startswith("Interrupted")


def test_a_kill(exporter: Exporter, server: FaultServer) -> None:
    with stopped_midway(exporter, server, signal.SIGKILL):
        visible = {name for name in exporter.names() if not name.startswith(".")}
    assert visible == {"guns_complete_tracks.json", "tablets_complete_tracks.json"}
    for part in exporter.folder.glob(".*.part"):
        part.unlink()
    exporter.run()
    assert exporter.payload("guns") == server.bodies["guns", "complete"]


# Secrets


def echo(code: int) -> Fault:
    def fault(exchange: Exchange) -> None:
        sent = exchange.request.headers.get("authorization", "")
        exchange.send_whole(as_json(code, {"detail": f"{'x' * 160} {sent}"}))

    return fault


SCENES: list[tuple[str, Fault]] = [
    *((kind, echo(code)) for kind in ("batches", "export") for code in (401, 500)),
    ("batches", redirect()),
    ("other", close()),  # nothing fails
]


@pytest.mark.parametrize("way", ["token", "credentials"])
def test_secrets_stay_secret(exporter: Exporter, server: FaultServer, way: str) -> None:
    """Sent to the backend, and not to be found in a file or in the output."""
    encoded = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    if way == "token":
        exporter.environ["EXPORT_API_TOKEN"] = TOKEN
    else:
        exporter.environ["EXPORT_API_BASE"] = exporter.base_url.replace("//", f"//me:{TOKEN}@")
    said = ""
    for kind, fault in SCENES:
        server.fail(kind, fault)
        process = exporter.start()
        said += "".join(process.communicate(timeout=60))
        server.heal()
    assert "Traceback" not in said
    sent = f"Bearer {TOKEN}" if way == "token" else f"Basic {encoded}"
    assert {request.headers.get("authorization") for request in server.requests} == {sent}
    written = b"".join(p.read_bytes() for p in exporter.folder.rglob("*") if p.is_file())
    for secret in (TOKEN, encoded):
        assert secret.encode() not in written
        assert secret[:12] not in said


@pytest.mark.parametrize("token", ["", TOKEN])
def test_netrc_and_proxies_do_nothing_on_loopback(
    exporter: Exporter, server: FaultServer, token: str
) -> None:
    netrc = exporter.home / ".netrc"
    netrc.write_text("default login a password b\nmachine 127.0.0.1 login a password b\n")
    netrc.chmod(0o600)
    with FaultServer() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            exporter.environ[name] = f"http://127.0.0.1:{proxy.port}"
        exporter.run(EXPORT_API_TOKEN=token)
        assert proxy.connections == 0
    sent = f"Bearer {token}" if token else None
    assert {request.headers.get("authorization") for request in server.requests} == {sent}
    assert len(server.requests) == 3
