"""Convert an export to a Parquet file with one row an annotation.

The script of the rule `convert_table`. Every annotation is in it, as it is: `status` tells which
were rejected, and a box that is none is null.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from export_contents import (
    Annotation,
    Contents,
    Image,
    Track,
    class_reader,
    dropped_text,
    frame_number,
    is_number,
    read_contents,
)
from export_records import job_log, require_record, staging_of
from export_via_api import replacing
from payload_checks import is_box

if TYPE_CHECKING:
    from snakemake.script import snakemake

ROWS_AT_ONCE = 20_000  # a row group
FLOATS_AT_ONCE = 2_000_000  # of embeddings; each takes 32 bytes until it is written
TIME = pa.timestamp("us", tz="UTC")
COLUMNS: dict[str, pa.DataType] = {
    "batch_key": pa.string(),
    "annotation_id": pa.string(),
    # The frame
    "image_id": pa.string(),
    "file_name": pa.string(),
    "gcs_uri": pa.string(),
    "frame_index": pa.int64(),
    "frame_version": pa.int64(),
    "image_width": pa.float64(),
    "image_height": pa.float64(),
    # The track
    "track_tag": pa.string(),
    "class": pa.string(),
    "primary_class": pa.string(),
    "track_status": pa.string(),
    "track_person_down": pa.bool_(),
    "pending_annotations": pa.int64(),
    "manually_completed": pa.bool_(),
    # The box, in pixels
    "x": pa.float64(),
    "y": pa.float64(),
    "width": pa.float64(),
    "height": pa.float64(),
    "area": pa.float64(),
    "category_name": pa.string(),
    "confidence": pa.float64(),
    "person_down": pa.bool_(),
    "blur_decision": pa.string(),
    "has_mask": pa.bool_(),
    # The review
    "status": pa.string(),
    "judgment_status": pa.string(),
    "judged_at": TIME,
    "created_at": TIME,
    "updated_at": TIME,
}
REVIEWER_COLUMNS: dict[str, pa.DataType] = {
    "judgment_user": pa.string(),
    "judgment_note": pa.string(),
}


class Row(Annotation, gc=False):
    """An annotation with all that its row tells."""

    has_mask: Any = None
    created_at: Any = None
    updated_at: Any = None
    latest_judgment: msgspec.Raw = msgspec.Raw(b"null")
    # Stays in the file until its rows are written.
    embedding_swin: msgspec.Raw = msgspec.Raw(b"null")


class Rows(Contents):
    """The parts of an export."""

    annotations: list[Row]  # type: ignore[assignment]


def schema_of(options: Mapping[str, Any]) -> pa.Schema:
    """Return the columns: those of every batch, and what `reviewers` and `embeddings` add."""
    columns = dict(COLUMNS)
    if options["reviewers"]:
        columns |= REVIEWER_COLUMNS
    if length := options["embeddings"]:
        columns["embedding"] = pa.list_(pa.float32(), length)
    return pa.schema(list(columns.items()))


def embedding(row: Row) -> list[float] | None:
    """Return an annotation's embedding; None where it has none."""
    try:
        return msgspec.json.decode(row.embedding_swin, type=list[float] | None)
    except msgspec.DecodeError:
        return None


def rows_of(
    contents: Rows, schema: pa.Schema, options: Mapping[str, Any], dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Return the rows, by frame and track; count values that are not what they should be."""
    images = {image.id: image for image in contents.images}
    tracks = {track.track_tag: track for track in contents.tracks}
    class_of = class_reader(contents.tracks, options["class_from"])

    def order(row: Row) -> tuple[int, str, str]:
        return frame_number(images[row.image_id]), str(row.image_id), str(row.track_tag)

    length = options["embeddings"]
    for row in sorted(contents.annotations, key=order):
        values: dict[str, Any] = {
            "batch_key": contents.info.batch_key,
            "class": class_of(row) or None,
        }
        values |= _of_annotation(row) | _of_image(images[row.image_id])
        values |= _of_track(tracks[row.track_tag])
        if length:
            floats = embedding(row)
            values["embedding"] = floats if floats and len(floats) == length else None
            dropped["embeddings of another length"] += bool(floats) and not values["embedding"]
        yield {field.name: _fit(values.get(field.name), field, dropped) for field in schema}


def _of_annotation(row: Row) -> dict[str, Any]:
    try:
        judgment = msgspec.json.decode(row.latest_judgment) if row.latest_judgment else None
    except msgspec.DecodeError:
        judgment = None
    judgment = judgment if isinstance(judgment, dict) else {}
    x, y, width, height = row.bbox if is_box(row.bbox) else (None, None, None, None)
    return {
        "annotation_id": _id(row.annotation_id if row.annotation_id is not None else row.id),
        "track_tag": _id(row.track_tag),
        **{"x": x, "y": y, "width": width, "height": height, "area": row.area},
        "category_name": row.category_name,
        "confidence": row.confidence,
        "person_down": row.person_down,
        "blur_decision": row.blur_decision,
        "has_mask": row.has_mask,
        "status": row.status,
        "judgment_status": judgment.get("status"),
        "judged_at": judgment.get("created_at"),
        "judgment_user": judgment.get("user"),
        "judgment_note": judgment.get("note"),
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _of_image(image: Image) -> dict[str, Any]:
    return {
        "image_id": _id(image.id),
        "file_name": image.file_name,
        "gcs_uri": image.gcs_uri,
        "frame_index": image.frame_index,
        "frame_version": image.frame_version,
        "image_width": image.width,
        "image_height": image.height,
    }


def _of_track(track: Track) -> dict[str, Any]:
    return {
        "primary_class": track.primary_class,
        "track_status": track.status,
        "track_person_down": track.person_down,
        "pending_annotations": track.pending_annotations,
        "manually_completed": track.manually_completed,
    }


def _id(value: object) -> str | None:
    return None if value is None else str(value)


def _fit(value: Any, field: pa.Field, dropped: Counter[str]) -> Any:
    """Return a value of the column's type; None, and count it, where it is not of that type."""
    kind = field.type
    if value is None or pa.types.is_fixed_size_list(kind):
        return value
    if pa.types.is_string(kind):
        fits = isinstance(value, str)
    elif pa.types.is_boolean(kind):
        fits = isinstance(value, bool)
    elif pa.types.is_timestamp(kind):
        value = _time(value)
        fits = value is not None
    elif pa.types.is_integer(kind):
        fits = type(value) is int and abs(value) < 1 << 63
    else:
        fits = is_number(value)
    if not fits:
        dropped[f"values of {field.name} of another type"] += 1
        return None
    return value


def _time(value: object) -> datetime | None:
    """Return a time as the backend gives it: ISO 8601, UTC where it names no zone."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)


def write_table(
    rows: Iterator[dict[str, Any]], schema: pa.Schema, path: Path, at_once: int
) -> None:
    """Write rows to a Parquet file, some at a time."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, at_once)):
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))


def main() -> None:
    """Run the rule's job."""
    source, target = Path(snakemake.input.tracks), Path(snakemake.output[0])
    name = snakemake.wildcards.export
    with job_log(Path(snakemake.log[0]), f"tables/{name}", Path(snakemake.params.resources)) as say:
        options = require_record(Path(snakemake.input.options))
        contents = read_contents(source, Rows)
        dropped: Counter[str] = Counter()
        schema = schema_of(options)
        at_once = min(ROWS_AT_ONCE, FLOATS_AT_ONCE // (options["embeddings"] or 1))
        with replacing(target, staging_of(target.parents[1])) as part:
            rows = rows_of(contents, schema, options, dropped)
            write_table(rows, schema, part, max(at_once, 1))
        say(f"{target}: {len(contents.annotations):,} rows; {dropped_text(+dropped)}")


if __name__ == "__main__":
    main()
