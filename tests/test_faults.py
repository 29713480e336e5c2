"""What must hold when things go wrong: nothing lost, nothing half-written, nothing stale."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Workflow
from tests.fault_server import (
    Exchange,
    Fault,
    FaultServer,
    Hold,
    TrackState,
    close,
    cut,
    gzipped,
    login_page,
    mutated,
    other_batch,
    payload,
    status,
)


def pending_track(export: Any) -> None:
    export["tracks"][0].update(pending_annotations=3, manually_completed=False)


def unknown_image(export: Any) -> None:
    export["annotations"][1]["image_id"] = "nowhere"


def unknown_track(export: Any) -> None:
    export["annotations"][1]["track_tag"] = "nobody"


def image_twice(export: Any) -> None:
    export["images"].append(dict(export["images"][0]))


def track_twice(export: Any) -> None:
    export["tracks"].append(dict(export["tracks"][0]))


def without_tracks(export: Any) -> None:
    del export["tracks"]


# Faults of an export that are not tried again, and what the message must say.
CAUSES: dict[str, tuple[Fault, list[str]]] = {
    "batch not found": (status(404, {"detail": "Batch not found"}), ["no such batch"]),
    "wrong path": (status(404, {"detail": "Not Found"}), ["does not know this path"]),
    "401": (status(401, {"detail": "No token"}), ["401: No token", "EXPORT_API_TOKEN"]),
    "403": (status(403, {"detail": "Not yours"}), ["403: Not yours", "EXPORT_API_TOKEN"]),
    "422": (status(422, {"detail": [{"msg": "Bad filter"}]}), ["422: Bad filter"]),
    "500": (status(500, "Internal Server Error"), ["server error 500: Internal Server Error"]),
    "login page": (login_page("Sign in"), ["HTML page titled 'Sign in'", "EXPORT_API_BASE"]),
    "not JSON": (payload(b"nonsense"), ["not JSON", "'nonsense'"]),
    "malformed": (payload(b'{"info":{"batch_key":NaN}}'), ["malformed JSON"]),
    "error in a 200": (payload(b'{"detail":"oops"}'), ["`info`"]),
    "not all parts": (mutated(without_tracks), ["`tracks`"]),
    "another batch": (other_batch("guns_2"), ["of another batch, 'guns_2'"]),
    "pending track": (mutated(pending_track), ["3 pending annotations"]),
    "unknown image": (mutated(unknown_image), ["image_id 'nowhere'"]),
    "unknown track": (mutated(unknown_track), ["track_tag 'nobody'"]),
    "image twice": (mutated(image_twice), ["image id", "twice"]),
    "track twice": (mutated(track_twice), ["track tag", "twice"]),
}
# These are tried again, which takes some seconds: all in one run, a batch each.
RETRIED: dict[str, tuple[Fault, list[str]]] = {
    "empty body": (payload(b""), ["the body is empty"]),
    "cut, by length": (cut(500), ["cut short"]),
    "cut, chunked": (cut(500, "chunked"), ["cut short"]),
    "cut, until close": (cut(500, "close"), ["cut short after 500 bytes"]),
    "gzip cut inside": (gzipped(300), ["cut short"]),
    "503": (status(503, "overloaded"), ["server error 503: overloaded"]),
    "closed": (close(), ["cannot reach the backend"]),
}


def refuse_batches(server: FaultServer, causes: dict[str, tuple[Fault, list[str]]]) -> None:
    server.batches.clear()
    for name, (fault, _) in causes.items():
        server.add(name)
        server.fail("export", fault, batch=name)
    server.add("sound")


def assert_causes_told(said: str, causes: dict[str, tuple[Fault, list[str]]]) -> None:
    summary = said[said.index("Exports from") :].splitlines()
    for name, (_, words) in causes.items():
        told = [line for line in summary if line.strip().startswith(f"{name}: ")]
        assert len(told) == 1, name
        for word in words:
            assert word in told[0]


@pytest.mark.parametrize(
    ("causes", "before"),
    [(CAUSES, True), (RETRIED, False)],
    ids=["refused at once, a refresh", "tried again, a first export"],
)
def test_a_failed_export_names_its_cause_and_harms_nothing(
    workflow: Workflow,
    server: FaultServer,
    causes: dict[str, tuple[Fault, list[str]]],
    before: bool,
) -> None:
    refuse_batches(server, causes)
    kept: dict[str, bytes] = {}
    if before:
        server.heal()
        workflow.run()
        kept = workflow.results()
        refuse_batches(server, causes)  # ingested again: all are stale
    said = workflow.run(expect=1)
    assert_causes_told(said, causes)
    assert f"failed{len(causes):>10}" in said
    after = workflow.results()
    fresh = {name for name in after if "sound" in name}
    assert {name: after[name] for name in after.keys() - fresh} == {
        name: kept[name] for name in kept.keys() - fresh
    }
    workflow.assert_as_served("sound")

    server.heal()
    workflow.run()
    assert workflow.exported() == sorted(causes)
    workflow.assert_as_served(*causes, "sound")


EMPTY = ("No completed tracks available for export", "No tracks found for export")


def test_the_two_empty_answers_are_exports(workflow: Workflow, server: FaultServer) -> None:
    server.batches.clear()
    for detail in EMPTY:
        server.add(detail)
        server.fail("export", status(404, {"detail": detail}), batch=detail)
    said = workflow.run()
    for detail in EMPTY:
        exported = json.loads(workflow.published(detail))
        assert set(exported) == {"info", "images", "annotations", "categories", "tracks"}
        assert f"skipped, {detail[0].lower()}{detail[1:]}" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(404, {"detail": "Not Found"}), ["does not know this path", "EXPORT_API_BASE"]),
        (status(401, {"detail": "No token"}), ["401", "EXPORT_API_TOKEN"]),
        (status(500, "boom"), ["server error 500: boom"]),
        (login_page(), ["HTML page"]),
        (payload(b'{"a": 1}'), ["not the list"]),
        (payload(b'[{"batch_key": NaN'), ["cut short"]),
    ],
)
def test_a_failed_manifest_costs_nothing(
    workflow: Workflow, server: FaultServer, fault: Fault, words: list[str]
) -> None:
    workflow.run()
    before = workflow.results(), (workflow.folder / "resources/manifest.json").read_bytes()
    server.fail("batches", fault)
    said = workflow.run(expect=1)
    told = [line for line in said.splitlines() if line.startswith("Nothing was exported: ")]
    assert len(told) == 1
    for word in words:
        assert word in told[0]
    assert before == (
        workflow.results(),
        (workflow.folder / "resources/manifest.json").read_bytes(),
    )
    workflow.run("-n")
    server.heal()
    workflow.run()
    assert workflow.exported() == []


@pytest.mark.slow
def test_a_failed_listing_fails_its_batch_alone(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    before = workflow.published("guns_1016205")
    server.edit("guns_1016205", "patch_000", reviews=5)
    server.edit("tablet4_0001", "patch_000", reviews=5)
    server.fail("tracks", status(500, "boom"), batch="guns_1016205")
    for _ in range(2):
        said = workflow.run(expect=1)
        assert "guns_1016205: GET /batches/guns_1016205/tracks: server error 500: boom" in said
        assert workflow.published("guns_1016205") == before
    server.heal()
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]

    # Nothing was edited this time: the export is fresh as soon as the listing is well again.
    server.fail("tracks", status(500, "boom"), batch="guns_1016205")
    workflow.run(expect=1)
    server.heal()
    workflow.run()
    assert workflow.exported() == []


@pytest.mark.slow
def test_a_dead_backend_loses_no_file(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    before = workflow.results()
    server.stop()
    said = workflow.run("--forceall", expect=1)
    for word in ("cannot reach the backend", "port-forward", "EXPORT_API_BASE", "export_batches"):
        assert word in said
    workflow.run("--forceall", "--config", "refresh=false", expect=1)
    assert workflow.results() == before
    server.start()
    workflow.run()
    assert workflow.exported() == []
    workflow.assert_as_served("guns_1016205", "tablet4_0001")


def test_one_bad_batch_does_not_stop_the_others(workflow: Workflow, server: FaultServer) -> None:
    for number in range(10):
        server.add(f"batch_{number}")
    server.fail("export", status(500, "boom"), batch="batch_3")
    said = workflow.run("--cores", "1", "--workflow-profile", "none", expect=1)
    assert "batch_3: GET /batches/batch_3/tracks/export: server error 500: boom" in said
    workflow.assert_as_served(*(f"batch_{n}" for n in range(10) if n != 3), "guns_1016205")


def start(workflow: Workflow, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        workflow.command(*arguments),
        env=workflow.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_group(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    os.killpg(process.pid, number)
    process.wait(timeout=60)


def unlock(workflow: Workflow) -> None:
    if any((workflow.folder / ".snakemake/locks").glob("*")):
        workflow.run("--unlock")


@pytest.mark.parametrize(
    ("after", "options"),
    [(None, ("--workflow-profile", "none")), (700, ())],
    ids=["before the answer, no profile", "in mid-body"],
)
def test_killed_in_mid_download(
    workflow: Workflow, server: FaultServer, after: int | None, options: tuple[str, ...]
) -> None:
    workflow.run(*options)
    before = workflow.results()
    server.edit("guns_1016205", "patch_000", reviews=5)
    hold = Hold(after)
    server.fail("export", hold, batch="guns_1016205", times=1)
    run = start(workflow, *options)
    assert hold.reached.wait(60)
    kill_group(run)
    hold.release.set()
    published = {n: b for n, b in workflow.results().items() if not n.startswith(".staging")}
    assert published == before
    unlock(workflow)
    workflow.run(*options)
    assert workflow.exported() == ["guns_1016205"]
    workflow.assert_as_served("guns_1016205")
    assert not list(workflow.folder.glob("results/.staging/*"))


def when_written(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file is replaced, or the process ends."""
    before = path.stat().st_ino if path.exists() else None
    while process.poll() is None:
        if path.exists() and path.stat().st_ino != before:
            return


STEPS: dict[str, Callable[[Workflow], Path]] = {
    "request written": lambda w: w.folder / "resources/request.json",
    "revision written": lambda w: w.folder / "resources/revisions/guns_1016205_complete.json",
    "manifest written": lambda w: w.folder / "resources/manifest.json",
    "export in place": lambda w: w.path("guns_1016205"),
    "receipt written": lambda w: w.folder / "results/receipts/guns_1016205_complete.json",
    "download done": lambda w: w.folder / "results/.staging/guns_1016205_complete.done",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "options"),
    [
        *((step, ("--rerun-triggers", "mtime")) for step in STEPS),
        ("export in place", ()),
        ("download done", ("--workflow-profile", "none")),
    ],
)
def test_two_edits_with_a_killed_run_between(
    workflow: Workflow, server: FaultServer, step: str, options: tuple[str, ...]
) -> None:
    """Whatever the killed run had come to, the next clean run publishes the newest state.

    The second edit takes the first one back, so that the track listing is the first run's.
    """
    workflow.run(*options)
    server.edit("guns_1016205", "patch_001", manually_completed=True)
    run = start(workflow, *options)
    when_written(STEPS[step](workflow), run)
    kill_group(run)
    json.loads(workflow.published("guns_1016205"))
    server.edit("guns_1016205", "patch_001", manually_completed=False)
    unlock(workflow)
    workflow.run(*options)
    tracks = json.loads(workflow.published("guns_1016205"))["info"]["tracks"]
    assert tracks == ["patch_000", "patch_002"]
    workflow.assert_as_served("guns_1016205", "tablet4_0001")
    assert workflow.receipt("guns_1016205")["tracks"] == 2
    assert not list(workflow.folder.rglob("*.part"))
    workflow.run(*options)
    assert workflow.exported() == []


@pytest.mark.slow
def test_killed_when_asked_for_by_name(workflow: Workflow, server: FaultServer) -> None:
    """Snakemake plans a file that is asked for by name at once, and sees that it is incomplete."""
    options = ("--workflow-profile", "none")
    target = "results/guns_1016205_complete_tracks.json"
    workflow.run(target, *options)
    for kind in ("batches", "export"):
        server.edit("guns_1016205", "patch_000", primary_class=kind)
        hold = Hold()
        server.fail(kind, hold, times=1)
        run = start(workflow, target, *options)
        assert hold.reached.wait(60)
        kill_group(run)
        hold.release.set()
        unlock(workflow)
        workflow.run(target, *options)
        workflow.assert_as_served("guns_1016205")
        assert kind in workflow.published("guns_1016205").decode()


@pytest.mark.slow
def test_a_left_over_process_publishes_nothing(workflow: Workflow, server: FaultServer) -> None:
    """Killing Snakemake alone leaves its download behind, which ends when a newer one is out."""
    workflow.run()
    server.edit("guns_1016205", "patch_000", primary_class="old")
    hold = Hold(700)
    server.fail("export", hold, batch="guns_1016205", times=1)
    run = start(workflow)
    assert hold.reached.wait(60)
    run.kill()
    run.wait()
    server.edit("guns_1016205", "patch_000", primary_class="new")
    unlock(workflow)
    workflow.run()
    newest = workflow.published("guns_1016205")
    hold.release.set()
    with pytest.raises(ProcessLookupError):
        while True:  # until the process group that was left behind is gone
            os.killpg(run.pid, 0)
    assert workflow.published("guns_1016205") == newest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(workflow: Workflow, server: FaultServer, number: int) -> None:
    workflow.run()
    before = workflow.results()
    server.edit("guns_1016205", "patch_000", reviews=5)
    hold = Hold(700)
    server.fail("export", hold, batch="guns_1016205", times=1)
    run = start(workflow)
    assert hold.reached.wait(60)
    kill_group(run, number)
    assert run.returncode != 0
    assert workflow.published("guns_1016205") == before["guns_1016205_complete_tracks.json"]
    unlock(workflow)
    workflow.run()
    workflow.assert_as_served("guns_1016205")


def test_a_clock_that_went_back(workflow: Workflow, server: FaultServer) -> None:
    workflow.run("--rerun-triggers", "mtime")
    later = 4_000_000_000
    for path in (workflow.folder / "results").rglob("*.json"):
        os.utime(path, (later, later))
    server.edit("guns_1016205", "patch_000", reviews=5)
    workflow.run("--rerun-triggers", "mtime")
    assert workflow.exported() == ["guns_1016205"]


def test_no_space_left(workflow: Workflow, server: FaultServer) -> None:
    """A limit on file sizes stands in for a full disk: the write itself fails."""
    server.embedding = 4000
    workflow.run()
    before = workflow.results()
    server.edit("guns_1016205", "patch_000", reviews=5)
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 200; exec "$0" "$@"', *workflow.command()]
    done = subprocess.run(limited, env=workflow.environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "guns_1016205: Cannot write" in done.stdout + done.stderr
    assert workflow.results() == before
    workflow.run()
    workflow.assert_as_served("guns_1016205")


def test_warnings_are_told_once_and_kept(workflow: Workflow, server: FaultServer) -> None:
    def odd(export: Any) -> None:
        boxes = export["annotations"]
        boxes[0]["bbox"] = [0, 0, 0, 0]
        boxes[1]["bbox"] = None
        boxes[2]["bbox"] = [1900, 10, 50, 50]
        export["tracks"].append({"track_tag": "bare", "pending_annotations": 0})

    server.fail("export", mutated(odd), batch="guns_1016205")
    said = workflow.run()
    warnings = " ".join(workflow.receipt("guns_1016205")["warnings"])
    log = (workflow.folder / "logs/download/guns_1016205_complete.log").read_text()
    for words in (
        "1 boxes without area",
        "1 malformed boxes",
        "1 boxes that reach outside",
        "1 tracks without annotations (first: 'bare')",
        "differ from the manifest's: 1 more, 0 fewer",
    ):
        assert words in warnings
        assert words in log
        assert said.count(words) == 1


def test_far_fewer_tracks_than_before(workflow: Workflow, server: FaultServer) -> None:
    server.add("many", {f"patch_{n:03}": TrackState() for n in range(10)})
    workflow.run()
    server.add("many", {"patch_000": TrackState()})
    assert "1 tracks, where the last export had 10" in workflow.run()


def test_the_token_goes_to_the_server_and_nowhere_else(
    workflow: Workflow, server: FaultServer, tmp_path: Path
) -> None:
    token = "s3cr3t-t0k3n-0123456789"

    def echo(exchange: Exchange) -> None:
        detail = {"detail": f"bad: {exchange.request.headers.get('authorization')}"}
        status(403, detail)(exchange)

    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password n3trc-p4ssw0rd\n")
    netrc.chmod(0o600)
    server.fail("export", echo, batch="tablet4_0001")
    with FaultServer() as proxy:
        environ = {
            "EXPORT_API_TOKEN": token,
            "NETRC": str(netrc),
            "HTTP_PROXY": f"http://127.0.0.1:{proxy.port}",
            "http_proxy": f"http://127.0.0.1:{proxy.port}",
            "ALL_PROXY": f"http://127.0.0.1:{proxy.port}",
            "NO_PROXY": "",
            "no_proxy": "",
        }
        said = workflow.run(expect=1, **environ)
        assert not proxy.connections
    headers = {request.headers.get("authorization") for request in server.requests}
    assert headers == {f"Bearer {token}"}
    assert "bad: Bearer ***" in said
    for secret in (token, "n3trc-p4ssw0rd"):
        assert secret not in said
        for path in workflow.folder.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_credentials_in_the_base_url(workflow: Workflow, server: FaultServer) -> None:
    with_credentials = server.base_url.replace("http://", "http://me:hunter2@")
    said = workflow.run(EXPORT_API_BASE=with_credentials)
    assert all("authorization" in request.headers for request in server.requests)
    assert "hunter2" not in said
    for path in workflow.folder.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
    workflow.run()
    assert workflow.exported() == []
    said = workflow.run("--config", f"api_base={with_credentials}", expect=1)
    assert "holds credentials" in said
    assert "hunter2" not in said
