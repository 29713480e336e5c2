"""The small JSON files that the rules hand on: manifest, revisions, problems, failures, receipts.

All are written atomically. Paths are relative to the run's working directory:

    resources/manifest.json             the backend's batch list, and what the last run asked for
    resources/settings.json             the settings that the last run worked with
    resources/revisions/<export>.json   what there is to export; rewritten only when it changes
    resources/problems/<export>.json    why the manifest's last fetch could not tell
    resources/failures/<job>.json       why a job's last run failed
    results/receipts/<export>.json      what was exported

where `<export>` is `<batch>_<filter>`, the batch key in its file-name form.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from export_via_api import ExportError, export_name, replacing, storage_error

RESULTS = Path("results")
RESOURCES = Path("resources")


@dataclasses.dataclass(frozen=True)
class Export:
    """One file to make: a batch under a status filter."""

    name: str  # the `<batch>_<filter>` that all its files are named after
    batch_key: str
    status_filter: str

    @classmethod
    def of(cls, batch_key: str, status_filter: str) -> Export:
        """Return the export of a batch."""
        return cls(f"{export_name(batch_key)}_{status_filter}", batch_key, status_filter)


def asked_exports(
    named: Iterable[str],
    selected: Iterable[str],
    status_filter: str,
    listed: Iterable[str],
) -> list[Export]:
    """Return what a run is asked for, each export once.

    Args:
        named: Exports asked for by file, as `<batch>_<filter>`.
        selected: Batches asked for by configuration.
        status_filter: The filter for the selected batches.
        listed: The batch keys of the backend's batch list.
    """
    exports = [Export.of(key, status_filter) for key in selected]
    keys = {export_name(key): key for key in listed}
    for name in named:
        batch_name, _, filter_ = name.rpartition("_")
        exports.append(Export(name, keys.get(batch_name, unquote(batch_name)), filter_))
    return list(dict.fromkeys(exports))


def tracks_path(export: str, results: Path = RESULTS) -> Path:
    """Return the path of a published export."""
    return results / f"{export}_tracks.json"


def receipt_path(export: str, results: Path = RESULTS) -> Path:
    """Return the path of an export's receipt."""
    return results / "receipts" / f"{export}.json"


def conversion_path(form: str, export: str, results: Path = RESULTS) -> Path:
    """Return the path of an export in another form: `coco`, `mot` or `tables`."""
    suffix = {"coco": ".json", "mot": "", "tables": ".parquet"}[form]
    return results / form / f"{export}{suffix}"


def conversion_paths(export: str, results: Path = RESULTS) -> list[Path]:
    """Return the paths of an export in every form."""
    return [conversion_path(form, export, results) for form in ("coco", "mot", "tables")]


def manifest_path(resources: Path = RESOURCES) -> Path:
    """Return the path of the manifest."""
    return resources / "manifest.json"


def settings_path(resources: Path = RESOURCES) -> Path:
    """Return the path of the settings that the last run worked with."""
    return resources / "settings.json"


def revision_path(export: str, resources: Path = RESOURCES) -> Path:
    """Return the path of an export's revision file."""
    return resources / "revisions" / f"{export}.json"


def problem_path(export: str, resources: Path = RESOURCES) -> Path:
    """Return the path of the file that says why an export's revision is not known."""
    return resources / "problems" / f"{export}.json"


def failure_path(job: str, resources: Path = RESOURCES) -> Path:
    """Return the path of the file that says why a job's last run failed."""
    return resources / "failures" / f"{job}.json"


def staging_of(folder: Path) -> Path:
    """Return where files lie that are not whole yet; each run that fetches clears it first."""
    return folder / ".staging"


def write_record(path: Path, record: dict[str, Any], folder: Path) -> None:
    """Write a record as JSON, atomically; `folder` (results or resources) stages it."""
    try:
        with replacing(path, staging_of(folder)) as part:
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise storage_error(error, path) from None


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a record; None when there is none.

    Raises:
        ExportError: the file is not the JSON object that `write_record` wrote.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ExportError(f"{path} is damaged: delete it and run again.")
    return record


def require_record(path: Path) -> dict[str, Any]:
    """Read a record that has to be there.

    Raises:
        ExportError: it is not, or is damaged.
    """
    record = read_record(path)
    if record is None:
        raise ExportError(f"{path} is not there: run again.")
    return record


def read_if_sound(path: Path) -> dict[str, Any] | None:
    """Read a record that can do without; None when there is none or it is damaged."""
    try:
        return read_record(path)
    except ExportError:
        return None


def require_manifest(backend_id: str, resources: Path = RESOURCES) -> None:
    """Make sure that there is an earlier run's manifest of this backend to work with.

    Raises:
        ExportError: there is none, or it is another backend's.
    """
    path = manifest_path(resources)
    manifest = read_record(path)
    if manifest is None:
        raise ExportError(
            f"refresh=false works with the manifest of an earlier run, and {path} is not there: "
            "run once without it."
        )
    if manifest["backend_id"] != backend_id:
        raise ExportError(
            f"refresh=false works with the last manifest, and {path} is of another backend "
            f"({manifest['backend_id']}, not {backend_id}): run once without it."
        )


@contextlib.contextmanager
def job_log(log: Path, job: str, resources: Path) -> Iterator[Callable[[str], None]]:
    """Run a rule's script: give its log's writer, and turn failures into one readable line.

    An expected failure is written to the log and to the job's failure record, and ends the
    script with exit code 1. So does an unexpected one, with its traceback in the log.
    """
    # Ctrl-C reaches the whole process group: end at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    failure = failure_path(job, resources)
    with log.open("w", encoding="utf-8", errors="backslashreplace") as file:

        def say(message: str) -> None:
            print(message, file=file, flush=True)

        try:
            yield say
            failure.unlink(missing_ok=True)
            return
        except ExportError as error:
            cause = str(error)
        except OSError as error:
            cause = str(storage_error(error, Path(error.filename or ".")))
        except Exception as error:
            traceback.print_exc(file=file)
            cause = f"unexpected {type(error).__name__}, see {log}: please report it."
        say(f"Error: {cause}")
    with contextlib.suppress(ExportError):  # on a full disk the log and exit code must do
        write_record(failure, {"job": job, "cause": cause, "failed_at": time.time()}, resources)
    sys.exit(1)


def change_token() -> str:
    """Return what makes a revision file's content new on every change.

    Snakemake takes an input for unchanged when its content is what a job last saw: without this, a
    change that a killed run exported and a reviewer then took back would pass for no change at all.
    """
    return f"{datetime.now(UTC).isoformat()} {secrets.token_hex(8)}"


def declare_stale(export: str, results: Path = RESULTS, resources: Path = RESOURCES) -> None:
    """Have the next run export this again, though the backend has not changed."""
    path = revision_path(export, resources)
    if record := read_if_sound(path):
        write_record(path, record | {"changed": change_token()}, resources)
        make_older(tracks_path(export, results), path)


def make_writable(path: Path) -> None:
    """Take the write protection off a file that may be replaced.

    Snakemake gives up the whole run when one file to be made again is protected.
    """
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        if not mode & stat.S_IWUSR:
            path.chmod(mode | stat.S_IWUSR)


def make_older(path: Path, than: Path) -> None:
    """Make sure that Snakemake sees `than` as newer than `path`, even when the clock went back."""
    with contextlib.suppress(FileNotFoundError):
        newest = than.stat().st_mtime_ns - 1_000_000
        if path.stat().st_mtime_ns > newest:
            os.utime(path, ns=(newest, newest))
