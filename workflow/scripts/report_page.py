"""The report page: one file that opens offline, made from the receipts alone.

`page_data` is what the page says; `render_page` makes the page of it. The data is cheap, so that a
run can tell from its digest that there is nothing to render.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export_states import STATES, ExportState, tracks_of_batch
from export_via_api import plain, replacing
from payload_statistics import merged
from run_report import human_size

TEMPLATE = Path(__file__).parents[1] / "report" / "page.html"
LONGEST_KEY = 60  # characters of a batch key that the page shows
STATISTICS = ("classes", "reviews", "annotations_per_track", "track_lengths", "box_sizes")


def page_data(states: Sequence[ExportState], listed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the page says.

    Args:
        states: Every export that has a receipt.
        listed: The backend's batches by key; None when no manifest tells.
    """
    counted = _one_a_batch(states)
    batches = []
    for state in counted:
        complete, total = tracks_of_batch(state.receipt)
        if complete is not None and total:
            row = {"batch": _shown(state), "complete": min(complete, total), "tracks": total}
            batches.append(row)
    known = [state.receipt.get("statistics") or {} for state in counted]
    return {
        "rows": [_row(state) for state in states],
        "backends": _backends(states),
        "newest": max((_second(state.receipt.get("finished_at")) for state in states), default=""),
        "batches": len(counted),
        "not_exported": len((listed or {}).keys() - {s.export.batch_key for s in states}),
        "states": dict(Counter(state.state for state in states)),
        "annotations": sum(state.receipt.get("annotations", 0) for state in counted),
        "images": sum(state.receipt.get("images", 0) for state in counted),
        "size": sum(state.size or 0 for state in states),
        "completion": batches,
        # An export of a version before this one has no statistics; one that is empty needs none.
        "without_statistics": sum(
            not k and not s.receipt.get("empty") for k, s in zip(known, counted, strict=True)
        ),
        **{name: dict(merged(each.get(name, {}) for each in known)) for name in STATISTICS},
    }


def page_digest(data: Mapping[str, Any]) -> str:
    """Return what changes when the page would: a digest of its data and of what renders it."""
    code = [Path(__file__), TEMPLATE, Path(__file__).with_name("report_charts.py")]
    parts = [json.dumps(data, sort_keys=True).encode(), *(path.read_bytes() for path in code)]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def render_page(data: Mapping[str, Any], digest: str) -> str:
    """Return the page."""
    import jinja2  # here, and not above: most runs have nothing to render

    charts = _charts(data)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["size"] = human_size
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        data=data,
        digest=digest,
        charts=charts,
        meanings=STATES,
        tracks=sum(batch["tracks"] for batch in data["completion"]),
        complete=sum(batch["complete"] for batch in data["completion"]),
        specifications=json.dumps({c["id"]: c["spec"] for c in charts}).replace("<", r"\u003c"),
        # So that no text in it ends the script element.
        bundle=re.sub(r"<(/script|!--)", r"<\\\1", _chart_library(), flags=re.IGNORECASE),
    )


def _chart_library() -> str:
    """Return the chart library's JavaScript.

    It is the same in every page, and takes longer to bundle than all else: the user's cache has it.
    """
    import platformdirs

    folder = platformdirs.user_cache_path("auto-labeler-export")
    kept = folder / f"charts-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8")
    import vl_convert

    bundle = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    with contextlib.suppress(OSError), replacing(kept) as part:
        part.write_text(bundle, encoding="utf-8")
    return bundle


def _charts(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    from report_charts import completion_chart, histogram_chart, ranking_chart

    drawn = (
        (
            "completion",
            "Completion per batch",
            "Tracks whose review is done, of all tracks of the batch",
            completion_chart(data["completion"]),
        ),
        (
            "classes",
            "Tracks per class",
            "A track's own class where a reviewer gave one, or that of most of its boxes",
            ranking_chart(data["classes"], "tracks"),
        ),
        (
            "reviews",
            "Review decisions",
            "What was decided of each annotation",
            ranking_chart(data["reviews"], "annotations"),
        ),
        (
            "annotations_per_track",
            "Annotations per track",
            "How many boxes a track has",
            histogram_chart(data["annotations_per_track"], "annotations", "tracks"),
        ),
        (
            "track_lengths",
            "Track lengths",
            "Frames from a track's first box to its last, both counted",
            histogram_chart(data["track_lengths"], "frames", "tracks"),
        ),
        (
            "box_sizes",
            "Box sizes",
            "Square root of a box's area, in pixels",
            histogram_chart(data["box_sizes"], "pixels", "boxes", whole=False),
        ),
    )
    return [
        {"id": name, "title": title, "caption": caption, "spec": chart.to_dict(), "rows": rows}
        for name, title, caption, (chart, rows) in drawn
    ]


def _one_a_batch(states: Sequence[ExportState]) -> list[ExportState]:
    """Return one export of each batch, the one of all tracks rather than the complete ones."""
    chosen: dict[str, ExportState] = {}
    for state in states:
        if state.export.batch_key not in chosen or state.export.status_filter == "all":
            chosen[state.export.batch_key] = state
    return list(chosen.values())


def _backends(states: Sequence[ExportState]) -> list[str]:
    """Return the base URLs exported from; of a backend whose address changes, the newest."""
    receipts = sorted((s.receipt for s in states), key=lambda r: str(r.get("finished_at")))
    return sorted({str(r.get("backend_id")): str(r.get("api_base", "")) for r in receipts}.values())


def _row(state: ExportState) -> dict[str, Any]:
    receipt = state.receipt
    complete, total = tracks_of_batch(receipt)
    return {
        "name": state.export.name,
        "batch": _shown(state),
        "filter": state.export.status_filter,
        "state": state.state,
        "cause": state.cause,
        "complete": complete,
        "tracks": total,
        "annotations": receipt.get("annotations"),
        "size": state.size,
        "exported_at": _second(receipt.get("exported_at") or receipt.get("finished_at")),
        "sha256": receipt.get("sha256"),
        "warnings": list(receipt.get("warnings", ())),
    }


def _shown(state: ExportState) -> str:
    return plain(state.export.batch_key, LONGEST_KEY)


def _second(timestamp: object) -> str:
    """Return a time of a record, to the second, as people read it."""
    return str(timestamp or "")[:19].replace("T", " ")
