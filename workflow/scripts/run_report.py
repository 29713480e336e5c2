"""What a run says of itself: a line for each export as it is made, and a closing summary.

Snakemake's log tells of jobs. People want to know which batches were exported, and why not.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any

from export_records import (
    RESOURCES,
    RESULTS,
    Export,
    failure_path,
    manifest_path,
    read_if_sound,
    receipt_path,
    revision_path,
    tracks_path,
)
from export_via_api import plain
from snakemake_interface_logger_plugins.common import LogEvent

MAX_NAMES = 8  # batch keys that a line of the summary names

# Bookkeeping of files that the workflow makes for itself alone.
NOISE = (
    # A download puts the export in place itself, before Snakemake expects it.
    "were not present when the DAG was created",
    "Removing temporary output",
    "DAG of jobs will be updated",
    "Updating checkpoint dependencies",
)


def handle_in_thread(number: int) -> None:
    """Run the handler of a signal in a thread of its own from now on.

    Python runs handlers between two instructions of the main thread. Snakemake's for SIGTERM takes
    a lock that the main thread may be holding there: run in place, it would wait for ever.
    """
    handler = signal.getsignal(number)
    if callable(handler):
        signal.signal(number, lambda *args: Thread(target=handler, args=args, daemon=True).start())


class RunReporter(logging.Filter):
    """Adds to Snakemake's log what people want to know of the exports, and leaves out noise.

    A logging filter, as Snakemake calls nothing else in the main process when a job without code
    of its own is run, and only the main process can write past the progress bars.
    """

    def __init__(
        self,
        logger: logging.Logger,
        job_stats: Callable[[], tuple[str, dict[str, int]]],
        is_real_run: Callable[[], bool],
        before_downloads: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Attach to Snakemake's logger, in the place of an earlier reporter.

        Args:
            logger: Snakemake's logger.
            job_stats: Returns Snakemake's table of the jobs, as text and as counts.
            is_real_run: Returns whether jobs are run; a dry run makes nothing to tell of.
            before_downloads: Called with how many downloads there will be, before the first.
        """
        super().__init__()
        self.started = time.time()
        self._logger = logger
        self._job_stats = job_stats
        self._is_real_run = is_real_run
        self._before_downloads = before_downloads
        self._exporting = False
        for other in [f for f in logger.filters if isinstance(f, RunReporter)]:
            logger.removeFilter(other)
        logger.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Look at a record before it is logged; return whether it is to be."""
        if getattr(record, "event", None) is LogEvent.JOB_INFO and self._is_real_run():
            self._job_begins(getattr(record, "rule_name", ""), getattr(record, "wildcards", {}))
        message = str(record.msg)
        # That a script ended with exit code 1, or by Ctrl-C, says nothing: its log, which is
        # shown, says why.
        expected = "CalledProcessError in file" in message and message.endswith(
            ("exit status 1.", "died with <Signals.SIGINT: 2>.")
        )
        return not expected and not any(noise in message for noise in NOISE)

    def _job_begins(self, rule: str, wildcards: Mapping[str, str]) -> None:
        if rule == "manifest":
            for warning in (read_if_sound(manifest_path()) or {}).get("warnings", []):
                self._logger.warning(f"Warning: {warning}")
        elif rule == "download_tracks" and not self._exporting:
            # Snakemake counted the jobs before the manifest told what there is to export: count
            # again, for the progress bars.
            self._exporting = True
            text, stats = self._job_stats()
            done = ("fetch_manifest", "keep_manifest", "manifest")
            stats = {rule: count for rule, count in stats.items() if rule not in done}
            self._logger.info(text, extra={"event": LogEvent.RUN_INFO, "stats": stats})
            self._before_downloads(stats.get("download_tracks", 0))
        elif rule == "publish_tracks" and (
            receipt := read_if_sound(receipt_path(wildcards["export"]))
        ):
            self._logger.info(published_line(receipt))


def published_line(receipt: Mapping[str, Any]) -> str:
    """Return one line on an export; the closing summary tells its warnings."""
    batch = f"{plain(receipt['batch_key'])} ({receipt['status_filter']})"
    if said := receipt["empty"]:
        line = f"{batch}: skipped, {said[0].lower()}{said[1:]}"
    else:
        line = (
            f"{batch}: {_count(receipt['tracks'], 'track')}, "
            f"{_count(receipt['annotations'], 'annotation')}, {human_size(receipt['size'])}"
        )
    if receipt["warnings"]:
        line += f" ({_count(len(receipt['warnings']), 'warning')})"
    return line


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def human_size(size: int) -> str:
    """Return a number of bytes as people read it."""
    if size < 1000:
        return f"{size} bytes"
    for unit, power in (("kB", 1), ("MB", 2)):
        if size < 1000 ** (power + 1):
            return f"{size / 1000**power:,.1f} {unit}"
    return f"{size / 1000**3:,.1f} GB"


def closing_summary(
    asked: Iterable[Export],
    api_base: str,
    started: float,
    succeeded: bool,
    results: Path = RESULTS,
    resources: Path = RESOURCES,
) -> list[str]:
    """Return the lines that tell what came of a run.

    Args:
        asked: The exports that the run was asked for.
        api_base: The backend's base URL.
        started: When the run began, in seconds since the epoch.
        succeeded: Whether Snakemake calls the run a success.
        results: The folder of the exports.
        resources: The folder of the manifest.
    """
    failure = _recent_failure("manifest", started, resources)
    if failure:
        return [f"Nothing was exported: {failure}"]
    groups: dict[str, list[str]] = {"exported": [], "empty": [], "up to date": []}
    failed: list[str] = []
    warned: dict[str, list[str]] = {}
    for export in asked:
        name, batch = export.name, plain(export.batch_key)
        receipt = read_if_sound(receipt_path(name, results)) or {}
        made = _epoch(receipt.get("finished_at")) >= started
        if cause := _recent_failure(name, started, resources):
            failed.append(f"{batch}: {cause}")
        elif made and tracks_path(name, results).exists():
            groups["empty" if receipt.get("empty") else "exported"].append(batch)
            for warning in receipt.get("warnings", []):
                warned.setdefault(warning, []).append(batch)
        elif succeeded or _is_fresh(name, receipt, results, resources):
            groups["up to date"].append(batch)
        else:
            failed.append(f"{batch}: not exported in this run; see logs/download/{name}.log.")
    lines = [f"Exports from {api_base}"]
    lines += [f"  {what:<11}{len(names):>5}   {_names(names)}" for what, names in groups.items()]
    lines.append(f"  {'failed':<11}{len(failed):>5}")
    lines += [f"    {line}" for line in failed]
    conversions = sorted(failure_path("x", resources).parent.glob("*/*.json"))
    jobs = [path.parent.name + "/" + path.stem for path in conversions]
    unmade = {job: cause for job in jobs if (cause := _recent_failure(job, started, resources))}
    if unmade:
        lines.append(f"  {'not made':<11}{len(unmade):>5}")
        lines += [f"    {job}: {cause}" for job, cause in unmade.items()]
    if warned:
        lines.append("  warnings (details in results/receipts/)")
        lines += [f"    {_names(batches)}: {warning}" for warning, batches in warned.items()]
    if failed:
        lines.append("  Exports made before are untouched. Run again when the cause is gone.")
    return [line.rstrip() for line in lines]


def _is_fresh(name: str, receipt: Mapping[str, Any], results: Path, resources: Path) -> bool:
    revision = read_if_sound(revision_path(name, resources)) or {}
    return tracks_path(name, results).exists() and (
        receipt.get("revision") == revision.get("revision", "none")
    )


def _recent_failure(job: str, started: float, resources: Path) -> str:
    record = read_if_sound(failure_path(job, resources)) or {}
    return str(record["cause"]) if record.get("failed_at", 0) >= started else ""


def _epoch(timestamp: str | None) -> float:
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = len(listed) - MAX_NAMES
    return ", ".join(listed[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
