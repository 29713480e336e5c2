"""The demo backend's SQLite file: its schema, its connections and its errors.

All times are UTC, written as the backend's API writes them: ISO 8601 without an offset.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

UNREVIEWED = "unreviewed"
ACCEPTED = "accepted"
REJECTED = "rejected"
ABANDONED = "abandoned"

BUSY_TIMEOUT_SECONDS = 30.0
APPLICATION_ID = 0x414C4231  # "ALB1": tells a demo database from any other SQLite file.

SCHEMA = (
    """CREATE TABLE batch (
        id INTEGER PRIMARY KEY,
        batch_key TEXT NOT NULL UNIQUE,
        gcs_prefix TEXT NOT NULL,
        created_at TEXT NOT NULL
    )""",
    """CREATE TABLE image (
        id INTEGER PRIMARY KEY,
        batch_id INTEGER NOT NULL REFERENCES batch (id),
        object_id TEXT NOT NULL,
        file_name TEXT NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        frame_index INTEGER NOT NULL,
        frame_version INTEGER NOT NULL DEFAULT 0,
        UNIQUE (batch_id, frame_index)
    )""",
    """CREATE TABLE track (
        id INTEGER PRIMARY KEY,
        batch_id INTEGER NOT NULL REFERENCES batch (id),
        track_tag TEXT NOT NULL,
        primary_class TEXT,
        person_down INTEGER NOT NULL DEFAULT 0,
        manually_completed INTEGER NOT NULL DEFAULT 0,
        UNIQUE (batch_id, track_tag)
    )""",
    """CREATE TABLE annotation (
        id INTEGER PRIMARY KEY,
        track_id INTEGER NOT NULL REFERENCES track (id),
        image_id INTEGER NOT NULL REFERENCES image (id),
        object_id TEXT NOT NULL,
        category_id INTEGER NOT NULL,
        category_name TEXT NOT NULL,
        x NOT NULL,  -- untyped, so that a malformed box stays [0, 0, 0, 0] in integers
        y NOT NULL,
        width NOT NULL,
        height NOT NULL,
        area REAL,
        status TEXT NOT NULL,
        status_before_abandon TEXT,
        confidence REAL,
        blur_decision TEXT NOT NULL,
        blur_value REAL NOT NULL,
        embedding BLOB NOT NULL,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        judged_by TEXT,
        judgment_note TEXT,
        judged_at TEXT
    )""",
    "CREATE INDEX annotation_by_track ON annotation (track_id)",
)


class DemoError(Exception):
    """Whatever the demo backend cannot do; its text is one line for a reader."""


class NotADatabaseError(DemoError):
    """The file is missing or is not a database of the demo backend."""


class BatchNotFoundError(DemoError):
    """No batch has this key."""


class TrackNotFoundError(DemoError):
    """The batch has no track with this tag."""


class NothingToExportError(DemoError):
    """The batch exists, but no track of it passes the status filter."""


@contextmanager
def connect(database: Path) -> Iterator[sqlite3.Connection]:
    """Open an existing demo database for one request or one edit, and close it afterwards.

    Raises:
        NotADatabaseError: The file is missing, or it is something else.
    """
    if not database.is_file():
        raise NotADatabaseError(f"there is no demo database at {database}")
    with _open(database, mode="rw") as connection:
        if not _is_ours(connection, database):
            raise NotADatabaseError(f"{database} is not a database of the demo backend")
        connection.execute("PRAGMA synchronous = NORMAL")
        yield connection


def create(database: Path, fill: Callable[[sqlite3.Connection], None] | None = None) -> None:
    """Make a demo database, unless the file is one already.

    Schema and data are one transaction: a database exists whole or not at all, also when two
    processes create it at once.

    Args:
        database: The file; missing parent folders are made.
        fill: Puts the first data in.

    Raises:
        NotADatabaseError: The file exists and is something else.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    with _open(database, mode="rwc") as connection:
        if _is_ours(connection, database):
            return
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise NotADatabaseError(f"{database} is an SQLite database of something else")
        with transaction(connection, "IMMEDIATE"):
            if not _is_ours(connection, database):
                for statement in SCHEMA:
                    connection.execute(statement)
                if fill is not None:
                    fill(connection)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        # Readers then never wait for an edit, nor an edit for readers.
        connection.execute("PRAGMA journal_mode = WAL")


@contextmanager
def transaction(
    connection: sqlite3.Connection, kind: Literal["DEFERRED", "IMMEDIATE"]
) -> Iterator[None]:
    """Run a block as one transaction: DEFERRED to read one state, IMMEDIATE to write."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


@contextmanager
def _open(database: Path, mode: str) -> Iterator[sqlite3.Connection]:
    try:
        connection = sqlite3.connect(
            f"{database.resolve().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None,
        )
    except sqlite3.OperationalError as error:
        raise NotADatabaseError(f"cannot open {database}: {error}") from error
    try:
        connection.row_factory = sqlite3.Row
        yield connection
    finally:
        connection.close()


def _is_ours(connection: sqlite3.Connection, database: Path) -> bool:
    try:
        row = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise NotADatabaseError(f"{database} is not an SQLite database") from error
    return bool(row[0] == APPLICATION_ID)


def timestamp(moment: datetime) -> str:
    """Write a time as the backend's API does: milliseconds, no offset, zeros left out."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=None).isoformat()


def object_ids(moment: datetime, machine: int) -> Iterator[str]:
    """Yield ObjectId strings: 4 bytes of UTC seconds, 5 of the machine, 3 of a counter."""
    prefix = f"{int(moment.timestamp()):08x}{machine:010x}"
    return (f"{prefix}{number:06x}" for number in itertools.count(1))
