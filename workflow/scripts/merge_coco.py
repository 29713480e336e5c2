"""Merge the COCO files of all selected batches into one data set, and split it by batch.

The script of the rule `merge_coco`. Each batch is a video. The batches are read one after another,
one part of one batch at a time: memory is bounded by the largest of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from convert_coco import PARTS, CocoWriter, categories_of, encode
from dataset_splits import SPLITS, batch_name_of, split_of
from export_contents import class_numbers
from export_records import job_log, require_record, staging_of
from export_via_api import replacing

if TYPE_CHECKING:
    from snakemake.script import snakemake

Entries = Iterator[tuple[str, dict[str, Any]]]


class Merger:
    """Renumbers the entries of batches, whose ids each begin with 1."""

    def __init__(
        self, batches: Sequence[Path], splits: Sequence[str], first: Sequence[str]
    ) -> None:
        """Begin with the classes.

        Args:
            batches: The batches' COCO files.
            splits: The part of the data set that each belongs to.
            first: The classes that come first, as configured.
        """
        self._batches, self._splits = batches, splits
        categories = [read_part(path, "categories") for path in batches]
        names = {entry["name"] for listed in categories for entry in listed}
        self.classes = class_numbers(names, first)
        self._class_of = [
            {entry["id"]: self.classes[entry["name"]] for entry in listed} for listed in categories
        ]
        self._first_image: list[int] = []

    def entries(self, part: str) -> Entries:
        """Return a part's entries, each with its split; `images` before `annotations`."""
        return {"videos": self._videos, "images": self._images, "annotations": self._annotations}[
            part
        ]()

    def _videos(self) -> Entries:
        for video, (path, split) in enumerate(zip(self._batches, self._splits, strict=True), 1):
            for entry in read_part(path, "videos"):
                yield split, entry | {"id": video, "split": split}

    def _images(self) -> Entries:
        count = 0
        for video, (path, split) in enumerate(zip(self._batches, self._splits, strict=True), 1):
            self._first_image.append(count)
            images = read_part(path, "images")
            for entry in images:
                # Batches name their files alike.
                name = f"{batch_name_of(path.stem)}/{entry['file_name']}"
                changed = {"id": count + entry["id"], "file_name": name, "video_id": video}
                yield split, entry | changed
            count += len(images)

    def _annotations(self) -> Entries:
        number = tracks = 0
        for place, (path, split) in enumerate(zip(self._batches, self._splits, strict=True)):
            last = tracks
            for entry in read_part(path, "annotations"):
                number += 1
                track = tracks + entry["track_id"]
                last = max(last, track)
                changed = {
                    "id": number,
                    "image_id": self._first_image[place] + entry["image_id"],
                    "video_id": place + 1,
                    "category_id": self._class_of[place][entry["category_id"]],
                    "track_id": track,
                    "instance_id": track,
                }
                yield split, entry | changed
            tracks = last


def read_part(path: Path, part: str) -> list[dict[str, Any]]:
    """Return one part of a COCO file."""
    kind = msgspec.defstruct("Part", [(part, list[dict[str, Any]])])
    entries: list[dict[str, Any]] = getattr(msgspec.json.decode(path.read_bytes(), type=kind), part)
    return entries


def merge(merger: Merger, writers: Mapping[str, Iterable[CocoWriter]]) -> None:
    """Write all batches; `writers` says to which data sets a split goes."""
    everywhere = list(dict.fromkeys(writer for all_ in writers.values() for writer in all_))
    for part in PARTS:
        for writer in everywhere:
            writer.part(part)
        if part == "categories":
            for category in categories_of(merger.classes):
                for writer in everywhere:
                    writer.entry(encode(category))
        else:
            for split, entry in merger.entries(part):
                encoded = encode(entry)
                for writer in writers[split]:
                    writer.entry(encoded)
        for writer in everywhere:
            writer.end_part()
    for writer in everywhere:
        writer.end()


def main() -> None:
    """Run the rule's job."""
    targets = {Path(path).stem: Path(path) for path in snakemake.output}
    staging = staging_of(targets["all"].parents[3])
    with job_log(Path(snakemake.log[0]), "dataset/coco", Path(snakemake.params.resources)) as say:
        options = require_record(Path(snakemake.input.options))
        batches = [Path(path) for path in snakemake.input.batches]
        shares = options["val_percent"], options["test_percent"]
        splits = [split_of(batch_name_of(path.stem), *shares) for path in batches]
        with ExitStack() as stack:
            writers = {}
            for name, target in targets.items():
                part = stack.enter_context(replacing(target, staging))
                count = len(batches) if name == "all" else splits.count(name)
                info = {"description": f"Tracks of {count} batches", "split": name}
                writers[name] = CocoWriter(stack.enter_context(part.open("wb")), info)
            merger = Merger(batches, splits, options["classes"])
            merge(merger, {split: (writers["all"], writers[split]) for split in SPLITS})
        parts = ", ".join(f"{splits.count(split)} {split}" for split in SPLITS)
        say(f"{targets['all']}: {len(batches)} batches ({parts})")


if __name__ == "__main__":
    main()
