"""A reviewer's edits, each with the effects that it has in the backend's API.

| edit | value | what it does |
|---|---|---|
| accept, reject | a frame index; none: every frame | judges the track's boxes |
| abandon | the first frame abandoned; none: all | judges the boxes from there on |
| recover | a frame index; none: every frame | gives abandoned boxes back their former status |
| complete, uncomplete | | sets or takes back `manually_completed` |
| class | a name | sets `primary_class` |
| person-down | on (if none is given) or off | sets `person_down` of the track and its boxes |
| save-frame | a frame index; none: the track's first | bumps the `frame_version` alone |
| ingest-again | | makes the batch anew, all reviews gone, one frame longer |

A judgment sets a box's `status`, `latest_judgment` and `updated_at` and bumps the
`frame_version` of its image. Whatever else `/batches` and `/tracks` show follows from the
boxes: pending are the unreviewed ones, a track is abandoned from its first abandoned box on.
The edits of a track as a whole touch neither its boxes' `updated_at` nor, hence, its
`last_updated_at`: only their own field tells of them.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from .database import (
    ABANDONED,
    ACCEPTED,
    REJECTED,
    BatchNotFoundError,
    DemoError,
    TrackNotFoundError,
    timestamp,
    transaction,
)
from .ingest import ingest_again

NO_TRACK = "-"


class EditError(DemoError):
    """No such edit, or a value that it cannot take."""


@dataclass(frozen=True)
class EditResult:
    """What an edit did; `track_tag` is `-` for an edit of a whole batch."""

    batch_key: str
    track_tag: str
    edit: str
    summary: str


@dataclass(frozen=True)
class Edit:
    """One edit on its way: where it applies, its value, and who makes it when."""

    connection: sqlite3.Connection
    name: str
    batch_id: int
    track_id: int
    value: str | None
    user: str
    note: str | None
    now: datetime


def apply_edit(
    connection: sqlite3.Connection,
    edit: str,
    batch_key: str,
    track_tag: str = NO_TRACK,
    value: str | None = None,
    *,
    user: str = "reviewer",
    note: str | None = None,
) -> EditResult:
    """Apply one edit as one transaction.

    Args:
        connection: Of a demo database.
        edit: A name of `EDITS`.
        batch_key: The batch.
        track_tag: The track; `-`, for none, is allowed for `ingest-again` alone.
        value: What the edit takes; see the module.
        user: The reviewer, for `latest_judgment`.
        note: The reviewer's note, for `latest_judgment`.

    Raises:
        EditError: No such edit, or a bad value.
        BatchNotFoundError: No batch has this key; the text names those that exist.
        TrackNotFoundError: The batch has no such track; the text names those that exist.
    """
    if edit not in EDITS:
        raise EditError(f"no edit {edit!r}; edits are {_enumeration(list(EDITS), most=99)}")
    with transaction(connection, "IMMEDIATE"):
        batch_id = _batch_id(connection, batch_key)
        track_id = 0
        if edit != "ingest-again" or track_tag != NO_TRACK:
            track_id = _track_id(connection, batch_id, batch_key, track_tag)
        now = _next_moment(connection, batch_id)
        summary = EDITS[edit](Edit(connection, edit, batch_id, track_id, value, user, note, now))
    return EditResult(batch_key, track_tag, edit, summary)


def _accept(edit: Edit) -> str:
    return f"{_judge(edit, ACCEPTED, _frame(edit))} accepted"


def _reject(edit: Edit) -> str:
    return f"{_judge(edit, REJECTED, _frame(edit))} rejected"


def _abandon(edit: Edit) -> str:
    frame = _frame(edit, exact=False)
    edit.connection.execute(
        """UPDATE annotation SET status_before_abandon = status
        WHERE track_id = ? AND status <> ?""",
        (edit.track_id, ABANDONED),
    )
    return f"{_judge(edit, ABANDONED, frame, onwards=True)} abandoned"


def _recover(edit: Edit) -> str:
    return f"{_judge(edit, None, _frame(edit))} recovered"


def _judge(edit: Edit, status: str | None, frame: int | None, *, onwards: bool = False) -> str:
    """Judge the track's boxes on one frame, from it onwards, or on all.

    Without a status it takes the abandoned ones alone and gives them their former status.
    """
    picked = edit.connection.execute(
        """SELECT annotation.id, image_id FROM annotation JOIN image ON image.id = image_id
        WHERE track_id = :track
            AND (:frame IS NULL OR frame_index = :frame OR (:onwards AND frame_index > :frame))
            AND (:status IS NOT NULL OR status = :abandoned)""",
        {
            "track": edit.track_id,
            "frame": frame,
            "onwards": onwards,
            "status": status,
            "abandoned": ABANDONED,
        },
    ).fetchall()
    if not picked:
        raise EditError(f"{edit.name} finds no box to change in this track")
    now = timestamp(edit.now)
    edit.connection.executemany(
        """UPDATE annotation SET status = coalesce(?, status_before_abandon), updated_at = ?,
            judged_by = ?, judgment_note = ?, judged_at = ? WHERE id = ?""",
        [(status, now, edit.user, edit.note, now, row["id"]) for row in picked],
    )
    edit.connection.executemany(
        "UPDATE image SET frame_version = frame_version + 1 WHERE id = ?",
        [(image,) for image in {row["image_id"] for row in picked}],
    )
    return _count(len(picked), "box", "boxes")


def _complete(edit: Edit) -> str:
    _set_manually_completed(edit, True)
    return "manually completed"


def _uncomplete(edit: Edit) -> str:
    _set_manually_completed(edit, False)
    return "no longer manually completed"


def _set_manually_completed(edit: Edit, value: bool) -> None:
    _no_value(edit)
    edit.connection.execute(
        "UPDATE track SET manually_completed = ? WHERE id = ?", (value, edit.track_id)
    )


def _class(edit: Edit) -> str:
    if not edit.value:
        raise EditError("class needs a value: the name of the class")
    edit.connection.execute(
        "UPDATE track SET primary_class = ? WHERE id = ?", (edit.value, edit.track_id)
    )
    return f"primary class is {edit.value!r}"


def _person_down(edit: Edit) -> str:
    value = edit.value or "on"
    if value not in ("on", "off"):
        raise EditError(f"person-down takes on or off, not {value!r}")
    edit.connection.execute(
        "UPDATE track SET person_down = ? WHERE id = ?", (value == "on", edit.track_id)
    )
    return f"person down is {value}"


def _save_frame(edit: Edit) -> str:
    frame = _frame(edit)
    image = edit.connection.execute(
        """SELECT image.id, frame_index FROM annotation JOIN image ON image.id = image_id
        WHERE track_id = ? AND (? IS NULL OR frame_index = ?) ORDER BY frame_index""",
        (edit.track_id, frame, frame),
    ).fetchone()
    if image is None:
        raise EditError("save-frame finds no frame in this track")
    edit.connection.execute(
        "UPDATE image SET frame_version = frame_version + 1 WHERE id = ?", (image["id"],)
    )
    return f"frame {image['frame_index']} saved without a change"


def _ingest_again(edit: Edit) -> str:
    _no_value(edit)
    frames, boxes = ingest_again(edit.connection, edit.batch_id, edit.now)
    frames_text = _count(frames, "frame", "frames")
    return f"ingested again: {frames_text}, {_count(boxes, 'box', 'boxes')}, all unreviewed"


EDITS: dict[str, Callable[[Edit], str]] = {
    "accept": _accept,
    "reject": _reject,
    "abandon": _abandon,
    "recover": _recover,
    "complete": _complete,
    "uncomplete": _uncomplete,
    "class": _class,
    "person-down": _person_down,
    "save-frame": _save_frame,
    "ingest-again": _ingest_again,
}


def _batch_id(connection: sqlite3.Connection, batch_key: str) -> int:
    rows = connection.execute("SELECT batch_key, id FROM batch ORDER BY batch_key")
    ids = {row["batch_key"]: int(row["id"]) for row in rows}
    if batch_key not in ids:
        raise BatchNotFoundError(f"no batch {batch_key!r}; batches are {_enumeration(list(ids))}")
    return ids[batch_key]


def _track_id(connection: sqlite3.Connection, batch_id: int, batch_key: str, track_tag: str) -> int:
    rows = connection.execute(
        "SELECT track_tag, id FROM track WHERE batch_id = ? ORDER BY track_tag", (batch_id,)
    )
    ids = {row["track_tag"]: int(row["id"]) for row in rows}
    if track_tag == NO_TRACK:
        raise TrackNotFoundError(
            f"this edit needs a track; tracks of {batch_key!r} are {_enumeration(list(ids))}"
        )
    if track_tag not in ids:
        raise TrackNotFoundError(
            f"no track {track_tag!r} in batch {batch_key!r}; tracks are {_enumeration(list(ids))}"
        )
    return ids[track_tag]


def _next_moment(connection: sqlite3.Connection, batch_id: int) -> datetime:
    """Return the time, or the next millisecond if the batch was edited in this one.

    Two edits in one millisecond would else leave `last_updated_at` as it was.
    """
    latest = connection.execute(
        """SELECT max(created_at, coalesce((SELECT max(updated_at)
            FROM annotation JOIN track ON track.id = track_id WHERE batch_id = batch.id), ''))
        FROM batch WHERE id = ?""",
        (batch_id,),
    ).fetchone()[0]
    after = datetime.fromisoformat(latest).replace(tzinfo=UTC) + timedelta(milliseconds=1)
    return max(datetime.now(UTC), after)


def _frame(edit: Edit, *, exact: bool = True) -> int | None:
    """Return the edit's value as a frame index: of a box of the track if it is to be exact."""
    if edit.value is None:
        return None
    rows = edit.connection.execute(
        """SELECT DISTINCT frame_index FROM annotation JOIN image ON image.id = image_id
        WHERE track_id = ? ORDER BY frame_index""",
        (edit.track_id,),
    )
    frames = [str(row["frame_index"]) for row in rows]
    if not edit.value.isdecimal() or (exact and edit.value not in frames):
        raise EditError(
            f"{edit.name} takes a frame of the track, not {edit.value!r}; "
            f"frames are {_enumeration(frames, most=60)}"
        )
    return int(edit.value)


def _no_value(edit: Edit) -> None:
    if edit.value is not None:
        raise EditError(f"{edit.name} takes no value, not {edit.value!r}")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _enumeration(names: list[str], most: int = 12) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(n if n.isprintable() else repr(n) for n in names[:most]) + more
