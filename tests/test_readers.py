"""The conversions load and work in the tools that people train and evaluate with.

These tools are large: `make test-all` installs them.
"""

import csv
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Workflow
from tests.fault_server import FaultServer, payload
from tests.synthetic import as_bytes, kept_boxes, synthetic_payload
from workflow.demo.sample import create_sample
from workflow.demo.server import serving

numpy = pytest.importorskip("numpy")
pytestmark = [
    pytest.mark.slow,
    # One worker makes the conversions, for all these tests.
    pytest.mark.xdist_group("readers"),
]
TRACKS, FRAMES = 50, 2000
DEMO = ("guns_1016205_complete", "tablet4_0001_complete")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's batches and one of 100,000 annotations, `big`, in every form."""
    folder = tmp_path_factory.mktemp("readers")
    create_sample(folder / "sample.db")
    with serving(folder / "sample.db") as base_url, FaultServer(upstream=base_url) as relay:
        Workflow(folder, relay).run("--config", "formats=coco,mot,tables,dataset")
    with FaultServer() as server:
        server.add("big")
        server.fail("export", payload(as_bytes(synthetic_payload("big", TRACKS, FRAMES))))
        forms = ("coco/big_complete.json", "mot/big_complete", "tables/big_complete.parquet")
        Workflow(folder, server).run(*(f"results/{form}" for form in forms))
    return folder / "results"


@pytest.fixture(params=[*DEMO, "big_complete"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(results: Path, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((results / f"{name}_tracks.json").read_bytes())
    return value


def boxes_of(source: dict[str, Any]) -> Counter[tuple[Any, ...]]:
    """Return what has to be in a conversion: image, track and box."""
    files = {image["id"]: image["file_name"] for image in source["images"]}
    return Counter(
        (files[a["image_id"]], a["track_tag"], *map(float, a["bbox"])) for a in kept_boxes(source)
    )


def test_pycocotools(results: Path, name: str, source: dict[str, Any]) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    coco = coco_module.COCO(str(results / f"coco/{name}.json"))
    annotations = coco.loadAnns(coco.getAnnIds())
    found = Counter(
        (coco.loadImgs(a["image_id"])[0]["file_name"], a["track_tag"], *a["bbox"])
        for a in annotations
    )
    assert found == boxes_of(source)
    assert {coco.loadCats(a["category_id"])[0]["name"] for a in annotations} <= {
        *(track["primary_class"] for track in source["tracks"]),
        *(annotation["category_name"] for annotation in source["annotations"]),
    }
    assert len(coco.getImgIds()) == len(source["images"])
    detections = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for a in annotations
    ]
    run = evaluation.COCOeval(coco, coco.loadRes(detections), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert run.stats[0] == pytest.approx(1.0)


def test_supervision(results: Path, name: str, source: dict[str, Any]) -> None:
    supervision = pytest.importorskip("supervision")
    dataset = supervision.DetectionDataset.from_coco(
        images_directory_path=str(results),  # read only when an image is looked at
        annotations_path=str(results / f"coco/{name}.json"),
    )
    wanted = boxes_of(source)
    found: Counter[tuple[Any, ...]] = Counter()
    for path, detections in dataset.annotations.items():
        for left, top, right, bottom in detections.xyxy.tolist():
            found[Path(path).name, round(right - left, 2), round(bottom - top, 2)] += 1
    assert found.total() == wanted.total()
    assert {key[0] for key in found} == {key[0] for key in wanted}
    assert set(dataset.classes) >= {track["primary_class"] for track in source["tracks"]} - {None}


def test_motmetrics(
    results: Path, name: str, source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    motmetrics = pytest.importorskip("motmetrics")
    # Version 1.4.0 calls what NumPy 2 has no more.
    monkeypatch.setattr("numpy.asfarray", lambda a: numpy.asarray(a, float), raising=False)
    path = results / f"mot/{name}/gt/gt.txt"
    truth = motmetrics.io.loadtxt(str(path), fmt="mot15-2D", min_confidence=1)
    wanted = boxes_of(source)
    unique = {key[:2] for key in wanted}
    assert len(truth) == len(unique)
    some = truth[truth.index.get_level_values(0) <= 400]  # the measure is slow
    accumulator = motmetrics.utils.compare_to_groundtruth(some, some, "iou", distth=0.5)
    measured = motmetrics.metrics.create().compute(accumulator, metrics=["mota", "idf1"])
    assert measured["mota"].iloc[0] == 1.0
    assert measured["idf1"].iloc[0] == 1.0


def test_trackeval(results: Path, name: str, source: dict[str, Any], tmp_path: Path) -> None:
    trackeval = pytest.importorskip("trackeval")
    data = tmp_path / "trackers/self/data"
    data.mkdir(parents=True)
    truth = [*csv.reader((results / f"mot/{name}/gt/gt.txt").open())]
    with (data / f"{name}.txt").open("w") as file:  # as trackers write their results
        csv.writer(file).writerows([*row[:6], 1, -1, -1, -1] for row in truth)
    reader = trackeval.datasets.MotChallenge2DBox(
        {
            "GT_FOLDER": str(results / "mot"),
            "TRACKERS_FOLDER": str(tmp_path / "trackers"),
            "SKIP_SPLIT_FOL": True,
            "SEQ_INFO": {name: None},
            "DO_PREPROC": False,  # drops what is no pedestrian
            "PRINT_CONFIG": False,
        }
    )
    raw = reader.get_raw_seq_data("self", name)
    frames = [image["frame_index"] for image in source["images"]]
    assert raw["num_timesteps"] == max(frames) + 1
    assert sum(map(len, raw["gt_ids"])) == len({key[:2] for key in boxes_of(source)})
    measured = reader.get_preprocessed_seq_data(raw, "pedestrian")
    assert measured["num_gt_dets"] == len(truth)
    scores = trackeval.metrics.CLEAR({"PRINT_CONFIG": False}).eval_sequence(measured)
    assert scores["MOTA"] == 1.0


def test_duckdb(results: Path, name: str, source: dict[str, Any]) -> None:
    duckdb = pytest.importorskip("duckdb")
    table = f"'{results}/tables/{name}.parquet'"
    rows = duckdb.sql(
        f"SELECT annotation_id, track_tag, x, y, width, height FROM {table}"
    ).fetchall()
    wanted = Counter(
        (a["annotation_id"], a["track_tag"], *map(float, a["bbox"] or ()))
        for a in source["annotations"]
    )
    assert Counter(tuple(v for v in row if v is not None) for row in rows) == wanted
    statuses = duckdb.sql(f"SELECT status, count(*) FROM {table} GROUP BY status").fetchall()
    assert dict(statuses) == Counter(a["status"] for a in source["annotations"])
    (kinds,) = duckdb.sql(f"SELECT typeof(created_at) FROM {table} LIMIT 1").fetchall()
    assert kinds == ("TIMESTAMP WITH TIME ZONE",)


def test_pyarrow_and_duckdb_read_the_data_set(results: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    import pyarrow.dataset

    folder = results / "dataset/complete/tables"
    table = pyarrow.dataset.dataset(folder, partitioning="hive").to_table()
    sources = [json.loads(path.read_bytes()) for path in results.glob("*_complete_tracks.json")]
    demo = [source for source in sources if source["info"]["batch_key"] != "big"]
    assert table.num_rows == sum(len(source["annotations"]) for source in demo)
    (counted,) = duckdb.sql(
        f"SELECT count(*) FROM read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
    ).fetchall()
    assert counted == (table.num_rows,)


@pytest.mark.parametrize("split", ["all", "train", "val", "test"])
def test_pycocotools_reads_the_data_set(results: Path, split: str) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coco = coco_module.COCO(str(results / f"dataset/complete/coco/{split}.json"))
    assert {video["split"] for video in coco.dataset["videos"]} <= (
        {"train", "val", "test"} if split == "all" else {split}
    )
    for annotation in coco.loadAnns(coco.getAnnIds()):
        image = coco.loadImgs(annotation["image_id"])[0]
        assert image["video_id"] == annotation["video_id"]
