"""One export is bounded in time, in size and in memory, whatever the server sends."""

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from export_via_api import ApiError, Client, check_payload

from tests.conftest import ROOT, Workflow
from tests.fault_server import Fault, FaultServer, bomb, drip, drip_head, endless, status

KINDS = ("batches", "tracks", "export")
MB = 1 << 20


def request_of(client: Client, kind: str, folder: Path) -> Callable[[], object]:
    path = folder / "x"
    return {
        "batches": client.batches,
        "tracks": lambda: client.tracks("guns_1016205"),
        "export": lambda: client.download(
            "guns_1016205", "all", path, lambda p: check_payload(p, "guns_1016205")
        ),
    }[kind]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ApiError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fault",
    [drip(1, 0.02), drip_head(0.02), status(503, {"detail": "busy"}, Retry_After="60")],
    ids=["body", "headers", "asks to wait"],
)
def test_time_is_bounded(server: FaultServer, tmp_path: Path, kind: str, fault: Fault) -> None:
    """No wait is as long as the timeout; all of them together are."""
    client = Client(server.base_url, 10, {}, time_limit=0.3)
    server.fail(kind, fault)
    message = refusal(request_of(client, kind, tmp_path))
    assert "not finished after 0.3 s" in message
    assert "EXPORT_TIME_LIMIT" in message
    assert server.count(kind) == 1
    server.heal()
    request_of(client, kind, tmp_path)()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [endless(b" " * MB), bomb(100 * MB)], ids=["endless", "bomb"])
def test_size_is_bounded(server: FaultServer, tmp_path: Path, kind: str, fault: Fault) -> None:
    client = Client(server.base_url, 10, {}, size_limit=20)
    server.fail(kind, fault)
    message = refusal(request_of(client, kind, tmp_path))
    larger = "20 MB: see what the backend sends, and raise EXPORT_SIZE_LIMIT"
    assert (larger if kind == "export" else "67 MB: no list has so much") in message
    assert server.count(kind) == 1
    path = tmp_path / "x"
    assert not path.exists() or path.stat().st_size <= 20_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_redirect_without_end(server: FaultServer, tmp_path: Path, kind: str) -> None:
    """Its body would be read into memory before it is followed."""
    server.fail(kind, endless(b" " * MB, 302, Location="/elsewhere"))
    message = refusal(request_of(Client(server.base_url, 10, {}), kind, tmp_path))
    assert "a redirect with a body without end" in message


def test_netrc_does_not_reach_where_a_redirect_leads(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password n3trc\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("no_proxy", "*")
    with FaultServer() as other:
        other.add("guns_1016205")
        location = f"{other.base_url}/batches"
        server.fail("batches", status(307, Location=location))
        client = Client(server.base_url, 10, {"EXPORT_API_TOKEN": "t0k3n"})
        client._session.trust_env = True  # as for a backend on another host
        client.batches()
        assert server.requests[0].headers["authorization"] == "Bearer t0k3n"
        assert "authorization" not in other.requests[0].headers


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak of memory by process")
@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_bounded_under_a_bomb(server: FaultServer, tmp_path: Path, kind: str) -> None:
    """A gigabyte in a megabyte of gzip, refused before it is held."""
    server.fail(kind, bomb(1 << 30))
    code = f"""
        import pathlib, resource
        from export_via_api import ApiError, Client, check_payload
        client = Client({server.base_url!r}, 60, {{}}, size_limit=200)
        calls = {{"batches": client.batches, "tracks": lambda: client.tracks("guns_1016205"),
            "export": lambda: client.download("guns_1016205", "all", pathlib.Path("x"), print)}}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            calls[{kind!r}]()
        except ApiError as error:
            print(error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = re.search(r"larger than .* (\d+)$", run.stdout.strip())
    assert told, run.stdout + run.stderr
    assert int(told[1]) < 100_000, "kB"


def test_a_dripping_and_a_bombing_batch_do_not_hold_a_run(
    workflow: Workflow, server: FaultServer
) -> None:
    server.fail("export", drip(1, 0.05), batch="guns_1016205")
    server.add("bombed")
    server.fail("export", bomb(30 * MB), batch="bombed")
    said = workflow.run(expect=1, EXPORT_TIME_LIMIT="2", EXPORT_SIZE_LIMIT="10")
    workflow.assert_as_served("tablet4_0001")
    assert "guns_1016205: GET /batches/guns_1016205/tracks/export: not finished after 2 s" in said
    assert "bombed: GET /batches/bombed/tracks/export: the body is larger than 10 MB" in said
    assert sorted(path.name for path in workflow.path("x").parent.glob("*.json")) == [
        "tablet4_0001_complete_tracks.json",
        "tattoo2k25_complete_tracks.json",
    ]
    assert not list(workflow.folder.rglob("*.part"))
    server.fail("batches", drip(1, 0.05))
    assert "Nothing was exported: GET /batches: not finished after 1 s" in workflow.run(
        expect=1, EXPORT_TIME_LIMIT="1"
    )
    server.heal()
    workflow.run()
    workflow.assert_as_served("guns_1016205")
