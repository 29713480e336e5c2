"""A full disk, a read-only folder, and two runs at once: nothing is lost, and the cause is told."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Workflow
from tests.fault_server import FaultServer, Hold
from tests.invariants import Invariants

pytestmark = pytest.mark.slow

Mount = Callable[[Path, str], None]


def mount_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount a tmpfs on a folder, or mount it again, with options."""
    mounted: list[Path] = []

    def do(folder: Path, options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if folder in mounted:
            options = f"remount,{options}"
        done = mount_command("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
        if done.returncode:
            pytest.skip(f"may not mount: {done.stderr.strip()}")
        if folder not in mounted:
            mounted.append(folder)

    yield do
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def free_space(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@pytest.mark.parametrize("full", ["", "results"], ids=["everything", "results"])
def test_a_full_disk(workflow: Workflow, server: FaultServer, mount: Mount, full: str) -> None:
    mount(workflow.folder / full, "size=16m")
    server.embedding = 20_000  # a box has about 400 kB, an export more than 1 MB
    invariants = Invariants(workflow)
    workflow.run()
    invariants.hold_after_a_clean_run()
    filler = workflow.folder / "results/filler"
    filler.write_bytes(bytes(free_space(workflow.folder / "results") - 1_000_000))
    server.edit("guns_1016205", "patch_000", reviews=5)
    before = workflow.published("guns_1016205")
    said = workflow.run(expect=1)
    assert "No space left" in said
    assert "free some space and run again" in said
    assert workflow.published("guns_1016205") == before
    invariants.hold()
    filler.unlink()
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]
    invariants.hold_after_a_clean_run()


def test_a_read_only_results_folder(workflow: Workflow, server: FaultServer, mount: Mount) -> None:
    results = workflow.folder / "results"
    mount(results, "rw")
    workflow.run()
    before = workflow.results()
    server.edit("guns_1016205", "patch_000", reviews=5)
    mount(results, "ro")
    said = workflow.run(expect=1)
    assert "Write-protected output files" in said
    assert "results/guns_1016205_complete_tracks.json" in said
    assert workflow.results() == before
    mount(results, "rw")
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]
    Invariants(workflow).hold_after_a_clean_run()


def test_a_write_protected_export_is_replaced(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    for path in (workflow.folder / "results").rglob("*.json"):
        path.chmod(0o444)
    server.edit("guns_1016205", "patch_000", reviews=5)
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]
    Invariants(workflow).hold_after_a_clean_run()
    assert all(path.stat().st_mode & 0o200 for path in (workflow.folder / "results").glob("*.json"))


def test_two_runs_at_once(workflow: Workflow, server: FaultServer) -> None:
    """The second is refused before it does anything, and the first ends well."""
    hold = Hold(100)
    server.fail("export", hold, batch="guns_1016205", times=1)
    first = subprocess.Popen(
        workflow.command(),
        env=workflow.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert hold.reached.wait(60)
    said = workflow.run(expect=1)
    assert server.count("batches") == 0
    assert "cannot be locked" in said
    assert "--unlock" in said
    hold.release.set()
    assert first.wait(60) == 0
    Invariants(workflow).hold_after_a_clean_run()
    workflow.run()
    assert workflow.exported() == []
