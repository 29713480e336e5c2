"""Exports in other forms: what they hold, and when they are made again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.dataset
import pyarrow.parquet
import pytest
from convert_mot import ground_truth
from dataset_splits import SPLITS, split_of
from export_contents import Contents, keep

from tests.conftest import Workflow
from tests.fault_server import FaultServer, TrackState, payload
from tests.synthetic import REVIEWER, as_bytes, kept_boxes, synthetic_payload

ALL_FORMS = ("--config", "formats=coco,mot,tables,dataset")
OPTIONS: dict[str, Any] = {"include_rejected": False, "class_from": "track", "classes": []}


def contents(value: dict[str, Any]) -> Contents:
    return msgspec.json.decode(as_bytes(value), type=Contents)


def files(workflow: Workflow, *patterns: str) -> dict[str, int]:
    """Return the files that match, each with when it was changed."""
    results = workflow.folder / "results"
    found = [path for pattern in patterns for path in results.glob(pattern) if path.is_file()]
    return {str(path.relative_to(results)): path.stat().st_mtime_ns for path in found}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {path for path, when in after.items() if before.get(path) != when}


def coco(workflow: Workflow, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((workflow.folder / f"results/{name}.json").read_text())
    return value


CONVERSIONS = ("coco/*", "mot/*/*", "tables/*", "dataset/*/*/*.json", "dataset/*/tables/*/*/*")


def test_what_changed_is_converted_again(workflow: Workflow, server: FaultServer) -> None:
    workflow.run(*ALL_FORMS)
    first = files(workflow, *CONVERSIONS)
    assert {path.split("/")[0] for path in first} == {"coco", "mot", "tables", "dataset"}
    # Every selected batch is converted, the empty one as well.
    assert len([path for path in first if path.startswith("coco/")]) == 3
    assert coco(workflow, "coco/tattoo2k25_complete")["annotations"] == []

    workflow.run(*ALL_FORMS)
    assert files(workflow, *CONVERSIONS) == first

    server.edit("tablet4_0001", "patch_000", reviews=5)
    workflow.run(*ALL_FORMS)
    again = changed(first, files(workflow, *CONVERSIONS))
    assert {path for path in again if not path.startswith("dataset/")} == {
        "coco/tablet4_0001_complete.json",
        "mot/tablet4_0001_complete/frames.tsv",
        "mot/tablet4_0001_complete/seqinfo.ini",
        "mot/tablet4_0001_complete/.snakemake_timestamp",
        "tables/tablet4_0001_complete.parquet",
    }
    assert "dataset/complete/coco/all.json" in again
    assert not list((workflow.folder / "results").glob(".staging/*"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--rerun-triggers", "mtime"), ("--workflow-profile", "none")])
def test_an_option_that_changes(workflow: Workflow, options: tuple[str, ...]) -> None:
    workflow.run(*options, *ALL_FORMS)
    first = files(workflow, *CONVERSIONS)
    workflow.run(*options, *ALL_FORMS, "frame_rate=12.5")
    again = changed(first, files(workflow, *CONVERSIONS))
    assert again and all(path.startswith("mot/") for path in again)
    info = workflow.folder / "results/mot/guns_1016205_complete/seqinfo.ini"
    assert "frameRate=12.5\n" in info.read_text()


@pytest.mark.parametrize(
    "target",
    ["coco/guns_1016205_all.json", "mot/guns_1016205_all", "tables/guns_1016205_all.parquet"],
)
def test_one_conversion_by_its_name(workflow: Workflow, server: FaultServer, target: str) -> None:
    workflow.run(f"results/{target}")
    assert workflow.exported() == ["guns_1016205"]
    assert server.count("tracks") == 1
    assert (workflow.folder / "results" / target).exists()


def test_conversions_are_off_by_default(workflow: Workflow) -> None:
    workflow.run()
    assert not files(workflow, *CONVERSIONS)


@pytest.mark.slow
def test_a_failed_export_keeps_its_conversion(workflow: Workflow, server: FaultServer) -> None:
    workflow.run(*ALL_FORMS)
    before = files(workflow, *CONVERSIONS)
    server.edit("guns_1016205", "patch_000", reviews=5)
    server.edit("tablet4_0001", "patch_000", reviews=5)
    server.fail("export", payload(b"nonsense"), batch="guns_1016205")
    workflow.run(*ALL_FORMS, expect=1)
    after = files(workflow, *CONVERSIONS)
    assert before.keys() == after.keys()
    again = changed(before, after)
    assert "coco/tablet4_0001_complete.json" in again
    assert not any("guns" in path for path in again)


@pytest.mark.slow
def test_an_export_that_cannot_be_converted(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    workflow.path("guns_1016205").write_text("{}")
    said = workflow.run(*ALL_FORMS, expect=1)
    assert "coco/guns_1016205_complete: results/guns_1016205_complete_tracks.json" in said
    assert "cannot be converted: the payload is not the export" in said
    assert "snakemake --cores 4 repair" in said
    assert (workflow.folder / "results/coco/tablet4_0001_complete.json").exists()


def test_reviewers_stay_out_unless_asked_for(workflow: Workflow, server: FaultServer) -> None:
    server.batches.clear()
    server.add("guns", {f"patch_{n:03}": TrackState() for n in range(4)})
    body = as_bytes(synthetic_payload("guns", tracks=4, frames=5))
    server.fail("export", payload(body))
    workflow.run(*ALL_FORMS)
    results = workflow.folder / "results"
    made = [results / name for name in files(workflow, *CONVERSIONS)]
    assert len(made) > 8
    assert not any(REVIEWER.encode() in path.read_bytes() for path in made)
    table = pyarrow.parquet.read_table(results / "tables/guns_complete.parquet")
    assert "judgment_user" not in table.column_names
    assert table["judgment_status"].to_pylist() == ["accepted"] * 21

    workflow.run(*ALL_FORMS, "reviewers=true")
    table = pyarrow.parquet.read_table(results / "tables/guns_complete.parquet")
    assert set(table["judgment_user"].to_pylist()) == {REVIEWER}
    first = coco(workflow, "coco/guns_complete")["annotations"][0]
    assert first["latest_judgment"]["user"] == REVIEWER


@pytest.mark.slow
def test_the_data_set_is_made_of_all_batches(workflow: Workflow, server: FaultServer) -> None:
    for number in range(8):
        server.add(f"batch/{number}")
    shares = ("val_percent=30", "test_percent=30")
    workflow.run("--config", "formats=dataset", *shares)
    dataset = workflow.folder / "results/dataset/complete"
    merged = {name: coco(workflow, f"dataset/complete/coco/{name}") for name in ("all", *SPLITS)}
    everything = merged["all"]
    for part in ("videos", "images", "annotations"):
        ids = [entry["id"] for entry in everything[part]]
        assert ids == list(range(1, len(ids) + 1))
        split = [entry for name in SPLITS for entry in merged[name][part]]
        assert sorted(split, key=lambda entry: int(entry["id"])) == everything[part]
    assert len({image["file_name"] for image in everything["images"]}) == len(everything["images"])
    assert {video["name"] for video in everything["videos"]} == set(server.batches)
    videos = {image["id"]: image["video_id"] for image in everything["images"]}
    tracks: dict[int, set[int]] = {}
    for annotation in everything["annotations"]:
        assert videos[annotation["image_id"]] == annotation["video_id"]
        tracks.setdefault(annotation["track_id"], set()).add(annotation["video_id"])
    assert all(len(of) == 1 for of in tracks.values())

    table = pyarrow.dataset.dataset(dataset / "tables", partitioning="hive").to_table()
    of_batch = {video["name"]: video["split"] for video in everything["videos"]}
    rows = list(zip(table["batch"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert set(rows) <= set(of_batch.items())
    assert table["batch"].to_pylist() == table["batch_key"].to_pylist()
    assert len(rows) == len(everything["annotations"])

    server.remove("batch/3")
    workflow.run("--config", "formats=dataset", *shares)
    less = coco(workflow, "dataset/complete/coco/all")
    assert {v["name"]: v["split"] for v in less["videos"]} == {
        name: split for name, split in of_batch.items() if name != "batch/3"
    }
    table = pyarrow.dataset.dataset(dataset / "tables", partitioning="hive").to_table()
    assert "batch/3" not in table["batch"].to_pylist()


def test_splits_are_stable_and_about_as_large_as_asked() -> None:
    names = [f"batch_{number}" for number in range(5000)]
    splits = {name: split_of(name, 10, 20) for name in names}
    counts = [list(splits.values()).count(split) / 50 for split in SPLITS]
    assert counts == pytest.approx([70, 10, 20], abs=2)
    # A larger share takes batches of `train`, and moves none between the others.
    for name, split in splits.items():
        assert split == "train" or split_of(name, 15, 25) == split
    assert {split_of(name, 0, 0) for name in names} == {"train"}
    assert {split_of(name, 100, 0) for name in names} == {"val"}


def test_what_is_kept_is_counted() -> None:
    value = synthetic_payload("b", tracks=20, frames=200)
    kept = keep(contents(value), OPTIONS)
    expected = kept_boxes(value)
    assert len(kept.boxes) == len(expected)
    assert sum(kept.dropped.values()) == len(value["annotations"]) - len(expected)
    assert set(kept.dropped) == {"rejected boxes", "malformed boxes", "boxes without area"}
    assert [image.frame_index for image in kept.images] == list(range(0, 400, 2))
    everything = keep(contents(value), OPTIONS | {"include_rejected": True})
    assert {annotation.status for annotation, _, _ in everything.boxes} >= {"rejected"}


def test_images_without_a_size_and_boxes_without_a_class_are_counted() -> None:
    value = synthetic_payload("b", tracks=1, frames=3)
    del value["images"][0]["width"]
    for annotation in value["annotations"]:
        annotation.update(status="accepted", category_name=None, bbox=[1, 2, 3, 4])
    kept = keep(contents(value), OPTIONS)
    boxes = sum(a["image_id"] == value["images"][0]["id"] for a in value["annotations"])
    assert kept.dropped["images without a size"] == 1
    assert kept.dropped["boxes in images without a size"] == boxes
    assert kept.dropped["boxes without a class"] == len(value["annotations"]) - boxes


@pytest.mark.parametrize("class_from", ["track", "annotation"])
def test_where_the_class_is_from(class_from: str) -> None:
    value = synthetic_payload("b", tracks=10, frames=10)
    of_track = {track["track_tag"]: track["primary_class"] for track in value["tracks"]}
    options = OPTIONS | {"class_from": class_from, "classes": ["tablet", "drone"]}
    kept = keep(contents(value), options)
    assert list(kept.classes) == ["tablet", "drone", "gun", "knife"]
    for annotation, _, name in kept.boxes:
        own = annotation.category_name
        expected = own if class_from == "annotation" else of_track[annotation.track_tag] or own
        assert name == expected


def test_a_track_twice_in_a_frame() -> None:
    value = synthetic_payload("b", tracks=2, frames=3)
    for annotation in value["annotations"]:
        annotation.update(status="accepted", bbox=[1, 2, 3, 4], confidence=0.5)
    twice = next(a for a in value["annotations"] if a["id"] == "twice")
    twice["confidence"] = 0.9
    twice["bbox"] = [9, 9, 9, 9]
    kept = keep(contents(value), OPTIONS)
    rows = list(ground_truth(kept, [1, 3, 5]))
    assert len(rows) == 6 == len({row[:2] for row in rows})
    assert [row[2:6] for row in rows].count((9, 9, 9, 9)) == 1
    assert kept.dropped["boxes of a track that is twice in a frame"] == 1


def test_embeddings_on_request(workflow: Workflow, server: FaultServer) -> None:
    workflow.run("results/tables/guns_1016205_complete.parquet", "--config", "embeddings=4")
    path = workflow.folder / "results/tables/guns_1016205_complete.parquet"
    table = pyarrow.parquet.read_table(path)
    field = table.schema.field("embedding").type
    assert (field.list_size, str(field.value_type)) == (4, "float")
    source = json.loads(workflow.published("guns_1016205"))["annotations"]
    wanted = {a["annotation_id"]: a["embedding_swin"] for a in source}
    for row in table.select(["annotation_id", "embedding"]).to_pylist():
        assert row["embedding"] == pytest.approx(wanted[row["annotation_id"]], rel=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "formats=yolo",
            "formats is \"['yolo']\": it must be a list of coco, mot, tables and dataset",
        ),
        ("class_from=frame", "class_from is 'frame': it must be track"),
        ("val_percent=101", "val_percent is '101': it must be a percentage"),
        ("embeddings=-1", "embeddings is '-1': it must be the number of floats"),
    ],
)
def test_bad_options(workflow: Workflow, given: str, said: str) -> None:
    assert said in workflow.run("--config", given, expect=1)


def test_shares_of_more_than_all(workflow: Workflow) -> None:
    said = workflow.run("--config", "val_percent=60", "test_percent=60", expect=1)
    assert "val_percent and test_percent are more than 100 together" in said


def test_a_dry_run_writes_nothing(workflow: Workflow) -> None:
    workflow.run()
    before = {path: path.stat().st_mtime_ns for path in workflow.folder.glob("re*/**/*")}
    workflow.run("-n", *ALL_FORMS)
    assert {path: path.stat().st_mtime_ns for path in workflow.folder.glob("re*/**/*")} == before


@pytest.mark.slow
def test_no_path_of_a_hostile_key_leaves_the_folders(
    workflow: Workflow, server: FaultServer
) -> None:
    server.batches.clear()
    for key in ("../../x", "a/b", "{y}", "x" * 300):
        server.add(key)
    workflow.run(*ALL_FORMS)
    outside = {path.name for path in Path(workflow.folder).iterdir()}
    assert outside <= {"results", "resources", "logs", ".snakemake"}
    assert len(files(workflow, "coco/*", "tables/*")) == 8


MEASURED = """
import sys, threading, time
from pathlib import Path
import convert_coco, convert_table, export_contents
def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.01)
peak, source, target = 0, Path(sys.argv[2]), Path(sys.argv[3])
threading.Thread(target=watch, daemon=True).start()
options = {"include_rejected": False, "class_from": "track", "classes": [], "reviewers": False}
if sys.argv[1] == "coco":
    contents = export_contents.read_contents(source, export_contents.Contents)
    kept = export_contents.keep(contents, options)
    with target.open("wb") as file:
        convert_coco.write_coco(convert_coco.coco_of(contents, kept), file)
else:
    options["embeddings"] = 768
    contents = export_contents.read_contents(source, convert_table.Rows)
    schema = convert_table.schema_of(options)
    rows = convert_table.rows_of(contents, schema, options, convert_table.Counter())
    convert_table.write_table(rows, schema, target, 2_000_000 // 768)
print(max(peak, anonymous()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["coco", "tables"])
def test_large_payloads_take_little_memory(tmp_path: Path, form: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells a process's anonymous memory")
    source, target = tmp_path / "source.json", tmp_path / "target"
    body = as_bytes(synthetic_payload("big", tracks=18, frames=2000))
    floats = json.dumps([0.1234567890123456 * n for n in range(768)]).encode()
    source.write_bytes(body.replace(b'"embedding_swin":[]', b'"embedding_swin":' + floats))
    assert source.stat().st_size > 500_000_000
    scripts = Path(__file__).parents[1] / "workflow/scripts"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, form, source, target],
        env={**os.environ, "PYTHONPATH": str(scripts)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 500_000  # kB
    source.unlink()
    if form == "coco":
        count = len(json.loads(target.read_bytes())["annotations"])
    else:
        count = pyarrow.parquet.read_metadata(target).num_rows
    assert count > 25_000
