"""Convert an export to COCO, with its extension for video.

The script of the rule `convert_coco`. The format: https://cocodataset.org/#format-data; `videos`,
`video_id`, `frame_id` and `instance_id` are those of the datasets that extend it (TAO, YouTube-VIS,
MMTracking's CocoVID).
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
from export_contents import (
    Contents,
    JudgedContents,
    Kept,
    dropped_text,
    is_number,
    keep,
    read_contents,
)
from export_records import job_log, require_record, staging_of
from export_via_api import replacing

if TYPE_CHECKING:
    from snakemake.script import snakemake

encode = msgspec.json.Encoder().encode
PARTS = ("videos", "categories", "images", "annotations")


@dataclasses.dataclass
class Coco:
    """A COCO data set; its parts may be made while they are written."""

    info: dict[str, Any]
    videos: Iterable[Any]
    categories: Iterable[Any]
    images: Iterable[Any]
    annotations: Iterable[Any]


def coco_of(contents: Contents, kept: Kept) -> Coco:
    """Return a batch as COCO: one video, integer ids from 1, boxes in pixels."""
    batch = contents.info.batch_key
    info = {
        "description": f"Tracks of batch {batch}",
        "batch_key": batch,
        "exported_at": contents.info.exported_at,
        "dropped": dict(sorted(kept.dropped.items())),
    }
    sizes = Counter((int(image.width), int(image.height)) for image in kept.images)
    width, height = sizes.most_common(1)[0][0] if sizes else (0, 0)
    return Coco(
        info=info,
        videos=[
            {"id": 1, "name": batch, "width": width, "height": height, "length": len(kept.images)}
        ],
        categories=categories_of(kept.classes),
        images=(
            {
                "id": place + 1,
                "file_name": str(image.file_name),
                "width": int(image.width),
                "height": int(image.height),
                "video_id": 1,
                "frame_id": place,
                "frame_index": image.frame_index,
                "source_id": image.id,
                "gcs_uri": image.gcs_uri,
            }
            for place, image in enumerate(kept.images)
        ),
        annotations=_annotations(kept),
    )


def _annotations(kept: Kept) -> Iterable[dict[str, Any]]:
    for number, (annotation, place, name) in enumerate(kept.boxes, 1):
        box, area = annotation.bbox, annotation.area
        track = kept.tracks[annotation.track_tag]
        entry = {
            "id": number,
            "image_id": place + 1,
            "video_id": 1,
            "category_id": kept.classes[name],
            "track_id": track,
            "instance_id": track,
            "bbox": box,
            "area": area if is_number(area) and area > 0 else box[2] * box[3],
            "iscrowd": 0,
            "segmentation": [],
            "source_id": annotation.annotation_id or annotation.id,
            "track_tag": annotation.track_tag,
            "status": annotation.status,
            "confidence": annotation.confidence,
            "person_down": annotation.person_down,
            "blur_decision": annotation.blur_decision,
        }
        if judgment := getattr(annotation, "latest_judgment", None):
            entry["latest_judgment"] = judgment
        yield entry


def categories_of(classes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return classes as COCO's categories."""
    return [{"id": n, "name": name, "supercategory": ""} for name, n in classes.items()]


class CocoWriter:
    """Writes a data set, an entry a line, without holding it."""

    def __init__(self, file: BinaryIO, info: Mapping[str, Any]) -> None:
        """Write the beginning."""
        self._file = file
        file.write(b'{"info":' + encode(info) + b',\n"licenses":[]')

    def part(self, name: str) -> None:
        """Begin a part."""
        self._file.write(b',\n"' + name.encode() + b'":[')
        self._separator = b"\n"

    def entry(self, entry: bytes) -> None:
        """Add an entry, in JSON, to the part."""
        self._file.write(self._separator + entry)
        self._separator = b",\n"

    def end_part(self) -> None:
        """End the part."""
        self._file.write(b"]")

    def end(self) -> None:
        """Write the end."""
        self._file.write(b"}\n")


def write_coco(coco: Coco, file: BinaryIO) -> None:
    """Write a data set, holding one entry at a time."""
    writer = CocoWriter(file, coco.info)
    for part in PARTS:
        writer.part(part)
        for entry in getattr(coco, part):
            writer.entry(encode(entry))
        writer.end_part()
    writer.end()


def main() -> None:
    """Run the rule's job."""
    source, target = Path(snakemake.input.tracks), Path(snakemake.output[0])
    name = snakemake.wildcards.export
    with job_log(Path(snakemake.log[0]), f"coco/{name}", Path(snakemake.params.resources)) as say:
        options = require_record(Path(snakemake.input.options))
        contents = read_contents(source, JudgedContents if options["reviewers"] else Contents)
        kept = keep(contents, options)
        with replacing(target, staging_of(target.parents[1])) as part, part.open("wb") as file:
            write_coco(coco_of(contents, kept), file)
        say(
            f"{target}: {len(kept.boxes):,} boxes, {len(kept.images):,} images, "
            f"{len(kept.tracks):,} tracks; {dropped_text(kept.dropped)}"
        )


if __name__ == "__main__":
    main()
