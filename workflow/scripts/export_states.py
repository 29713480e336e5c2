"""In what state each export is, from the records that the rules leave; asks the backend nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from export_records import (
    RESOURCES,
    RESULTS,
    Export,
    failure_path,
    manifest_path,
    problem_path,
    read_if_sound,
    receipt_path,
    revision_path,
    tracks_path,
)

STATES = {
    "fresh": "as the backend has it",
    "empty": "fresh; nothing in the batch matches the filter",
    "stale": "the backend has changed since",
    "missing": "not exported yet",
    "damaged": "not the file that was exported; snakemake repair exports it again",
    "failed": "the last try failed; an export made before is kept",
    "gone": "the backend no longer has the batch; the export is kept",
}


@dataclasses.dataclass(frozen=True)
class ExportState:
    """An export, what its receipt says (nothing when there is none), and how that compares."""

    export: Export
    state: str  # one of STATES
    receipt: Mapping[str, Any]
    size: int | None  # of the file that is there, in bytes; None when there is none
    cause: str = ""  # why it failed


def state_of(
    export: Export,
    listed: Mapping[str, Any] | None,
    results: Path = RESULTS,
    resources: Path = RESOURCES,
) -> ExportState:
    """Return the state of an export as of the last manifest that asked for it.

    Args:
        export: The export.
        listed: The batches of the backend's batch list by key; None when there is no manifest.
        results: The folder of the exports.
        resources: The folder of the manifest.
    """
    receipt = read_if_sound(receipt_path(export.name, results)) or {}
    try:
        size = tracks_path(export.name, results).stat().st_size
    except OSError:
        size = None
    exported = bool(receipt) and size is not None
    if exported and listed is not None and export.batch_key not in listed:
        return ExportState(export, "gone", receipt, size)
    problem = read_if_sound(problem_path(export.name, resources))
    failure = read_if_sound(failure_path(export.name, resources)) or {}
    revision = read_if_sound(revision_path(export.name, resources)) or {}
    # Where an old export is fresh after all (an edit was taken back), a failure is history.
    fresh = exported and not problem and receipt.get("revision") == revision.get("revision", "none")
    if fresh and size != receipt.get("size"):
        return ExportState(export, "damaged", receipt, size)
    if fresh:
        return ExportState(export, "empty" if receipt.get("empty") else "fresh", receipt, size)
    if problem or failure.get("failed_at", 0) > seconds_of(receipt.get("finished_at")):
        cause = (problem or failure).get("cause", "")
        return ExportState(export, "failed", receipt, size, str(cause))
    return ExportState(export, "stale" if exported else "missing", receipt, size)


def receipted_exports(results: Path = RESULTS) -> list[Export]:
    """Return every export that has a receipt, whatever its filter, sorted by key and filter."""
    exports = []
    for path in receipt_path("x", results).parent.glob("*.json"):
        receipt = read_if_sound(path) or {}
        if "batch_key" in receipt and "status_filter" in receipt:
            exports.append(Export(path.stem, receipt["batch_key"], receipt["status_filter"]))
    return sorted(exports, key=lambda export: (export.batch_key, export.status_filter))


def listed_batches(resources: Path = RESOURCES) -> dict[str, Any] | None:
    """Return the backend's batch list of the last manifest, by key; None when there is none."""
    manifest = read_if_sound(manifest_path(resources))
    return None if manifest is None else {b["batch_key"]: b for b in manifest["batches"]}


def tracks_of_batch(receipt: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return how many tracks of the batch were complete when it was exported, and of how many.

    None where a receipt of an older version, or a backend without track listings, does not tell.
    """
    if not receipt:
        return None, None
    if receipt["status_filter"] == "complete":
        return receipt.get("tracks"), receipt.get("tracks_in_batch")
    complete = receipt.get("statistics", {}).get("tracks_complete")
    return (0 if receipt.get("empty") else complete), receipt.get("tracks")


def seconds_of(timestamp: str | None) -> float:
    """Return a receipt's time in seconds since the epoch; 0 when there is none."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def newest_receipt(results: Path = RESULTS) -> int:
    """Return when the newest receipt was written, in nanoseconds since the epoch; 0 for none."""
    with os.scandir(receipt_path("x", results).parent) as entries:
        return max((entry.stat().st_mtime_ns for entry in entries), default=0)
