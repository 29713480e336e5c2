"""What has been exported, from the receipts: summary.tsv, SHA256SUMS and the report page.

Each file is replaced in one step, and only when what it says has changed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from export_records import RESOURCES, RESULTS, staging_of, tracks_path
from export_states import (
    ExportState,
    listed_batches,
    newest_receipt,
    receipted_exports,
    state_of,
    tracks_of_batch,
)
from export_via_api import replacing, storage_error
from report_page import page_data, page_digest, render_page

COLUMNS = (
    "batch_key",
    "file",
    "status_filter",
    "state",
    "tracks",
    "tracks_complete",
    "tracks_in_batch",
    "images",
    "annotations",
    "size",
    "sha256",
    "revision",
    "exported_at",
    "warnings",
)


def summary_path(results: Path = RESULTS) -> Path:
    """Return the path of the table of exports."""
    return results / "summary.tsv"


def sums_path(results: Path = RESULTS) -> Path:
    """Return the path of the exports' checksums."""
    return results / "SHA256SUMS"


def page_path(results: Path = RESULTS) -> Path:
    """Return the path of the report page."""
    return results / "report.html"


def summary_text(states: Iterable[ExportState]) -> str:
    """Return a table with a row an export: tab-separated, quoted as CSV where a value needs it.

    Sizes are in bytes; what a receipt does not tell is left empty; warnings are joined by " | ".
    """
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for state in states:
        receipt = state.receipt
        complete, total = tracks_of_batch(receipt)
        values = {
            **receipt,
            "file": tracks_path(state.export.name).name,
            "state": state.state,
            "tracks_complete": complete,
            "tracks_in_batch": total,
            "warnings": " | ".join(receipt.get("warnings", ())),
        }
        writer.writerow(values.get(column) for column in COLUMNS)
    return table.getvalue()


def sums_text(states: Iterable[ExportState]) -> str:
    """Return the checksums of the exports that are there, as `sha256sum --check` reads them."""
    return "".join(
        f"{state.receipt['sha256']}  {tracks_path(state.export.name).name}\n"
        for state in states
        if state.size is not None
    )


def update_summary(results: Path = RESULTS, resources: Path = RESOURCES) -> list[Path]:
    """Bring summary, checksums and page up to date with the receipts; return what was rewritten.

    Raises:
        StorageError: a file cannot be written.
    """
    listed = listed_batches(resources)
    exports = receipted_exports(results)
    states = [state_of(export, listed, results, resources) for export in exports]
    try:
        newest = newest_receipt(results)
    except FileNotFoundError:
        newest = 0
    rewritten = []
    texts = ((summary_path(results), summary_text(states)), (sums_path(results), sums_text(states)))
    for path, text in texts:
        if _read(path) != text:
            _write(path, text, results)
            rewritten.append(path)
    page = page_path(results)
    data = page_data(states, listed)
    digest = page_digest(data)
    if digest not in (_read(page, 1000) or ""):
        _write(page, render_page(data, digest), results)
        rewritten.append(page)
    _make_newer((summary_path(results), sums_path(results), page), newest)
    return rewritten


def _read(path: Path, size: int = -1) -> str | None:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read(size)
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _write(path: Path, text: str, results: Path) -> None:
    try:
        with replacing(path, staging_of(results)) as part:
            part.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise storage_error(error, path) from None


def _make_newer(paths: Sequence[Path], receipt: int) -> None:
    """Have files that say what the receipts say be no older, or Snakemake takes them for stale."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_mtime_ns < receipt:
                now = max(receipt, time.time_ns())
                os.utime(path, ns=(now, now))
