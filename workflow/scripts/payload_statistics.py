"""What the report page draws of an export, counted while the payload is validated.

The counts are of bounded size however large the payload, so that they fit in its receipt; and they
hold nothing of who reviewed what.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from payload_checks import Payload

MAX_NAMES = 30  # classes, or review decisions, that a receipt names
MAX_NAME_LENGTH = 60  # characters
LARGEST = 1 << 30  # anything larger is counted with it
OTHER = "(other)"
UNKNOWN = "(none)"


def statistics_of(payload: Payload, boxes: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """Count what an export holds.

    Args:
        payload: A sound payload: annotations refer to its images and tracks.
        boxes: Width and height, in pixels, of the boxes that are well formed.

    Returns:
        `tracks_complete`: how many tracks are reviewed or were completed by hand; by name,
        `classes` (tracks) and `reviews` (annotations); and as `{"lower bound": count}` with bounds
        at the powers of two, `annotations_per_track`, `track_lengths` (frames from the first
        annotated to the last, both counted) and `box_sizes` (square root of the area, pixels).
    """
    frames = {image.id: image.frame_index for image in payload.images}
    per_track: Counter[str | int] = Counter()
    categories: defaultdict[str | int, Counter[str]] = defaultdict(Counter)
    first: dict[str | int, float] = {}
    last: dict[str | int, float] = {}
    for annotation in payload.annotations:
        tag = annotation.track_tag
        per_track[tag] += 1
        categories[tag][_name(annotation.category_name)] += 1
        frame = frames[annotation.image_id]
        if type(frame) is int:
            first[tag] = min(frame, first.get(tag, frame))
            last[tag] = max(frame, last.get(tag, frame))
    classes: Counter[str] = Counter()
    for track in payload.tracks:
        seen = categories[track.track_tag].most_common(1)
        listed = track.categories if isinstance(track.categories, list) else []
        most = seen[0][0] if seen else _name(min(map(str, listed), default=None))
        classes[_name(track.primary_class or most)] += 1
    return {
        "tracks_complete": sum(
            bool(track.manually_completed) or not track.pending_annotations
            for track in payload.tracks
        ),
        "classes": _bounded(classes),
        "reviews": _bounded(Counter(_name(a.status) for a in payload.annotations)),
        "annotations_per_track": histogram(per_track[t.track_tag] for t in payload.tracks),
        "track_lengths": histogram(last[tag] - first[tag] + 1 for tag in first),
        "box_sizes": histogram(max(w * h, 0.0) ** 0.5 for w, h in boxes),
    }


def histogram(values: Iterable[float]) -> dict[str, int]:
    """Count values by the largest power of two that they reach; below 1 by 0."""
    counts: Counter[int] = Counter()
    for value in values:
        whole = int(min(value, LARGEST))
        counts[1 << whole.bit_length() - 1 if whole else 0] += 1
    return {str(bound): counts[bound] for bound in sorted(counts)}


def merged(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Add up the counts of several exports."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _name(value: object) -> str:
    return str(value)[:MAX_NAME_LENGTH] if value not in (None, "") else UNKNOWN


def _bounded(counts: Counter[str]) -> dict[str, int]:
    """Return the counts, largest first, the small ones of too many added up."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ranked[:MAX_NAMES])
    if rest := sum(count for _, count in ranked[MAX_NAMES:]):
        kept[OTHER] = kept.get(OTHER, 0) + rest
    return kept
