"""Whether exports are still what was downloaded, and how they are mended."""

import os
from pathlib import Path

import pytest
from verify_exports import differences

from tests.conftest import Workflow
from tests.fault_server import FaultServer, status

OPTIONS = [(), ("--rerun-triggers", "mtime"), ("--config", "refresh=false")]


def damage(workflow: Workflow) -> dict[str, str]:
    """Do what people and disks do to files; return what `verify` should say of each."""
    edited = workflow.path("edited")
    before = edited.stat()
    edited.write_bytes(edited.read_bytes().replace(b"gun", b"gum"))
    os.utime(edited, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    cut = workflow.path("cut")
    cut.write_bytes(cut.read_bytes()[:-10])
    os.utime(cut, (4_000_000_000, 4_000_000_000))
    workflow.path("deleted").unlink()
    (workflow.folder / "results/receipts/unreceipted_complete.json").write_text("{")
    return {
        "cut": "and had",
        "deleted": "is gone",
        "edited": "was changed (SHA-256 ",
        "unreceipted": "has no sound receipt",
    }


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=["default", "mtime only", "offline"])
def test_what_differs_is_told_and_repaired(
    workflow: Workflow, server: FaultServer, options: tuple[str, ...]
) -> None:
    for key in ("edited", "cut", "deleted", "unreceipted"):
        server.add(key)
    workflow.run()
    assert "All 7 exports are as they were downloaded." in workflow.run("verify")
    assert not server.requests
    assert "nothing to repair" in workflow.run("repair", *options)
    assert not server.requests

    told = damage(workflow)
    server.edit("guns_1016205", "patch_000", reviews=5)  # stale, which is not what is asked for
    damaged = workflow.results()
    said = workflow.run("verify", expect=1)
    for key, what in told.items():
        assert f"{workflow.path(key).relative_to(workflow.folder)} " in said
        assert what in said
    assert "4 of 7 exports are not as they were downloaded" in said
    assert "snakemake --cores 4 repair" in said
    assert workflow.run("-n", "repair").count("To be exported again") == 4
    assert (workflow.results(), server.requests) == (damaged, [])

    server.fail("export", status(500, "boom"))
    workflow.run("repair", *options, expect=1)
    assert workflow.results() == damaged
    server.heal()
    workflow.run("repair", *options)
    assert workflow.exported() == sorted(told)
    assert server.count("tracks") == (0 if "refresh=false" in options else len(told))
    workflow.assert_as_served(*told)
    assert "All 7 exports are as they were downloaded." in workflow.run("verify")
    assert workflow.exported() == []


def test_a_truncated_export_is_no_fresh_one(workflow: Workflow) -> None:
    workflow.run()
    path = workflow.path("guns_1016205")
    path.write_bytes(path.read_bytes()[:-1])
    said = workflow.run("status")
    assert "1 damaged" in said
    assert "repair" in said


def test_nothing_to_verify(tmp_path: Path) -> None:
    assert differences(1, tmp_path) == {}
    (tmp_path / "summary.json").touch()
    (tmp_path / "other_tracks.json").touch()
    (tmp_path / "a_all_tracks.json").touch()
    assert list(differences(1, tmp_path)) == ["a_all"]
