"""When an export's revision changes: when, and only when, what would be exported does."""

import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from export_records import Export, asked_exports, make_older, read_record, revision_path
from fetch_manifest import is_exported, problem_of, revision_of, update_revision

BATCH = {"batch_key": "b", "created_at": "2025-11-20T00:00:00", "incomplete_tracks": 2}


def track(tag: str, **changes: Any) -> dict[str, Any]:
    return {
        "track_tag": tag,
        "categories": ["gun", "knife"],
        "primary_class": None,
        "person_down": False,
        "status": "active",
        "pending_annotations": 0,
        "last_updated_at": "2025-11-20T00:00:00",
        "manually_completed": False,
    } | changes


DONE = track("patch_000")
UNDONE = track("patch_001", pending_annotations=3)
BY_HAND = track("patch_002", pending_annotations=2, manually_completed=True)


@pytest.mark.parametrize(
    ("listed", "complete"),
    [
        (DONE, True),
        (UNDONE, False),
        (BY_HAND, True),
        ({"track_tag": "old deployment"}, True),
        (track("t", pending_annotations=None), True),
    ],
)
def test_which_tracks_are_exported(listed: dict[str, Any], complete: bool) -> None:
    assert is_exported(listed, "complete") is complete
    assert is_exported(listed, "all") is True


class Revisions:
    """Writes one export's revision file again and again."""

    def __init__(self, folder: Path, status_filter: str) -> None:
        self.folder = folder
        self.export = Export.of("b", status_filter)
        self.path = revision_path(self.export.name, folder)

    def changes(
        self,
        listing: list[dict[str, Any]] | None,
        batch: dict[str, Any] = BATCH,
        backend_id: str = "here",
    ) -> bool:
        before = self.path.read_bytes() if self.path.exists() else b""
        changed = update_revision(self.export, batch, listing, backend_id, self.folder)
        assert changed == (self.path.read_bytes() != before)
        return changed


def test_an_edit_to_an_exported_track_changes_it(tmp_path: Path) -> None:
    for status_filter in ("complete", "all"):
        revisions = Revisions(tmp_path / status_filter, status_filter)
        assert revisions.changes([DONE, UNDONE, BY_HAND])
        for edit in (
            {"last_updated_at": "2025-11-21T00:00:00"},
            {"primary_class": "gun"},
            {"person_down": True},
            {"manually_completed": True},
            {"status": "abandoned"},
            {"categories": ["gun"]},
        ):
            assert revisions.changes([DONE | edit, UNDONE, BY_HAND])
            assert revisions.changes([DONE, UNDONE, BY_HAND])


def test_an_edit_to_an_unfinished_track_changes_only_all(tmp_path: Path) -> None:
    edited = UNDONE | {"last_updated_at": "2026-01-01T00:00:00", "pending_annotations": 2}
    for status_filter, changes in (("complete", False), ("all", True)):
        revisions = Revisions(tmp_path / status_filter, status_filter)
        assert revisions.changes([DONE, UNDONE])
        assert revisions.changes([DONE, edited]) is changes


def test_completing_a_track_changes_complete(tmp_path: Path) -> None:
    revisions = Revisions(tmp_path, "complete")
    assert revisions.changes([DONE, UNDONE])
    assert revisions.changes([DONE, UNDONE | {"manually_completed": True}])
    assert revisions.changes([DONE, UNDONE])


def test_order_does_not_matter(tmp_path: Path) -> None:
    revisions = Revisions(tmp_path, "all")
    assert revisions.changes([DONE, UNDONE, BY_HAND])
    for order in itertools.permutations([DONE, UNDONE, BY_HAND]):
        turned = [{**t, "categories": t["categories"][::-1]} for t in order]
        random.Random(1).shuffle(turned)
        assert not revisions.changes([dict(reversed(t.items())) for t in turned])


def test_backend_filter_and_ingestion_are_part_of_it(tmp_path: Path) -> None:
    revisions = Revisions(tmp_path, "complete")
    assert revisions.changes([DONE])
    assert not revisions.changes([DONE])
    assert revisions.changes([DONE], backend_id="there")
    assert revisions.changes([DONE], BATCH | {"created_at": "2026"}, "there")
    assert not revisions.changes([DONE], BATCH | {"created_at": "2026", "x": 1}, "there")
    assert revision_of([DONE], ["a", "complete"]) != revision_of([DONE], ["a", "all"])


def test_without_a_listing_the_batch_entry_counts(tmp_path: Path) -> None:
    revisions = Revisions(tmp_path, "complete")
    assert revisions.changes(None)
    assert not revisions.changes(None)
    assert revisions.changes(None, BATCH | {"incomplete_tracks": 1})


def test_a_change_taken_back_is_a_change(tmp_path: Path) -> None:
    """A killed run may have exported the state in between, unseen by Snakemake."""
    revisions = Revisions(tmp_path, "complete")
    revisions.changes([DONE])
    first = revisions.path.read_bytes()
    revisions.changes([])
    revisions.changes([DONE])
    assert revisions.path.read_bytes() != first


def test_a_damaged_revision_file_is_made_anew(tmp_path: Path) -> None:
    revisions = Revisions(tmp_path, "complete")
    for damage in (b"", b"{", b"[1]", b"\xff\xfe"):
        revisions.path.parent.mkdir(exist_ok=True)
        revisions.path.write_bytes(damage)
        assert revisions.changes([DONE])
    assert json.loads(revisions.path.read_bytes())["track_tags"] == ["patch_000"]


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    revisions = Revisions(tmp_path, "complete")
    assert revisions.changes([track("\ud800")])
    assert (read_record(revisions.path) or {})["track_tags"] == ["\ud800"]


def test_older_than_a_file_of_a_clock_that_went_back(tmp_path: Path) -> None:
    export, revision = tmp_path / "export", tmp_path / "revision"
    make_older(export, revision)  # nothing there: nothing done
    export.touch()
    revision.touch()
    os.utime(revision, (1_000_000, 1_000_000))
    make_older(export, revision)
    assert export.stat().st_mtime < revision.stat().st_mtime


def test_what_a_run_is_asked_for() -> None:
    listed = ["a", "a/b", "c"]
    selected = asked_exports([], ["a", "x", "a"], "complete", listed)
    assert [(e.batch_key, e.name) for e in selected] == [("a", "a_complete"), ("x", "x_complete")]
    named = asked_exports(["a%2Fb_all", "x_y_complete"], [], "complete", listed)
    assert [(e.batch_key, e.status_filter) for e in named] == [
        ("a/b", "all"),
        ("x_y", "complete"),
    ]
    long_key = "k" * 400
    name = Export.of(long_key, "all").name
    assert asked_exports([name], [], "complete", [long_key]) == [Export.of(long_key, "all")]


def test_why_an_export_cannot_be_asked_for() -> None:
    assert problem_of(Export.of("tablet4", "all"), ["tablet4"]) == ""
    assert "'tablet4'" in problem_of(Export.of("tabelt4", "all"), ["tablet4", "guns"])
    for key in (".", "..", "", "\ud800"):
        assert "URL" in problem_of(Export.of(key, "all"), [key])
    misnamed = Export("a b_all", "a b", "all")
    assert "results/a%20b_all_tracks.json" in problem_of(misnamed, ["a b"])
