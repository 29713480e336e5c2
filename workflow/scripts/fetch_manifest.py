"""Fetch the batch list and the track listings asked for; tell what there is to export.

The script of the rule `fetch_manifest`. It writes `manifest.json`, and for each export asked for
either a revision file, rewritten only when it changes, or a problem file.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export_records import (
    Export,
    asked_exports,
    change_token,
    job_log,
    make_older,
    manifest_path,
    problem_path,
    read_if_sound,
    require_record,
    revision_path,
    settings_path,
    staging_of,
    tracks_path,
    write_record,
)
from export_via_api import (
    MAX_CONNECTIONS,
    ApiError,
    Client,
    ExportError,
    RouteMissingError,
    batch_path,
    batches_by_key,
    nearest_keys,
    show,
)

if TYPE_CHECKING:
    from snakemake.script import snakemake

Listing = list[dict[str, Any]]


def is_exported(track: Mapping[str, Any], status_filter: str) -> bool:
    """Tell whether the export under this filter holds a listed track.

    The API's rule: `complete` takes the tracks without pending annotations and those completed by
    hand. A listing without the count cannot tell, so its tracks all count.
    """
    if status_filter == "all" or track.get("manually_completed"):
        return True
    return not track.get("pending_annotations", 0)


def revision_of(tracks: Iterable[Mapping[str, Any]], identity: Iterable[str | None]) -> str:
    """Return a digest of listed tracks that is the same in whatever order they come.

    Args:
        tracks: The listing's entries that the export holds.
        identity: What else makes it another export: backend, filter, when the batch was made.
    """
    entries = sorted(json.dumps(_ordered(track), sort_keys=True) for track in tracks)
    return hashlib.sha256(json.dumps([*identity, entries]).encode()).hexdigest()


def _ordered(track: Mapping[str, Any]) -> dict[str, Any]:
    """Sort a track's lists (`categories` is a set to the backend, in no fixed order)."""
    return {
        key: sorted(value, key=str) if isinstance(value, list) else value
        for key, value in track.items()
    }


def list_tracks(client: Client, batch_key: str) -> Listing | ExportError | None:
    """Return a batch's track listing, why there is none, or None where the API serves none."""
    try:
        return client.tracks(batch_key)
    except RouteMissingError:
        return None
    except ExportError as error:
        return error


def fetch_listings(
    client: Client, batch_keys: Iterable[str]
) -> dict[str, Listing | ExportError | None]:
    """Fetch track listings, at most `MAX_CONNECTIONS` at a time."""
    keys = list(dict.fromkeys(batch_keys))
    with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
        return dict(zip(keys, pool.map(lambda key: list_tracks(client, key), keys), strict=True))


def problem_of(export: Export, listed: Sequence[str]) -> str:
    """Return why the API cannot be asked for an export; empty when it can."""
    usual = Export.of(export.batch_key, export.status_filter)
    if export.batch_key not in listed:
        return (
            f"the backend's batch list ({len(listed)} batches) has no key "
            f"{show(export.batch_key)}. {nearest_keys(export.batch_key, listed)} "
            "An export made before is kept."
        )
    if export != usual:
        return f"ask for this batch's export as {tracks_path(usual.name)}."
    try:
        batch_path(export.batch_key)
    except ApiError as error:
        return str(error)
    return ""


def update_revision(
    export: Export,
    batch: Mapping[str, Any],
    listing: Listing | None,
    backend_id: str,
    resources: Path,
) -> bool:
    """Write an export's revision file if its revision is another than before; tell whether it was.

    Without a listing the revision is that of the batch's own entry in the batch list.
    """
    tags = None
    tracks: Iterable[Mapping[str, Any]] = [batch]
    if listing is not None:
        tracks = [track for track in listing if is_exported(track, export.status_filter)]
        tags = sorted(str(track.get("track_tag")) for track in tracks)
    created_at = str(batch.get("created_at"))
    revision = revision_of(tracks, [backend_id, export.status_filter, created_at])
    path = revision_path(export.name, resources)
    before = read_if_sound(path)
    if before and before.get("revision") == revision:
        return False
    record = dataclasses.asdict(export) | {"revision": revision, "changed": change_token()}
    listed = None if listing is None else len(listing)
    write_record(path, record | {"track_tags": tags, "tracks_listed": listed}, resources)
    return True


def progress_of(listing: Listing) -> dict[str, int]:
    """Return how far the review of a batch is: its tracks, and those of them that are complete."""
    complete = sum(is_exported(track, "complete") for track in listing)
    return {"tracks": len(listing), "tracks_complete": complete}


def main() -> None:
    """Run the rule's job."""
    resources = Path(snakemake.output[0]).parent.parent
    results = Path(snakemake.params.results)
    with job_log(Path(snakemake.log[0]), "manifest", resources) as say:
        settings = require_record(settings_path(resources))
        # What a killed run left there must not pass for this run's.
        for folder in (results, resources):
            shutil.rmtree(staging_of(folder), ignore_errors=True)
        staging_of(resources).mkdir(parents=True)  # for the job's marker
        client = Client.of(settings, os.environ)
        batches = batches_by_key(client.batches())
        say(f"{len(batches)} batches at {settings['api_base']}")

        selected = settings["batch_keys"] or batches if snakemake.params.selection else ()
        exports = asked_exports(
            snakemake.params.named, selected, settings["status_filter"], batches
        )
        problems = {export: problem_of(export, list(batches)) for export in exports}
        listings = fetch_listings(client, [e.batch_key for e in exports if not problems[e]])
        for export in exports:
            listing = listings.get(export.batch_key)
            problem = str(listing) if isinstance(listing, ExportError) else problems[export]
            problem_file = problem_path(export.name, resources)
            revision_file = revision_path(export.name, resources)
            if isinstance(listing, ExportError) or problem:
                say(f"{export.name}: {problem}")
                write_record(problem_file, {"cause": problem}, resources)
                make_older(tracks_path(export.name, results), problem_file)
                continue
            batch = batches[export.batch_key]
            if update_revision(export, batch, listing, settings["backend_id"], resources):
                make_older(tracks_path(export.name, results), revision_file)
            problem_file.unlink(missing_ok=True)

        unlisted = sum(listing is None for listing in listings.values())
        warning = (
            f"This backend gives no track listing for {unlisted} of {len(listings)} batches (404). "
            "Their exports are made again only when their entry in the batch list changes, which "
            "misses most reviewers' edits: run with --forceall to be sure."
        )
        write_record(
            manifest_path(resources),
            {
                "api_base": settings["api_base"],
                "backend_id": settings["backend_id"],
                "fetched_at": datetime.now(UTC).isoformat(),
                "warnings": [warning] if unlisted else [],
                "batches": list(batches.values()),
                "progress": {
                    key: progress_of(listing)
                    for key, listing in listings.items()
                    if isinstance(listing, list)
                },
            },
            resources,
        )
        Path(snakemake.output[0]).touch()


if __name__ == "__main__":
    main()
