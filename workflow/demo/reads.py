"""What the demo backend answers from its database: batches, track listings and exports."""

import json
import random
import sqlite3
from array import array
from datetime import datetime
from typing import Any, Literal

from .database import ABANDONED, UNREVIEWED, BatchNotFoundError, NothingToExportError, transaction

JsonObject = dict[str, Any]
StatusFilter = Literal["all", "complete"]


def list_batches(connection: sqlite3.Connection) -> list[JsonObject]:
    """Return `/batches`: newest first.

    `incomplete_tracks` counts the tracks that nobody completed by hand, whatever is reviewed
    in them: one of the meanings the field has in the backend's API.
    """
    rows = connection.execute(
        """SELECT batch_key, gcs_prefix,
            (SELECT count(*) FROM image WHERE batch_id = batch.id) AS frame_count,
            (SELECT count(*) FROM track JOIN annotation ON track_id = track.id
             WHERE batch_id = batch.id) AS annotation_count,
            created_at,
            (SELECT count(*) FROM track
             WHERE batch_id = batch.id AND NOT manually_completed) AS incomplete_tracks
        FROM batch ORDER BY created_at DESC, id DESC"""
    )
    return [dict(row) for row in rows]


def find_batch(connection: sqlite3.Connection, batch_key: str) -> int:
    """Return a batch's row id.

    Raises:
        BatchNotFoundError: With the text of the backend's API.
    """
    row = connection.execute("SELECT id FROM batch WHERE batch_key = ?", (batch_key,)).fetchone()
    if row is None:
        raise BatchNotFoundError("Batch not found")
    return int(row["id"])


def list_tracks(connection: sqlite3.Connection, batch_key: str) -> list[JsonObject]:
    """Return a batch's `/tracks` listing, in no order.

    Everything about boxes is derived from them. Pending are the unreviewed ones; a track is
    `abandoned` from its first abandoned box on, and `active` without one; `last_updated_at` is
    its boxes' latest `updated_at`. A track without boxes has null for its frames and times.

    Raises:
        BatchNotFoundError: No batch has this key.
    """
    listing = [entry for _, entry in _listing(connection, find_batch(connection, batch_key))]
    random.shuffle(listing)
    return listing


def _listing(connection: sqlite3.Connection, batch_id: int) -> list[tuple[int, JsonObject]]:
    """Return (row id, listing entry) for each track of a batch."""
    rows = connection.execute(
        """SELECT track.id, track_tag, primary_class, person_down, manually_completed,
            json_group_array(category_name) AS categories,
            count(annotation.id) AS total_annotations,
            count(CASE WHEN status = :unreviewed THEN 1 END) AS pending_annotations,
            count(DISTINCT frame_index) AS frame_count,
            min(frame_index) AS first_frame_index,
            max(frame_index) AS last_frame_index,
            min(CASE WHEN status = :abandoned THEN frame_index END) AS abandoned_from_frame,
            max(updated_at) AS last_updated_at
        FROM track
            LEFT JOIN annotation ON annotation.track_id = track.id
            LEFT JOIN image ON image.id = annotation.image_id
        WHERE track.batch_id = :batch GROUP BY track.id""",
        {"batch": batch_id, "unreviewed": UNREVIEWED, "abandoned": ABANDONED},
    )
    return [(row["id"], _listing_entry(row)) for row in rows]


def _listing_entry(row: sqlite3.Row) -> JsonObject:
    pending = row["pending_annotations"]
    manually_completed = bool(row["manually_completed"])
    names = [name for name in json.loads(row["categories"]) if name is not None]
    return {
        "track_tag": row["track_tag"],
        "categories": list(dict.fromkeys(names)),
        "primary_class": row["primary_class"],
        "person_down": bool(row["person_down"]),
        "status": "active" if row["abandoned_from_frame"] is None else "abandoned",
        "total_annotations": row["total_annotations"],
        "pending_annotations": pending,
        "frame_count": row["frame_count"],
        "first_frame_index": row["first_frame_index"],
        "last_frame_index": row["last_frame_index"],
        "abandoned_from_frame": row["abandoned_from_frame"],
        "last_updated_at": row["last_updated_at"],
        "completed": pending == 0 or manually_completed,
        "manually_completed": manually_completed,
    }


def export_tracks(
    connection: sqlite3.Connection,
    batch_key: str,
    status_filter: StatusFilter,
    exported_at: datetime,
) -> JsonObject:
    """Return a batch's export, every list of it in a new order.

    `complete` takes the tracks with nothing pending and those completed by hand; a track comes
    with all its boxes. An annotation's `id` is its place in this very answer, except that the
    first carries its ObjectId there; `annotation_id` is what lasts.

    Raises:
        BatchNotFoundError: No batch has this key.
        NothingToExportError: With the text of the backend's API.
    """
    with transaction(connection, "DEFERRED"):
        batch_id = find_batch(connection, batch_key)
        listing = _listing(connection, batch_id)
        if not listing:
            raise NothingToExportError("No tracks found for export")
        chosen = [t for t in listing if status_filter == "all" or t[1]["completed"]]
        if not chosen:
            raise NothingToExportError("No completed tracks available for export")
        random.shuffle(chosen)
        track_ids = json.dumps([track_id for track_id, _ in chosen])
        images = connection.execute(
            """SELECT image.object_id AS id, file_name, width, height, frame_index,
                frame_version, gcs_prefix || '/' || file_name AS gcs_uri
            FROM image JOIN batch ON batch.id = image.batch_id
            WHERE image.id IN (SELECT image_id FROM annotation
                WHERE track_id IN (SELECT value FROM json_each(?)))""",
            (track_ids,),
        ).fetchall()
        boxes = connection.execute(
            """SELECT annotation.*, image.object_id AS image_object_id, track_tag, person_down
            FROM annotation
                JOIN image ON image.id = annotation.image_id
                JOIN track ON track.id = annotation.track_id
            WHERE track_id IN (SELECT value FROM json_each(?))""",
            (track_ids,),
        ).fetchall()
    random.shuffle(images)
    random.shuffle(boxes)
    categories = {row["category_id"]: row["category_name"] for row in boxes}
    return {
        "info": {
            "batch_key": batch_key,
            "exported_at": exported_at.isoformat(timespec="microseconds"),
            "tracks": [track["track_tag"] for _, track in chosen],
        },
        "images": [dict(row) for row in images],
        "annotations": [_annotation(index, row) for index, row in enumerate(boxes)],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "tracks": [_exported_track(track) for _, track in chosen],
    }


def _exported_track(track: JsonObject) -> JsonObject:
    names = ("track_tag", "primary_class", "categories", "manually_completed", "status")
    return {name: track[name] for name in (*names, "pending_annotations")}


def _annotation(index: int, row: sqlite3.Row) -> JsonObject:
    annotation = {
        "id": index or row["object_id"],
        "annotation_id": row["object_id"],
        "image_id": row["image_object_id"],
        "track_tag": row["track_tag"],
        "category_id": row["category_id"],
        "category_name": row["category_name"],
        "bbox": [row["x"], row["y"], row["width"], row["height"]],
        "area": row["area"],
        "status": row["status"],
        "confidence": row["confidence"],
        "person_down": bool(row["person_down"]),
        "blur_decision": row["blur_decision"],
        "blur_metrics": {"blur_decision": row["blur_decision"], "v": row["blur_value"]},
        "embedding_swin": array("d", row["embedding"]).tolist(),
        "has_mask": None,
        "patch_id": None,
        "strict": None,
        "meta": None,
        "labels": None,
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
    if row["judged_at"] is not None:
        annotation["latest_judgment"] = {
            "status": row["status"],
            "user": row["judged_by"],
            "note": row["judgment_note"],
            "created_at": row["judged_at"],
        }
    return annotation
