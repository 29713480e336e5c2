"""What `snakemake status` prints: how each batch's export compares with the backend, a row each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export_records import (
    RESOURCES,
    RESULTS,
    Export,
    manifest_path,
    read_if_sound,
    tracks_path,
)
from export_states import STATES, ExportState, receipted_exports, seconds_of, state_of
from export_via_api import plain
from run_report import human_size

HEAD = ("BATCH", "STATE", "COMPLETE", "ANNOTATIONS", "SIZE", "AGE")
LONGEST_KEY = 40  # characters of a batch key that the columns beside it make room for
NONE = "-"


def status_rows(
    batch_keys: Sequence[str],
    status_filter: str,
    now: datetime,
    results: Path = RESULTS,
    resources: Path = RESOURCES,
) -> list[dict[str, Any]]:
    """Return the batches asked for, and those gone from the backend, as of the last manifest.

    Args:
        batch_keys: The batches that the configuration selects; none selects all.
        status_filter: The filter of the exports to look at.
        now: The time to count ages from.
        results: The folder of the exports.
        resources: The folder of the manifest.
    """
    manifest = read_if_sound(manifest_path(resources)) or {"batches": []}
    listed = {batch["batch_key"]: batch for batch in manifest["batches"]}
    exports = {Export.of(key, status_filter): None for key in batch_keys or listed}
    if not batch_keys:
        kept = receipted_exports(results)
        exports |= dict.fromkeys(e for e in kept if e.status_filter == status_filter)
    progress = manifest.get("progress", {})
    states = [state_of(export, listed, results, resources) for export in exports]
    states.sort(key=lambda state: state.export.batch_key)
    return [_row(state, progress.get(state.export.batch_key, {}), now, results) for state in states]


def _row(
    state: ExportState, progress: Mapping[str, int], now: datetime, results: Path
) -> dict[str, Any]:
    receipt = state.receipt if state.size is not None else {}
    made = seconds_of(receipt.get("finished_at"))
    return {
        "batch_key": state.export.batch_key,
        "status_filter": state.export.status_filter,
        "state": state.state,
        "tracks_complete": progress.get("tracks_complete"),
        "tracks": progress.get("tracks"),
        "annotations": receipt.get("annotations"),
        "size": state.size,
        "exported_at": receipt.get("exported_at"),
        "age_seconds": max(0, round(now.timestamp() - made)) if made else None,
        "file": str(tracks_path(state.export.name, results)) if state.size is not None else None,
        "cause": state.cause,
    }


def status_json(rows: Sequence[Mapping[str, Any]], api_base: str, now: datetime) -> str:
    """Return the status as JSON. Sizes are in bytes; what is not known is null."""
    asked_at = now.astimezone(UTC).isoformat(timespec="seconds")
    return json.dumps({"api_base": api_base, "as_of": asked_at, "batches": rows}, indent=1)


def status_table(rows: Sequence[Mapping[str, Any]], api_base: str, width: int | None) -> list[str]:
    """Return the status as lines of text.

    Args:
        rows: What `status_rows` returns.
        api_base: The backend's base URL.
        width: Columns of the terminal, to which batch keys are shortened; None: they are not.
    """
    cells = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(1, len(HEAD))]
    room = min(max(len(line[0]) for line in cells), LONGEST_KEY)
    if width is not None:
        room = max(8, min(room, width - sum(widths) - 2 * len(widths)))
    lines = [f"Exports from {api_base}", ""]
    for batch, state, *numbers in cells:
        if width is not None and len(batch) > room:
            batch = f"{batch[: room - 1]}…"
        right = "  ".join(f"{n:>{w}}" for n, w in zip(numbers, widths[1:], strict=True))
        lines.append(f"{batch:<{room}}  {state:<{widths[0]}}  {right}")
    counts = Counter(row["state"] for row in rows)
    lines.append("")
    lines += [f"{counts[s]:>6} {s:<8} {meaning}" for s, meaning in STATES.items() if counts[s]]
    if not rows:
        lines.append("The backend has no batches, and none was exported.")
    lines += _causes(rows)
    if counts.keys() & {"stale", "missing", "failed"}:
        lines += ["", "To export what is not fresh: snakemake --cores 4"]
    return lines


def _causes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    causes = [f"  {plain(row['batch_key'])}: {row['cause']}" for row in rows if row["cause"]]
    return ["", "Why the last try failed:", *causes] if causes else []


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a row's texts, in the order of HEAD."""
    complete = NONE if row["tracks"] is None else f"{row['tracks_complete']}/{row['tracks']}"
    annotations = NONE if row["annotations"] is None else f"{row['annotations']:,}"
    size = NONE if row["size"] is None else human_size(row["size"])
    age = NONE if row["age_seconds"] is None else human_age(row["age_seconds"])
    return plain(row["batch_key"], 300), row["state"], complete, annotations, size, age


def human_age(seconds: int) -> str:
    """Return a time span as people read it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
