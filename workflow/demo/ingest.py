"""Ingesting a batch again: the same frames and tracks come anew, and every review is gone."""

import secrets
import sqlite3
from datetime import datetime

from .database import UNREVIEWED, object_ids, timestamp

RESET_TRACKS = """UPDATE track
    SET primary_class = NULL, person_down = 0, manually_completed = 0
    WHERE batch_id = :batch"""

ADD_FRAME = """INSERT INTO image
    (batch_id, object_id, file_name, width, height, frame_index)
    SELECT batch_id, '', printf('f%05d.jpg', frame_index + 1), width, height, frame_index + 1
    FROM image WHERE batch_id = :batch ORDER BY frame_index DESC LIMIT 1"""

ADD_BOXES = """INSERT INTO annotation
    (track_id, image_id, object_id, category_id, category_name, x, y, width, height, area,
     status, confidence, blur_decision, blur_value, embedding, created_at, updated_at)
    SELECT track_id, (SELECT max(id) FROM image WHERE batch_id = :batch), '', category_id,
        category_name, x, y, width, height, area,
        status, confidence, blur_decision, blur_value, embedding, created_at, updated_at
    FROM annotation JOIN (
        SELECT annotation.id AS last_box, max(frame_index)
        FROM annotation JOIN image ON image.id = image_id
        WHERE batch_id = :batch GROUP BY track_id
    ) ON annotation.id = last_box"""

RESET_BOXES = """UPDATE annotation
    SET status = :unreviewed, status_before_abandon = NULL,
        created_at = :now, updated_at = :now,
        judged_by = NULL, judgment_note = NULL, judged_at = NULL
    WHERE track_id IN (SELECT id FROM track WHERE batch_id = :batch)"""


def ingest_again(connection: sqlite3.Connection, batch_id: int, now: datetime) -> tuple[int, int]:
    """Make a batch anew, one frame longer, with new ObjectIds and `created_at`.

    On the new frame each track's last box stays where it is.

    Returns:
        How many frames and boxes the batch has now.
    """
    values = {"batch": batch_id, "now": timestamp(now), "unreviewed": UNREVIEWED}
    connection.execute("UPDATE batch SET created_at = :now WHERE id = :batch", values)
    connection.execute(RESET_TRACKS, values)
    connection.execute(ADD_FRAME, values)
    connection.execute(ADD_BOXES, values)
    connection.execute(RESET_BOXES, values)
    connection.execute("UPDATE image SET frame_version = 0 WHERE batch_id = :batch", values)
    new_ids = object_ids(now, secrets.randbits(40))
    images = connection.execute(
        "SELECT id FROM image WHERE batch_id = :batch ORDER BY frame_index", values
    ).fetchall()
    boxes = connection.execute(
        """SELECT id FROM annotation
        WHERE track_id IN (SELECT id FROM track WHERE batch_id = :batch) ORDER BY id""",
        values,
    ).fetchall()
    connection.executemany(
        "UPDATE image SET object_id = ? WHERE id = ?",
        [(next(new_ids), row["id"]) for row in images],
    )
    connection.executemany(
        "UPDATE annotation SET object_id = ? WHERE id = ?",
        [(next(new_ids), row["id"]) for row in boxes],
    )
    return len(images), len(boxes)
