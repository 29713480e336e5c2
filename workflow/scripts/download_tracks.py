"""Export one batch: download, verify, and only then put it in the old export's place.

The program of the rule `download_tracks`. What can fail, fails before the published file is
touched; the file is replaced in one step, and its receipt is written after it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export_records import (
    conversion_paths,
    job_log,
    make_older,
    problem_path,
    read_if_sound,
    read_record,
    receipt_path,
    require_record,
    settings_path,
    tracks_path,
    write_record,
)
from export_via_api import Client, Download, ExportError, replacing, storage_error
from payload_checks import Findings, change_warnings, check_export


def download(client: Client, revision: Mapping[str, Any], part: Path) -> tuple[Download, Findings]:
    """Download and verify an export to a file of its own.

    Raises:
        ExportError: there is no sound export to be had.
    """
    findings = Findings()

    def check(path: Path) -> None:
        nonlocal findings
        findings = check_export(path, revision["batch_key"], revision["status_filter"])

    came = client.download(revision["batch_key"], revision["status_filter"], part, check)
    return came, findings


def receipt_of(
    came: Download,
    findings: Findings,
    revision: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
    backend: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the record of what was exported. Sizes are in bytes, times in UTC."""
    same_backend = previous is not None and previous.get("backend_id") == backend["backend_id"]
    before = previous.get("tracks") if previous is not None and same_backend else None
    changes = change_warnings(findings.track_tags, revision.get("track_tags"), before)
    return {
        "batch_key": revision["batch_key"],
        "status_filter": revision["status_filter"],
        "api_base": backend["api_base"],
        "backend_id": backend["backend_id"],
        "revision": revision["revision"],
        "file": tracks_path(revision["name"]).name,
        "sha256": came.sha256,
        "size": came.size,
        "images": findings.images,
        "annotations": findings.annotations,
        "tracks": len(findings.track_tags),
        "tracks_in_batch": revision.get("tracks_listed"),
        "empty": came.empty,
        "exported_at": findings.exported_at,
        "attempts": came.attempts,
        "warnings": [*findings.warnings, *changes],
        "statistics": findings.statistics,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rule's job; exit with 1 when there is no sound export to be had."""
    started = datetime.now(UTC)
    parser = argparse.ArgumentParser(description="Export one batch, as the workflow does.")
    parser.add_argument("--export", help="the export's name, <batch>_<filter>")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--resources", type=Path)
    parser.add_argument("--done", type=Path, help="the marker to leave, in the staging folder")
    parser.add_argument("--revision", type=Path, nargs="?", help="its revision file, if any")
    job = parser.parse_args(arguments)
    name, resources = job.export, job.resources
    staging = job.done.parent
    results = staging.parent
    target = tracks_path(name, results)
    with job_log(job.log, name, resources) as say:
        if problem := read_record(problem_path(name, resources)):
            raise ExportError(problem["cause"])
        revision = read_record(job.revision) if job.revision else None
        if revision is None:
            raise ExportError(
                "the last manifest did not ask for this export: run without refresh=false."
            )
        settings = require_record(settings_path(resources))
        previous = read_if_sound(receipt_path(name, results))
        client = Client.of(settings, os.environ)
        try:
            with replacing(target, staging) as part:
                came, findings = download(client, revision, part)
                # A killed run may have left this process behind, and another run may have gone on.
                if read_record(job.revision) != revision:
                    raise ExportError("another run has begun: this one's export is not used.")
        except OSError as error:
            raise storage_error(error, target) from None
        for conversion in conversion_paths(name, results):
            make_older(conversion, target)
        receipt = receipt_of(came, findings, revision, previous, settings)
        receipt["started_at"] = started.isoformat()
        receipt["finished_at"] = datetime.now(UTC).isoformat()
        write_record(receipt_path(name, results), receipt, results)
        say(f"{target}: {came.size:,} bytes, {receipt['tracks']} tracks, try {came.attempts}")
        for warning in receipt["warnings"]:
            say(f"Warning: {warning}")
        job.done.touch()


if __name__ == "__main__":
    main()
