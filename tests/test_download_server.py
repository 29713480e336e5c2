"""The process that many downloads are forked from: one a run, and gone with it."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import Workflow
from tests.fault_server import FaultServer, Hold

pytestmark = pytest.mark.slow
BATCHES = 12


@pytest.fixture
def gate(server: FaultServer) -> Hold:
    """Many batches; the first exports, which begin before the server is ready, wait for this."""
    for number in range(BATCHES):
        server.add(f"batch_{number}")
    gate = Hold()
    server.fail("export", gate, times=4)
    return gate


@pytest.fixture
def hold(server: FaultServer, gate: Hold) -> Hold:
    """One of the exports after them waits for this."""
    hold = Hold(after=100)
    server.fail("export", hold, times=1)
    return hold


@contextmanager
def running(workflow: Workflow) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        workflow.command(),
        env=workflow.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def servers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the servers that a run started, without what they forked."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "download_server.py" in " ".join(child.cmdline())]


def folder_of(server: psutil.Process) -> Path:
    return Path(server.cmdline()[-1]).parent


def held(process: subprocess.Popen[bytes], gate: Hold, hold: Hold) -> psutil.Process:
    """Wait until the server is at an export; return it."""
    assert gate.reached.wait(60)
    while not (found := servers(process)) or not (folder_of(found[0]) / "socket").exists():
        assert process.poll() is None
        time.sleep(0.05)
    gate.release.set()
    assert hold.reached.wait(60)
    (server,) = found
    return server


def test_many_downloads_share_a_process(workflow: Workflow, gate: Hold, hold: Hold) -> None:
    with running(workflow) as process:
        server = held(process, gate, hold)
        folder = folder_of(server)
        assert folder.stat().st_mode & 0o777 == 0o700
        hold.release.set()
        assert process.wait(60) == 0
        psutil.wait_procs([server], timeout=30)
        assert not server.is_running()
        assert not folder.exists()
    workflow.assert_as_served(*(f"batch_{number}" for number in range(BATCHES)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_killed_fails_no_export(
    workflow: Workflow, gate: Hold, hold: Hold, number: signal.Signals
) -> None:
    with running(workflow) as process:
        server = held(process, gate, hold)
        server.send_signal(number)
        hold.release.set()
        assert process.wait(60) == 0
    workflow.assert_as_served(*(f"batch_{number}" for number in range(BATCHES)))


def test_nothing_outlives_a_killed_run(workflow: Workflow, gate: Hold, hold: Hold) -> None:
    with running(workflow) as process:
        server = held(process, gate, hold)
        family = [server, *server.children(recursive=True)]
        assert len(family) > 1
        process.kill()
        process.wait(60)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive


def test_few_downloads_need_none(workflow: Workflow, server: FaultServer) -> None:
    hold = Hold()
    server.fail("export", hold, batch="guns_1016205")
    with running(workflow) as process:
        assert hold.reached.wait(60)
        assert not servers(process)
        hold.release.set()
        assert process.wait(60) == 0


def test_a_temporary_folder_that_can_hold_no_socket(
    workflow: Workflow, server: FaultServer, tmp_path: Path
) -> None:
    for number in range(BATCHES):
        server.add(f"batch_{number}")
    folder = tmp_path / ("long" * 40)  # a socket's path has to be shorter
    folder.mkdir()
    workflow.run(TMPDIR=str(folder))
    workflow.assert_as_served(*(f"batch_{number}" for number in range(BATCHES)))
