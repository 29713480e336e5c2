"""summary.tsv, SHA256SUMS and `status`: what they say, and that they are true after every run."""

import csv
import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from export_records import Export, manifest_path, receipt_path, revision_path, write_record
from export_status import human_age, status_rows, status_table
from export_summary import page_path, summary_path, sums_path, update_summary

from tests.conftest import SUMMARY as FILES
from tests.conftest import Workflow
from tests.fault_server import FaultServer, Hold, TrackState, status


def table(workflow: Workflow) -> dict[tuple[str, str], dict[str, str]]:
    with (workflow.folder / "results/summary.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {(row["batch_key"], row["status_filter"]): row for row in rows}


def states(workflow: Workflow) -> dict[str, str]:
    return {key: row["state"] for (key, _), row in table(workflow).items()}


def check_sums(workflow: Workflow) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=workflow.folder / "results",
        capture_output=True,
        text=True,
    )


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {name: (folder / "results" / name).stat() for name in FILES}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def ask_status(workflow: Workflow, *arguments: str, **environ: str) -> Any:
    """What `status` prints to stdout, as JSON if it is."""
    workflow.server.reset()
    done = subprocess.run(
        workflow.command("status", *arguments),
        env=workflow.environment(**environ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert workflow.server.count("export") == 0
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout


def batch_states(workflow: Workflow, **environ: str) -> dict[str, str]:
    found = ask_status(workflow, "--config", "status_json=true", **environ)
    return {row["batch_key"]: row["state"] for row in found["batches"]}


def test_summary_says_what_the_receipts_say(workflow: Workflow, server: FaultServer) -> None:
    said = workflow.run()
    assert "write summary" in said
    rows = table(workflow)
    assert len(rows) == 3
    row = rows["guns_1016205", "complete"]
    receipt = workflow.receipt("guns_1016205")
    for key in ("file", "sha256", "revision", "exported_at"):
        assert row[key] == receipt[key]
    for key in ("tracks", "images", "annotations", "size"):
        assert int(row[key]) == receipt[key]
    assert (row["tracks_complete"], row["tracks_in_batch"]) == ("2", "3")
    assert row["warnings"] == " | ".join(receipt["warnings"])
    assert rows["tattoo2k25", "complete"]["state"] == "empty"


def test_sums_pass_and_fail_when_a_byte_is_changed(workflow: Workflow) -> None:
    workflow.run()
    done = check_sums(workflow)
    assert done.returncode == 0 and done.stdout.count(": OK") == 3
    body = bytearray(workflow.published("tablet4_0001"))
    body[10] ^= 1
    workflow.path("tablet4_0001").write_bytes(body)
    done = check_sums(workflow)
    assert done.returncode == 1 and "tablet4_0001_complete_tracks.json: FAILED" in done.stdout


@pytest.mark.slow
def test_a_run_without_a_change_rewrites_nothing(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    before = stamps(workflow.folder)
    log = workflow.folder / "logs/summary.log"
    log.unlink()
    workflow.run()
    workflow.run("--rerun-triggers", "mtime")
    workflow.run("results/guns_1016205_complete_tracks.json")
    assert stamps(workflow.folder) == before
    assert not log.exists()  # no job was run for it
    workflow.run(EXPORT_BATCH_KEY="guns_1016205")
    assert {name: stamp[0] for name, stamp in stamps(workflow.folder).items()} == {
        name: stamp[0] for name, stamp in before.items()
    }
    server.edit("guns_1016205", "patch_000", reviews=9)
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]
    assert all(stamps(workflow.folder)[name] != before[name] for name in FILES)
    # Made again with the very same content: newer receipts must not mean a job in every run.
    workflow.run("-f", "results/tattoo2k25_complete_tracks.json")
    log.unlink()
    workflow.run()
    assert not log.exists()


@pytest.mark.slow
def test_other_filters_and_batches_gone_stay_listed(
    workflow: Workflow, server: FaultServer
) -> None:
    workflow.run()
    workflow.run("results/guns_1016205_all_tracks.json")
    assert ("guns_1016205", "all") in table(workflow)
    server.remove("tablet4_0001")
    server.add("guns_1016205", {"patch_000": TrackState()})  # ingested again
    found = batch_states(workflow)
    assert found == {"guns_1016205": "stale", "tablet4_0001": "gone", "tattoo2k25": "empty"}
    kept = workflow.published("tablet4_0001")
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]
    assert workflow.published("tablet4_0001") == kept
    rows = table(workflow)
    assert rows["tablet4_0001", "complete"]["state"] == "gone"
    assert rows["guns_1016205", "complete"]["state"] == "fresh"
    assert rows["guns_1016205", "all"]["state"] == "fresh"  # as of the run that last asked
    assert check_sums(workflow).stdout.count(": OK") == 4
    server.add("tablet4_0001", {"patch_000": TrackState()})
    workflow.run()
    assert workflow.exported() == ["tablet4_0001"]
    assert states(workflow)["tablet4_0001"] == "fresh"


@pytest.mark.slow
def test_a_failed_export_keeps_its_row_and_the_others_are_summed_up(
    workflow: Workflow, server: FaultServer
) -> None:
    server.fail("export", batch="tablet4_0001", fault=status(500, "no"))
    workflow.run(expect=1)
    assert states(workflow).keys() == {"guns_1016205", "tattoo2k25"}
    assert batch_states(workflow)["tablet4_0001"] == "failed"
    server.heal()
    workflow.run()
    old = table(workflow)["tablet4_0001", "complete"]
    for batch in ("guns_1016205", "tablet4_0001"):
        server.edit(batch, "patch_000", reviews=5)
    server.fail("export", batch="tablet4_0001", fault=status(500, "no"))
    workflow.run(expect=1)
    rows = table(workflow)
    assert rows["tablet4_0001", "complete"] == old | {"state": "failed"}
    assert rows["guns_1016205", "complete"]["sha256"] == workflow.receipt("guns_1016205")["sha256"]
    assert check_sums(workflow).returncode == 0
    text = ask_status(workflow)
    assert "Why the last try failed:" in text and "server error 500" in text
    server.heal()
    workflow.run()
    assert states(workflow)["tablet4_0001"] == "fresh"


@pytest.mark.slow
def test_a_killed_run_is_summed_up_by_the_next(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    for batch in ("guns_1016205", "tablet4_0001"):
        server.edit(batch, "patch_000", reviews=5)
    hold = Hold()
    server.fail("export", batch="tablet4_0001", fault=hold)
    before = workflow.receipt("guns_1016205")
    run = subprocess.Popen(
        workflow.command(),
        env=workflow.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert hold.reached.wait(60)
    deadline = time.monotonic() + 60
    while workflow.receipt("guns_1016205") == before and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    hold.release.set()
    assert all((workflow.folder / "results" / name).stat().st_size for name in FILES)
    workflow.run("--unlock")
    workflow.run()
    assert set(states(workflow).values()) == {"fresh", "empty"}
    assert check_sums(workflow).returncode == 0
    receipt = workflow.receipt("guns_1016205")
    assert table(workflow)["guns_1016205", "complete"]["sha256"] == receipt["sha256"]


@pytest.mark.slow
def test_a_backend_that_is_down_costs_no_file(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    before = stamps(workflow.folder)
    server.stop()
    workflow.run("-F", expect=1)
    assert stamps(workflow.folder) == before


@pytest.mark.slow
def test_a_lost_file_is_made_again_without_a_download(workflow: Workflow) -> None:
    workflow.run()
    results = workflow.folder / "results"
    before = {name: (results / name).read_bytes() for name in FILES}
    for name in FILES:
        (workflow.folder / "results" / name).unlink()
        workflow.run()
        assert workflow.exported() == []
    (workflow.folder / "results/summary.tsv").unlink()
    workflow.run("results/summary.tsv")
    assert {name: (results / name).read_bytes() for name in FILES} == before


HOSTILE = ("../x", "a b", "tab\tand\nline", "-n", 'quo"te', "k" * 300, "中文")


def test_hostile_keys(workflow: Workflow, server: FaultServer) -> None:
    server.batches.clear()
    for key in HOSTILE:
        server.add(key)
    workflow.run()
    assert states(workflow).keys() == set(HOSTILE)
    done = check_sums(workflow)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(HOSTILE)
    text = ask_status(workflow)
    assert text.count(" fresh ") == len(HOSTILE) + 1 and "\t" not in text


def test_status_shows_each_state_and_exports_nothing(
    workflow: Workflow, server: FaultServer
) -> None:
    assert set(batch_states(workflow).values()) == {"missing"}
    assert (server.count("batches"), server.count("tracks")) == (1, 3)
    assert not (workflow.folder / "results/summary.tsv").exists()
    workflow.run()
    server.edit("guns_1016205", "patch_000", reviews=9)
    text = ask_status(workflow)
    assert max(map(len, text.splitlines()[2:])) <= 80
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["guns_1016205"][1:4] == ["stale", "2/3", "6"]
    assert lines["tattoo2k25"][1:4] == ["empty", "0/1", "0"]
    assert lines["tablet4_0001"][1:3] == ["fresh", "2/2"]
    assert batch_states(workflow, EXPORT_BATCH_KEY="tablet4_0001") == {"tablet4_0001": "fresh"}
    found = batch_states(workflow, EXPORT_STATUS_FILTER="all")
    assert set(found.values()) == {"missing"}
    # Having looked makes nothing look fresh: the next run exports what was stale.
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]
    assert batch_states(workflow)["guns_1016205"] == "fresh"
    workflow.path("guns_1016205").unlink()
    assert batch_states(workflow)["guns_1016205"] == "missing"


def test_status_and_exports_in_one_run(workflow: Workflow) -> None:
    said = workflow.run("status", "all")
    assert "exported       2" in said and "2 fresh" in said


def synthetic(folder: Path, count: int) -> None:
    """Receipts of so many exports, as large as they get, and the manifest that goes with them."""
    for number in range(count):
        export = Export.of(f"batch_{number:04}", "complete")
        write_record(
            receipt_path(export.name, folder / "results"),
            {
                "batch_key": export.batch_key,
                "status_filter": "complete",
                "api_base": "http://localhost/api",
                "backend_id": "b",
                "revision": f"{number:064x}",
                "file": f"{export.name}_tracks.json",
                "sha256": f"{number:064x}",
                "size": 10_000_000,
                "images": 500,
                "annotations": 1000,
                "tracks": number % 60,
                "tracks_in_batch": 60,
                "empty": "",
                "exported_at": "2026-01-01T00:00:00+00:00",
                "warnings": ["annotation ids of mixed types (int, str)"] * (1 + number % 5),
                "statistics": {
                    "tracks_complete": number % 60,
                    "classes": {f"class {name}": 1 + name for name in range(30)},
                    "reviews": {"accepted": 900, "rejected": 60, "unreviewed": 40},
                    "annotations_per_track": {str(1 << n): n for n in range(12)},
                    "track_lengths": {str(1 << n): n for n in range(12)},
                    "box_sizes": {str(1 << n): n for n in range(12)},
                },
                "finished_at": "2026-01-01T00:00:01+00:00",
            },
            folder / "results",
        )
        file = folder / "results" / f"{export.name}_tracks.json"
        file.write_text("{}")
        revision = revision_path(export.name, folder / "resources")
        write_record(revision, {"revision": f"{number:064x}"}, folder / "resources")
    batches = [{"batch_key": f"batch_{number:04}"} for number in range(count)]
    manifest = {"batches": batches, "api_base": ""}
    write_record(manifest_path(folder / "resources"), manifest, folder / "resources")


def test_500_receipts(tmp_path: Path) -> None:
    synthetic(tmp_path, 500)
    results, resources = tmp_path / "results", tmp_path / "resources"
    files = [summary_path(results), sums_path(results), page_path(results)]
    assert update_summary(results, resources) == files
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert len(summary_path(results).read_text().splitlines()) == 501
    before = stamps(tmp_path)
    assert update_summary(results, resources) == []
    assert stamps(tmp_path) == before
    receipt = receipt_path("batch_0007_complete", results)
    write_record(receipt, json.loads(receipt.read_text()) | {"sha256": "f" * 64}, results)
    assert update_summary(results, resources) == files


def test_receipts_of_older_versions_and_damaged_ones(tmp_path: Path) -> None:
    synthetic(tmp_path, 3)
    results, resources = tmp_path / "results", tmp_path / "resources"
    receipt = receipt_path("batch_0001_complete", results)
    old = json.loads(receipt.read_text())
    del old["statistics"], old["tracks_in_batch"]
    write_record(receipt, old, results)
    receipt_path("batch_0002_complete", results).write_text("{")
    update_summary(results, resources)
    rows = summary_path(results).read_text().splitlines()
    assert len(rows) == 3
    assert "1 of 2 batches were exported by an earlier version" in page_path(results).read_text()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (60, "1 min"), (7199, "1 h"), (200_000, "2 d")]
)
def test_ages(seconds: int, text: str) -> None:
    assert human_age(seconds) == text


def test_status_table_keeps_to_a_terminal(tmp_path: Path) -> None:
    write_record(
        manifest_path(tmp_path),
        {"batches": [{"batch_key": "k" * 200}, {"batch_key": "b"}], "progress": {}},
        tmp_path,
    )
    rows = status_rows((), "complete", datetime.now(UTC), tmp_path, tmp_path)
    assert all(len(line) <= 60 for line in status_table(rows, "http://x", 60))
    assert any("k" * 200 in line for line in status_table(rows, "http://x", None))
