"""Convert an export to a sequence in the form of MOTChallenge.

The script of the rule `convert_mot`. The format: https://arxiv.org/abs/2003.09003, section 3.3;
`gt/labels.txt` is the class map that CVAT and Datumaro write and read.
"""

import configparser
import csv
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export_contents import (
    NO_FRAME,
    Annotation,
    Contents,
    Kept,
    dropped_text,
    frame_number,
    is_number,
    keep,
    read_contents,
)
from export_records import job_log, require_record, staging_of

if TYPE_CHECKING:
    from snakemake.script import snakemake


def frames_of(kept: Kept) -> list[int]:
    """Return the images' frames, from 1: the backend's, so that gaps stay gaps.

    Where the backend does not tell each image a frame of its own, they are counted instead.
    """
    frames = [frame_number(image) for image in kept.images]
    if NO_FRAME in frames or len(set(frames)) < len(frames):
        return list(range(1, len(frames) + 1))
    return [frame + 1 for frame in frames]


def ground_truth(kept: Kept, frames: list[int]) -> Iterator[tuple[float | int, ...]]:
    """Return the rows of gt.txt: frame, track, box (4), considered, class, visibility.

    A rejected box is not considered. Of a track that is twice in a frame, which the format does not
    allow, one box is kept: not a rejected one if there is another, then the most confident one.
    """
    best: dict[tuple[int, int], tuple[Annotation, str]] = {}
    for annotation, place, name in kept.boxes:
        key = (frames[place], kept.tracks[annotation.track_tag])
        if key in best:
            kept.dropped["boxes of a track that is twice in a frame"] += 1
        if key not in best or _rank(annotation) > _rank(best[key][0]):
            best[key] = annotation, name
    for (frame, track), (annotation, name) in sorted(best.items(), key=lambda item: item[0]):
        considered = int(annotation.status != "rejected")
        yield (frame, track, *annotation.bbox, considered, kept.classes[name], 1)


def _rank(annotation: Annotation) -> tuple[bool, float]:
    confidence = annotation.confidence
    return annotation.status != "rejected", confidence if is_number(confidence) else -1.0


def write_sequence(folder: Path, name: str, kept: Kept, options: Mapping[str, Any]) -> int:
    """Write a sequence's files; return how many boxes it has.

    Args:
        folder: Where to; it must not exist.
        name: The sequence's name: that of its folder, as readers expect it.
        kept: What to write.
        options: `frame_rate`, in frames a second, which the backend does not tell.
    """
    frames = frames_of(kept)
    (folder / "gt").mkdir(parents=True)
    with (folder / "gt/gt.txt").open("w", newline="") as file:
        rows = list(ground_truth(kept, frames))
        csv.writer(file, lineterminator="\n").writerows(rows)
    (folder / "gt/labels.txt").write_text("".join(f"{name}\n" for name in kept.classes))
    with (folder / "frames.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("frame", "source_id", "file_name", "gcs_uri"))
        for frame, image in zip(frames, kept.images, strict=True):
            table.writerow((frame, image.id, image.file_name, image.gcs_uri))
    info = configparser.ConfigParser(interpolation=None)
    info.optionxform = str  # type: ignore[assignment,method-assign]
    first = kept.images[0] if kept.images else None
    info["Sequence"] = {
        "name": name,
        "imDir": "img1",
        "frameRate": f"{options['frame_rate']:g}",
        "seqLength": str(max(frames, default=0)),
        "imWidth": str(int(first.width) if first else 0),
        "imHeight": str(int(first.height) if first else 0),
        "imExt": (Path(str(first.file_name)).suffix if first else "") or ".jpg",
    }
    with (folder / "seqinfo.ini").open("w") as file:
        info.write(file, space_around_delimiters=False)
    return len(rows)


def main() -> None:
    """Run the rule's job."""
    source, target = Path(snakemake.input.tracks), Path(snakemake.output[0])
    name = snakemake.wildcards.export
    with job_log(Path(snakemake.log[0]), f"mot/{name}", Path(snakemake.params.resources)) as say:
        options = require_record(Path(snakemake.input.options))
        kept = keep(read_contents(source, Contents), options)
        part = staging_of(target.parents[1]) / f"{name}.mot"
        for folder in (part, target):  # what a killed run left
            shutil.rmtree(folder, ignore_errors=True)
        boxes = write_sequence(part, name, kept, options)
        part.rename(target)
        say(
            f"{target}: {boxes:,} boxes, {len(kept.images):,} frames, {len(kept.tracks):,} tracks; "
            f"{dropped_text(kept.dropped)}"
        )


if __name__ == "__main__":
    main()
