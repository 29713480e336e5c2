"""Sample batches from a fixed seed: the same seed makes the same data, ObjectIds included."""

import random
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from .database import (
    ABANDONED,
    ACCEPTED,
    REJECTED,
    UNREVIEWED,
    connect,
    create,
    transaction,
)
from .writer import CATEGORIES, EMBEDDING_LENGTH, BatchWriter

FIRST_INGEST = datetime(2025, 11, 20, tzinfo=UTC)


@dataclass(frozen=True)
class Plan:
    """A sample batch: its frames and, per track, what is seen and how far the review is.

    Reviews are `reviewed`, `rejected`, `partial`, `untouched`, `manual` (completed by hand with
    boxes unreviewed) and `abandoned`. A `!` after the class flags person-down.
    """

    batch_key: str
    frames: int
    tracks: tuple[tuple[str, str], ...]


SAMPLE = (
    Plan(
        "guns_1016205",
        32,
        (
            ("gun", "reviewed"),
            ("gun", "partial"),
            ("person", "reviewed"),
            ("person!", "manual"),
            ("gun", "abandoned"),
            ("bag", "untouched"),
            ("gun", "rejected"),
        ),
    ),
    Plan(
        "tattoo2k25",
        24,
        (
            ("tattoo", "untouched"),
            ("tattoo", "partial"),
            ("person", "untouched"),
            ("tattoo", "partial"),
        ),
    ),
    Plan(
        "tablet4_0001",
        40,
        (
            ("tablet", "reviewed"),
            ("tablet", "manual"),
            ("person", "partial"),
            ("phone", "reviewed"),
            ("person", "untouched"),
        ),
    ),
    Plan(
        "knives_203118",
        30,
        (
            ("knife", "reviewed"),
            ("knife", "abandoned"),
            ("person!", "reviewed"),
            ("person", "partial"),
            ("knife", "manual"),
            ("bag", "rejected"),
        ),
    ),
    Plan(
        "phone_0007",
        20,
        (("phone", "reviewed"), ("person", "reviewed"), ("phone", "reviewed")),
    ),
    Plan(
        "lobby_cam12",
        48,
        (
            ("person", "reviewed"),
            ("person", "partial"),
            ("bag", "untouched"),
            ("phone", "manual"),
            ("person!", "abandoned"),
            ("person", "untouched"),
            ("bag", "reviewed"),
            ("gun", "partial"),
        ),
    ),
)


def create_sample(database: Path) -> None:
    """Make a database with the sample data, unless the file is a demo database already.

    Raises:
        NotADatabaseError: The file exists and is something else.
    """
    create(database, fill=_insert_sample)


def add_batch(
    database: Path,
    batch_key: str,
    *,
    tracks: int = 3,
    frames: int = 3,
    completed_tracks: int = 0,
    empty_tracks: int = 0,
    embedding_length: int = EMBEDDING_LENGTH,
    created_at: datetime | None = None,
    nan: bool = False,
) -> None:
    """Add a batch whose tracks have a box on every frame; a missing database is made first.

    Args:
        database: The file. Made here it holds no sample data.
        batch_key: Any string; a key that exists is an `sqlite3.IntegrityError`.
        tracks: How many tracks with boxes, `patch_000` and on.
        frames: How many frames, and so boxes a track.
        completed_tracks: How many of the tracks, the first ones, have every box accepted; the
            others have every box unreviewed.
        empty_tracks: How many tracks without boxes come after them.
        embedding_length: Floats a box.
        created_at: In UTC; without one, a minute after the newest batch.
        nan: Put a NaN into one embedding, so that every export of that track answers 500.
    """
    create(database)
    with connect(database) as connection, transaction(connection, "IMMEDIATE"):
        if created_at is None:
            newest = connection.execute("SELECT max(created_at) FROM batch").fetchone()[0]
            created_at = FIRST_INGEST
            if newest is not None:
                created_at = datetime.fromisoformat(newest) + timedelta(minutes=1)
        batch = BatchWriter(connection, batch_key, frames, created_at.replace(tzinfo=UTC))
        for number in range(tracks):
            status = ACCEPTED if number < completed_tracks else UNREVIEWED
            batch.add_track(
                CATEGORIES[number % len(CATEGORIES)],
                [(frame, status) for frame in range(frames)],
                embedding_length=embedding_length,
                nan=nan and number == 0,
            )
        for number in range(empty_tracks):
            batch.add_track(CATEGORIES[number % len(CATEGORIES)], [])


def _insert_sample(connection: sqlite3.Connection) -> None:
    for number, plan in enumerate(SAMPLE):
        created_at = FIRST_INGEST + timedelta(days=number, minutes=7 * number)
        batch = BatchWriter(connection, plan.batch_key, plan.frames, created_at)
        for seen, review in plan.tracks:
            frames = batch.visible_frames()
            batch.add_track(
                seen.removesuffix("!"),
                list(zip(frames, _statuses(batch.rng, review, len(frames)), strict=True)),
                reviewed_at=created_at + timedelta(hours=2, minutes=batch.rng.randrange(600)),
                manually_completed=review == "manual",
                person_down=seen.endswith("!"),
                primary_class=seen if review == "manual" and seen in CATEGORIES else None,
            )
    # As the real thing has them: a malformed box.
    connection.execute(
        """UPDATE annotation SET x = 0, y = 0, width = 0, height = 0, area = NULL,
            confidence = NULL
        WHERE id = (SELECT max(annotation.id) FROM annotation JOIN track ON track.id = track_id
            JOIN batch ON batch.id = batch_id WHERE batch_key = 'lobby_cam12')"""
    )


def _statuses(rng: random.Random, review: str, boxes: int) -> list[str]:
    """Return the status of each box of a track whose review is this far."""
    if review == "reviewed":
        return [REJECTED if rng.random() < 0.06 else ACCEPTED for _ in range(boxes)]
    done = boxes * rng.randrange(30, 70) // 100
    first, rest = {
        "rejected": (REJECTED, REJECTED),
        "partial": (ACCEPTED, UNREVIEWED),
        "manual": (ACCEPTED, UNREVIEWED),
        "abandoned": (ACCEPTED, ABANDONED),
        "untouched": (UNREVIEWED, UNREVIEWED),
    }[review]
    return [first] * done + [rest] * (boxes - done)
