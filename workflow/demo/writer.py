"""Writes whole batches with made-up boxes; the same key always makes the same batch.

Boxes glide along a curve inside the image while their size changes. Only arithmetic that is
exact everywhere makes the numbers.
"""

import random
import sqlite3
from array import array
from collections.abc import Iterator
from datetime import datetime

from .database import ABANDONED, ACCEPTED, UNREVIEWED, object_ids, timestamp

SEED = 20251120
WIDTH, HEIGHT = 1920, 1080  # pixels
EMBEDDING_LENGTH = 16
CATEGORIES = ("gun", "knife", "tablet", "phone", "tattoo", "person", "bag")
REVIEWERS = ("mira", "jonas", "reviewer")

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class BatchWriter:
    """Writes one batch, its images first; `rng` and the ObjectIds hang on the key alone."""

    def __init__(
        self, connection: sqlite3.Connection, batch_key: str, frames: int, created_at: datetime
    ) -> None:
        """Write the batch and its images; the tracks follow by `add_track`."""
        self.connection = connection
        self.created_at = created_at
        self.frames = frames
        self.rng = random.Random(f"{SEED}:{batch_key}")  # noqa: S311 made-up data, no secret
        self.ids = object_ids(created_at, self.rng.getrandbits(40))
        self.track_tags = (f"patch_{number:03d}" for number in range(1_000_000))
        self.batch_id = self._insert(
            "batch",
            batch_key=batch_key,
            gcs_prefix=f"gs://dataset/media/{batch_key}",
            created_at=timestamp(created_at),
        )
        self.image_ids = [
            self._insert(
                "image",
                batch_id=self.batch_id,
                object_id=next(self.ids),
                file_name=f"f{frame:05d}.jpg",
                width=WIDTH,
                height=HEIGHT,
                frame_index=frame,
            )
            for frame in range(frames)
        ]

    def visible_frames(self) -> list[int]:
        """Return the frames of a track: a run of them, now and then interrupted."""
        first = self.rng.randrange(self.frames // 3)
        last = self.rng.randrange(self.frames * 2 // 3, self.frames)
        gap = self.rng.randrange(first + 2, last)
        gap_end = gap + self.rng.choice((0, 0, 1, 2, 4))
        return [frame for frame in range(first, last + 1) if not gap <= frame < gap_end]

    def add_track(
        self,
        category: str,
        boxes: list[tuple[int, str]],
        *,
        reviewed_at: datetime | None = None,
        manually_completed: bool = False,
        person_down: bool = False,
        primary_class: str | None = None,
        embedding_length: int = EMBEDDING_LENGTH,
        nan: bool = False,
    ) -> None:
        """Add a track with its boxes: (frame index, status) each.

        Boxes with a status are judged by one reviewer, unless there is no `reviewed_at`.
        """
        track_id = self._insert(
            "track",
            batch_id=self.batch_id,
            track_tag=next(self.track_tags),
            primary_class=primary_class,
            person_down=person_down,
            manually_completed=manually_completed,
        )
        reviewer = self.rng.choice(REVIEWERS)
        places = _path(self.rng, self.frames)
        for (frame, status), place in zip(boxes, (places[f] for f, _ in boxes), strict=True):
            judged = reviewed_at is not None and status != UNREVIEWED
            when = reviewed_at if reviewed_at is not None and judged else self.created_at
            embedding = [self.rng.uniform(-2, 2) for _ in range(embedding_length)]
            if nan:
                embedding[0], nan = float("nan"), False
            x, y, width, height = place
            blur = self.rng.uniform(4, 40)
            self._insert(
                "annotation",
                track_id=track_id,
                image_id=self.image_ids[frame],
                object_id=next(self.ids),
                category_id=CATEGORIES.index(category) + 1,
                category_name=category,
                x=x,
                y=y,
                width=width,
                height=height,
                area=round(width * height, 1),
                status=status,
                status_before_abandon=UNREVIEWED if status == ABANDONED else None,
                confidence=self.rng.uniform(0.35, 0.99),
                blur_decision="sharp" if blur > 9 else "blurred",
                blur_value=round(blur, 1),
                embedding=array("d", embedding).tobytes(),
                created_at=timestamp(self.created_at),
                updated_at=timestamp(when),
                judged_by=reviewer if judged else None,
                judgment_note={ACCEPTED: "ok", ABANDONED: "drift"}.get(status) if judged else None,
                judged_at=timestamp(when) if judged else None,
            )
            if judged:
                self.connection.execute(
                    "UPDATE image SET frame_version = frame_version + 1 WHERE id = ?",
                    (self.image_ids[frame],),
                )

    def _insert(self, table: str, **values: str | float | bytes | None) -> int:
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        statement = f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 names of ours
        cursor = self.connection.execute(statement, tuple(values.values()))
        return int(cursor.lastrowid or 0)


def _path(rng: random.Random, frames: int) -> list[Box]:
    """Return a box for each frame along a quadratic Bézier curve between three boxes.

    The three lie inside the image, and so does every box on the way.
    """
    start, middle, end = _box(rng), _box(rng), _box(rng)
    return list(_curve(start, middle, end, frames))


def _curve(start: Box, middle: Box, end: Box, frames: int) -> Iterator[Box]:
    for frame in range(frames):
        t = frame / max(frames - 1, 1)
        weights = ((1 - t) * (1 - t), 2 * t * (1 - t), t * t)
        x, y, width, height = (
            weights[0] * a + weights[1] * b + weights[2] * c
            for a, b, c in zip(start, middle, end, strict=True)
        )
        yield x, y, width, height


def _box(rng: random.Random) -> Box:
    width, height = rng.uniform(40, 240), rng.uniform(40, 320)
    margin = 4  # pixels
    x = rng.uniform(margin, WIDTH - margin - width)
    y = rng.uniform(margin, HEIGHT - margin - height)
    return x, y, width, height
