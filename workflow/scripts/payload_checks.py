"""Check a downloaded export without holding the payload as Python objects.

msgspec decodes the memory-mapped file into the few fields below and skips all others (the
embeddings above all), so memory use grows with the number of annotations, not with their size.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import msgspec
from export_via_api import ApiError, TruncatedBodyError, check_whole, not_json, show
from payload_statistics import statistics_of

T = TypeVar("T")

NUMBERS = (int, float)
EDGE_TOLERANCE = 1.0  # pixels that a box may reach beyond its image before it is worth a warning


class Info(msgspec.Struct):
    """What the payload says of itself."""

    batch_key: str
    exported_at: str | None = None


class Image(msgspec.Struct, gc=False):
    """A frame; width and height in pixels."""

    id: str | int
    width: float | None = None
    height: float | None = None
    frame_index: Any = None


class Annotation(msgspec.Struct):
    """A box of a track in an image; `bbox` should be [x, y, width, height] in pixels."""

    image_id: str | int
    track_tag: str | int
    id: Any = None
    bbox: Any = None
    category_name: Any = None
    status: Any = None


class Track(msgspec.Struct, gc=False):
    """An exported track."""

    track_tag: str | int
    pending_annotations: int | None = None
    manually_completed: bool | None = None
    primary_class: Any = None
    categories: Any = None


class Payload(msgspec.Struct):
    """The parts of an export that are checked or counted."""

    info: Info
    images: list[Image]
    annotations: list[Annotation]
    tracks: list[Track]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an export holds, and what about it is odd without being wrong."""

    exported_at: str | None = None
    images: int = 0
    annotations: int = 0
    track_tags: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)


_DECODER = msgspec.json.Decoder(Payload)


def decode_payload(path: Path, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode an export's file into the structs of a decoder, which name what is kept of it.

    What is decoded as `msgspec.Raw` stays in the file, and is read when it is looked at.

    Raises:
        TruncatedBodyError: the file ends before its JSON does.
        ApiError: it is not JSON, or not an export.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        if not head.strip():
            raise TruncatedBodyError("the body is empty.")
        if head.lstrip()[:1] not in (b"{", b"["):
            raise not_json(head)
        body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            cause = f"the payload is not the export that the API documents ({error})."
        except msgspec.DecodeError as error:
            check_whole(file)  # a body that was cut short can look malformed, too
            cause = f"the body is malformed JSON ({error})."
        except RecursionError:
            cause = "the body is nested too deeply."
        except MemoryError:
            cause = "to check the body takes more memory than there is."
    raise ApiError(cause)


def check_export(path: Path, batch_key: str, status_filter: str) -> Findings:
    """Check a downloaded export against what was asked for and against itself.

    Raises:
        TruncatedBodyError: the file ends before its JSON does.
        ApiError: the payload is not a sound export of this batch under this filter.
    """
    payload = decode_payload(path, _DECODER)
    if payload.info.batch_key != batch_key:
        raise ApiError(f"the payload is of another batch, {show(payload.info.batch_key)}.")
    if status_filter == "complete":
        _require_complete(payload.tracks)
    images = {image.id: image for image in payload.images}
    tags = {track.track_tag for track in payload.tracks}
    if len(images) != len(payload.images):
        raise ApiError(f"image id {_first_repeated(i.id for i in payload.images)} is there twice.")
    if len(tags) != len(payload.tracks):
        repeated = _first_repeated(track.track_tag for track in payload.tracks)
        raise ApiError(f"track tag {repeated} is there twice.")
    for number, annotation in enumerate(payload.annotations):
        if annotation.image_id not in images:
            missing = f"image_id {show(str(annotation.image_id))}"
        elif annotation.track_tag not in tags:
            missing = f"track_tag {show(str(annotation.track_tag))}"
        else:
            continue
        raise ApiError(f"annotation {number} refers to {missing}, which the payload does not have.")
    return Findings(
        exported_at=payload.info.exported_at,
        images=len(images),
        annotations=len(payload.annotations),
        track_tags=tuple(sorted(str(tag) for tag in tags)),
        warnings=(*_box_warnings(payload.annotations, images), *_track_warnings(payload)),
        statistics=statistics_of(
            payload, [(a.bbox[2], a.bbox[3]) for a in payload.annotations if is_box(a.bbox)]
        ),
    )


def change_warnings(
    track_tags: Sequence[str], expected: Sequence[str] | None, previous_tracks: int | None
) -> list[str]:
    """Compare an export's tracks with the manifest's and with the export before.

    Args:
        track_tags: The tracks of this export.
        expected: The tracks that the manifest lists for it; None when it could not tell.
        previous_tracks: How many tracks the last export had; None when there was none.
    """
    warnings = []
    if expected is not None and (odd := set(track_tags) ^ set(expected)):
        extra = len(set(track_tags) - set(expected))
        warnings.append(
            f"the tracks differ from the manifest's: {extra} more, {len(odd) - extra} fewer "
            f"(for example {show(min(odd))}); an edit came in between, or the listing is wrong"
        )
    if previous_tracks is not None and 2 * len(track_tags) < previous_tracks:
        warnings.append(f"{len(track_tags)} tracks, where the last export had {previous_tracks}")
    return warnings


def _require_complete(tracks: Iterable[Track]) -> None:
    for track in tracks:
        if track.pending_annotations and not track.manually_completed:
            raise ApiError(
                f"track {show(str(track.track_tag))} has {track.pending_annotations} pending "
                "annotations, which an export of completed tracks cannot hold."
            )


def _first_repeated(values: Iterable[str | int]) -> str:
    seen: set[str | int] = set()
    for value in values:
        if value in seen:
            return show(str(value))
        seen.add(value)
    raise AssertionError("called with something repeated")


def _box_warnings(annotations: Sequence[Annotation], images: dict[str | int, Image]) -> list[str]:
    malformed, no_area, outside = [], [], []
    for number, annotation in enumerate(annotations):
        box = annotation.bbox
        if not is_box(box):
            malformed.append(number)
            continue
        x, y, width, height = box
        if width <= 0 or height <= 0:
            no_area.append(number)
        image = images[annotation.image_id]
        if (
            min(x, y) < -EDGE_TOLERANCE
            or (image.width is not None and x + width > image.width + EDGE_TOLERANCE)
            or (image.height is not None and y + height > image.height + EDGE_TOLERANCE)
        ):
            outside.append(number)
    return [
        f"{len(found)} {what} (first: annotation {found[0]})"
        for found, what in (
            (malformed, "malformed boxes"),
            (no_area, "boxes without area"),
            (outside, "boxes that reach outside their image"),
        )
        if found
    ]


def is_box(box: object) -> TypeGuard[list[float]]:
    """Return whether this is [x, y, width, height], all finite numbers."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    x, y, width, height = box  # spelled out: it is asked of every annotation
    return (
        type(x) in NUMBERS
        and type(y) in NUMBERS
        and type(width) in NUMBERS
        and type(height) in NUMBERS
        and math.isfinite(x)
        and math.isfinite(y)
        and math.isfinite(width)
        and math.isfinite(height)
    )


def _track_warnings(payload: Payload) -> list[str]:
    warnings = []
    kinds = sorted({type(annotation.id).__name__ for annotation in payload.annotations})
    if len(kinds) > 1:
        warnings.append(f"annotation ids of mixed types ({', '.join(kinds)})")
    seen: set[tuple[str | int, str | int]] = set()
    twice = 0
    for annotation in payload.annotations:
        place = (annotation.image_id, annotation.track_tag)
        twice += place in seen
        seen.add(place)
    if twice:
        warnings.append(f"{twice} times the same track twice in one image")
    used = {annotation.track_tag for annotation in payload.annotations}
    if bare := [track for track in payload.tracks if track.track_tag not in used]:
        example = show(str(bare[0].track_tag))
        warnings.append(f"{len(bare)} tracks without annotations (first: {example})")
    return warnings
