"""What conversions read of an export, and which of its boxes they keep.

Only the fields below are decoded (see payload_checks): neither the embeddings nor the reviewers'
names, unless a struct asks for them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from export_via_api import ApiError, ExportError
from payload_checks import decode_payload, is_box

T = TypeVar("T")
NO_FRAME = 1 << 62  # sorts images whose frame is not known behind all others


class Image(msgspec.Struct, gc=False):
    """A frame; width and height in pixels."""

    id: str | int
    file_name: Any = None
    width: Any = None
    height: Any = None
    frame_index: Any = None
    frame_version: Any = None
    gcs_uri: Any = None


class Annotation(msgspec.Struct, gc=False):
    """A box of a track in an image; `bbox` should be [x, y, width, height] in pixels."""

    image_id: str | int
    track_tag: str | int
    id: Any = None
    annotation_id: Any = None
    bbox: Any = None
    area: Any = None
    category_name: Any = None
    status: Any = None
    confidence: Any = None
    person_down: Any = None
    blur_decision: Any = None


class JudgedAnnotation(Annotation, gc=False):
    """An annotation with what a reviewer said of it; may name the reviewer."""

    latest_judgment: msgspec.Raw = msgspec.Raw()


class Track(msgspec.Struct, gc=False):
    """An exported track."""

    track_tag: str | int
    primary_class: Any = None
    categories: Any = None
    person_down: Any = None
    status: Any = None
    pending_annotations: Any = None
    manually_completed: Any = None


class Info(msgspec.Struct):
    """What the payload says of itself."""

    batch_key: str
    exported_at: Any = None


class Contents(msgspec.Struct):
    """The parts of an export."""

    info: Info
    images: list[Image]
    annotations: list[Annotation]
    tracks: list[Track]
    categories: Any = None


class JudgedContents(Contents):
    """The parts of an export, with the reviewers' judgments."""

    annotations: list[JudgedAnnotation]  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a conversion keeps of an export, in an order that does not change between exports.

    Attributes:
        images: By frame; with a size.
        tracks: The tracks' tags, each with its number, from 1.
        classes: The classes' names, each with its number, from 1.
        boxes: By image and track; each with its image's place in `images`, and its class.
        dropped: How many boxes and images were left out, by the reason.
    """

    images: list[Image]
    tracks: dict[str | int, int]
    classes: dict[str, int]
    boxes: list[tuple[Annotation, int, str]]
    dropped: Counter[str]


def read_contents(path: Path, kind: type[T]) -> T:
    """Decode a published export into a struct of its parts.

    Raises:
        ExportError: the file is not a sound export.
    """
    try:
        return decode_payload(path, msgspec.json.Decoder(kind))
    except ApiError as error:
        raise ExportError(
            f"{path} cannot be converted: {error} Export it again: snakemake --cores 4 repair"
        ) from None


def keep(contents: Contents, options: Mapping[str, Any]) -> Kept:
    """Select and order what a conversion can use.

    Args:
        contents: A sound export: annotations refer to its images and tracks.
        options: `include_rejected`, `class_from` and `classes`, as configured.
    """
    dropped: Counter[str] = Counter()
    images = sorted((image for image in contents.images if has_size(image)), key=_frame_order)
    if less := len(contents.images) - len(images):
        dropped["images without a size"] = less
    place_of = {image.id: place for place, image in enumerate(images)}
    tags = sorted((track.track_tag for track in contents.tracks), key=str)
    tracks = {tag: number for number, tag in enumerate(tags, 1)}
    class_of = class_reader(contents.tracks, options["class_from"])
    boxes = []
    for annotation in contents.annotations:
        name, place = class_of(annotation), place_of.get(annotation.image_id)
        if annotation.status == "rejected" and not options["include_rejected"]:
            dropped["rejected boxes"] += 1
        elif not is_box(annotation.bbox):
            dropped["malformed boxes"] += 1
        elif annotation.bbox[2] <= 0 or annotation.bbox[3] <= 0:
            dropped["boxes without area"] += 1
        elif place is None:
            dropped["boxes in images without a size"] += 1
        elif not name:
            dropped["boxes without a class"] += 1
        else:
            boxes.append((annotation, place, name))
    boxes.sort(key=lambda box: (box[1], tracks[box[0].track_tag], _source_id(box[0])))
    names = {name for _, _, name in boxes} | _category_names(contents.categories)
    return Kept(images, tracks, class_numbers(names, options["classes"]), boxes, dropped)


def class_reader(tracks: Sequence[Track], class_from: str) -> Callable[[Annotation], str]:
    """Return the function that tells an annotation's class; empty where it has none.

    Args:
        tracks: The export's tracks.
        class_from: `track` (its primary class) or `annotation` (its own category); where the one
            has none, the other counts.
    """
    of_track = {track.track_tag: _text(track.primary_class) for track in tracks}

    def from_track(annotation: Annotation) -> str:
        return of_track.get(annotation.track_tag, "") or _text(annotation.category_name)

    def from_annotation(annotation: Annotation) -> str:
        return _text(annotation.category_name) or of_track.get(annotation.track_tag, "")

    return from_track if class_from == "track" else from_annotation


def class_numbers(names: set[str], first: Sequence[str]) -> dict[str, int]:
    """Number classes from 1: those configured in their order, then any others by name."""
    ordered = [*first, *sorted(names - set(first))]
    return {name: number for number, name in enumerate(ordered, 1)}


def has_size(image: Image) -> bool:
    """Return whether an image has a width and a height, in whole pixels above 0."""
    return all(is_number(side) and side >= 1 for side in (image.width, image.height))


def is_number(value: object) -> bool:
    """Return whether this is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def frame_number(image: Image) -> int:
    """Return an image's place among its batch's frames, from 0; `NO_FRAME` if it is not known."""
    frame = image.frame_index
    return frame if type(frame) is int and frame >= 0 else NO_FRAME


def dropped_text(dropped: Mapping[str, int]) -> str:
    """Return what was left out, as a log tells it."""
    counts = ", ".join(f"{count:,} {what}" for what, count in sorted(dropped.items()))
    return f"dropped: {counts or 'nothing'}"


def _frame_order(image: Image) -> tuple[int, str, str]:
    return frame_number(image), str(image.file_name), str(image.id)


def _source_id(annotation: Annotation) -> str:
    return str(annotation.annotation_id or annotation.id)


def _category_names(categories: object) -> set[str]:
    listed = categories if isinstance(categories, list) else []
    names = {_text(entry.get("name")) for entry in listed if isinstance(entry, dict)}
    return names - {""}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
