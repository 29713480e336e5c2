"""The report page and the native report: self-contained, true, and without a reviewer's name."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from export_summary import page_path, update_summary
from payload_checks import check_export
from payload_statistics import MAX_NAMES, histogram

from tests.conftest import Workflow
from tests.fault_server import FaultServer
from tests.test_summary import synthetic
from workflow.demo.database import connect
from workflow.demo.edits import apply_edit
from workflow.demo.sample import add_batch
from workflow.demo.server import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def statistics(tmp_path: Path, annotations: Any, tracks: Any, frames: int = 40) -> dict[str, Any]:
    payload = {
        "info": {"batch_key": "b"},
        "images": [{"id": f"i{n}", "frame_index": n} for n in range(frames)],
        "annotations": annotations,
        "tracks": tracks,
    }
    path = tmp_path / "payload"
    path.write_text(json.dumps(payload))
    return check_export(path, "b", "all").statistics


def box(track: str, frame: int, **more: Any) -> dict[str, Any]:
    bbox = [0, 0, 10, 40]
    return {"id": 1, "image_id": f"i{frame}", "track_tag": track, "bbox": bbox} | more


def test_what_is_counted(tmp_path: Path) -> None:
    found = statistics(
        tmp_path,
        [
            box("a", 3, category_name="gun", status="accepted"),
            box("a", 9, category_name="gun", status="rejected"),
            box("a", 5, category_name="bag", status="accepted", bbox=None),
            box("b", 0, category_name="gun"),
        ],
        [
            {"track_tag": "a", "pending_annotations": 0},
            {"track_tag": "b", "primary_class": "rifle", "pending_annotations": 1},
            {"track_tag": "c", "categories": ["person", "bag"], "manually_completed": True},
        ],
    )
    assert found == {
        "tracks_complete": 2,
        "classes": {"bag": 1, "gun": 1, "rifle": 1},
        "reviews": {"accepted": 2, "(none)": 1, "rejected": 1},
        "annotations_per_track": {"0": 1, "1": 1, "2": 1},
        "track_lengths": {"1": 1, "4": 1},
        "box_sizes": {"16": 3},
    }


def test_odd_values_are_counted_and_the_counts_stay_small(tmp_path: Path) -> None:
    odd: list[Any] = [None, 1.5, {"x": [1]}, [2], "x" * 10_000, *map(str, range(500))]
    found = statistics(
        tmp_path,
        [box("a", 0, category_name=value, status=value) for value in odd],
        [{"track_tag": "a", "primary_class": {"y": 1}, "categories": 3}],
    )
    assert len(found["reviews"]) == MAX_NAMES + 1
    assert sum(found["reviews"].values()) == len(odd)
    assert len(json.dumps(found)) < 3000
    assert histogram([0, 0.5, 1, 3, 4, 1e300, float("inf")]) == {
        "0": 2,
        "1": 1,
        "2": 1,
        "4": 1,
        str(1 << 30): 2,
    }


def test_the_page_names_no_reviewer_and_no_text_breaks_it(tmp_path: Path) -> None:
    database = tmp_path / "backend.sqlite"
    key = "</script><script>alert(1)</script>"
    add_batch(database, key, completed_tracks=3)
    with connect(database) as connection:
        apply_edit(connection, "reject", key, "patch_000", user="Ada Reviewer", note="a note")
        apply_edit(connection, "class", key, "patch_001", "</script><b>")
    (folder := tmp_path / "run").mkdir()
    with serving(database) as base_url, FaultServer(upstream=base_url) as relay:
        workflow = Workflow(folder, relay)
        workflow.run()
    assert b"Ada Reviewer" in workflow.published(key)
    results = workflow.folder / "results"
    page = page_path(results).read_text()
    for path in (page_path(results), results / "summary.tsv", *results.glob("receipts/*")):
        assert "Ada" not in path.read_text() and "a note" not in path.read_text()
    assert page.count("</script>") == page.count("<script") == 4
    assert "&lt;/script&gt;&lt;script&gt;" in page
    # Nothing is loaded; the chart library, which could, is told not to.
    ours = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", ours)
    assert "default-src 'none'" in ours


@pytest.mark.skipif(CHROMIUM is None, reason="takes Chromium: install Debian's `chromium`")
@pytest.mark.parametrize("count", [3, 500])
def test_the_page_draws_in_a_browser_without_an_error(tmp_path: Path, count: int) -> None:
    synthetic(tmp_path, count)
    results = tmp_path / "results"
    update_summary(results, tmp_path / "resources")
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=10000",
            "--dump-dom",
            page_path(results).as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    # Nor anything that the page's policy, which allows no request, had to refuse.
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('role="img"') == done.stdout.count("<svg xmlns=") == 6
    assert f"{count} exports</p>" in done.stdout


def test_the_native_report_shows_summary_and_page(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    before = workflow.results()
    server.stop()
    said = workflow.run("--report", "r.html")
    assert "Report created" in said
    report = (workflow.folder / "r.html").read_text()
    for words in ("summary.tsv", "report.html", "totals, table and charts", "download_tracks"):
        assert words in report
    assert workflow.results() == before
