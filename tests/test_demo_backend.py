"""The demo backend answers as the Auto Labeler's API does, over a real socket."""

import http.client
import json
import math
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests

from workflow.demo.app import ROOT_PATH
from workflow.demo.database import BatchNotFoundError, TrackNotFoundError, connect
from workflow.demo.edits import EDITS, EditError, apply_edit
from workflow.demo.sample import add_batch, create_sample
from workflow.demo.server import serving

REPOSITORY = Path(__file__).parent.parent


def names(text: str) -> list[str]:
    return text.split()


# Field names, in their order, as the backend's API answers them.
BATCH = names("batch_key gcs_prefix frame_count annotation_count created_at incomplete_tracks")
TRACK = names(
    "track_tag categories primary_class person_down status total_annotations "
    "pending_annotations frame_count first_frame_index last_frame_index abandoned_from_frame "
    "last_updated_at completed manually_completed"
)
EXPORT = {
    "info": names("batch_key exported_at tracks"),
    "images": names("id file_name width height frame_index frame_version gcs_uri"),
    "annotations": names(
        "id annotation_id image_id track_tag category_id category_name bbox area status "
        "confidence person_down blur_decision blur_metrics embedding_swin has_mask patch_id "
        "strict meta labels created_at updated_at"
    ),
    "categories": names("id name"),
    "tracks": names(
        "track_tag primary_class categories manually_completed status pending_annotations"
    ),
}
JUDGMENT = names("status user note created_at")

HOSTILE_KEYS = [
    "a/b",
    "../../etc/passwd",
    ".",
    "..",
    ".hidden",
    "-rf",
    "/",
    "trailing/",
    "a/tracks",
    "a/tracks/export",
    "tracks",
    "two words, and a comma",
    "{x}",
    "100%",
    "%2F",
    "a+b&c=d?e#f;g",
    "Жёлтый-批次-🦉",
    "quote'\"back\\slash",
    "k" * 300,
]


@dataclass(frozen=True)
class Backend:
    """A running backend and the file it serves."""

    base: str
    database: Path

    @property
    def bare(self) -> str:
        """The base URL without the root path."""
        return self.base.removesuffix(ROOT_PATH)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.base}{path}", timeout=10)

    def tracks(self, batch: str) -> dict[str, Any]:
        response = self.get(f"/batches/{quote(batch, safe='')}/tracks")
        return {track["track_tag"]: track for track in response.json()}

    def export(self, batch: str, status_filter: str = "all") -> requests.Response:
        return self.get(
            f"/batches/{quote(batch, safe='')}/tracks/export?status_filter={status_filter}"
        )

    def edit(self, edit: str, batch: str, track: str = "-", **values: str) -> requests.Response:
        path = f"/demo/batches/{quote(batch, safe='')}/tracks/{track}/{edit}"
        return requests.post(f"{self.base}{path}", params=values, timeout=10)

    def batch(self, batch: str) -> dict[str, Any]:
        found = [entry for entry in self.get("/batches").json() if entry["batch_key"] == batch]
        assert len(found) == 1
        return dict(found[0])


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    database = tmp_path_factory.mktemp("demo") / "demo.sqlite"
    with serving(database) as base:
        yield Backend(base, database)


@pytest.fixture
def batch(backend: Backend, request: pytest.FixtureRequest) -> str:
    """A batch of the test's own: three tracks, the first complete, boxes on four frames."""
    key = str(request.node.name)
    add_batch(backend.database, key, tracks=3, frames=4, completed_tracks=1)
    return key


# --- what it answers


def test_health(backend: Backend) -> None:
    for base in (backend.base, backend.bare):
        response = requests.get(f"{base}/health", timeout=10)
        assert (response.status_code, response.text) == (200, '{"status":"ok"}')


def test_paths_answer_with_and_without_the_root_path(backend: Backend) -> None:
    for path in ("/batches", "/batches/nowhere/tracks", "/batches?x=1", "/nothing"):
        answers = [requests.get(f"{b}{path}", timeout=10) for b in (backend.base, backend.bare)]
        assert answers[0].content == answers[1].content
        assert answers[0].status_code == answers[1].status_code


def test_head_is_refused(backend: Backend) -> None:
    for path in ("/health", "/batches", "/batches/b/tracks", "/batches/b/tracks/export"):
        assert requests.head(f"{backend.base}{path}", timeout=10).status_code == 405


def test_a_trailing_slash_redirects(backend: Backend) -> None:
    for base in (backend.base, backend.bare):
        response = requests.get(f"{base}/batches/", timeout=10, allow_redirects=False)
        assert response.status_code == 307
        assert response.headers["location"] == f"{base}/batches"
        assert requests.get(f"{base}/batches/", timeout=10).json()[0]["batch_key"]


def test_answers_are_compact_and_carry_no_validators(backend: Backend) -> None:
    for path in ("/batches", "/batches/tablet4_0001/tracks/export"):
        response = requests.get(
            f"{backend.base}{path}", headers={"Accept-Encoding": "gzip"}, timeout=10
        )
        compact = json.dumps(response.json(), separators=(",", ":"), ensure_ascii=False)
        assert response.text == compact
        assert response.headers["content-type"] == "application/json"
        for name in ("etag", "last-modified", "content-encoding"):
            assert name not in response.headers


def test_batches_come_newest_first(backend: Backend) -> None:
    listing = backend.get("/batches").json()
    assert {"guns_1016205", "tablet4_0001", "tattoo2k25"} <= {b["batch_key"] for b in listing}
    assert all(list(entry) == BATCH for entry in listing)
    created = [entry["created_at"] for entry in listing]
    assert created == sorted(created, reverse=True)


def test_fields_and_types_are_the_apis(backend: Backend) -> None:
    listing = backend.tracks("guns_1016205")
    assert all(list(track) == TRACK for track in listing.values())
    payload = backend.export("guns_1016205").json()
    assert list(payload) == list(EXPORT)
    assert list(payload["info"]) == EXPORT["info"]
    for section in ("images", "categories", "tracks"):
        assert all(list(entry) == EXPORT[section] for entry in payload[section])
    judged = 0
    for index, annotation in enumerate(payload["annotations"]):
        judgment = annotation.pop("latest_judgment", None)
        assert list(annotation) == EXPORT["annotations"]
        assert annotation["id"] == (index or annotation["annotation_id"])
        assert list(annotation["blur_metrics"]) == ["blur_decision", "v"]
        assert isinstance(annotation["person_down"], bool)
        if judgment is not None:
            judged += 1
            assert list(judgment) == JUDGMENT
            assert judgment["status"] == annotation["status"]
    assert 0 < judged < len(payload["annotations"])


def test_export_and_listing_agree(backend: Backend) -> None:
    for entry in backend.get("/batches").json()[-6:]:
        key = entry["batch_key"]
        listing, payload = backend.tracks(key), backend.export(key).json()
        boxes = Counter(a["track_tag"] for a in payload["annotations"])
        pending = Counter(
            a["track_tag"] for a in payload["annotations"] if a["status"] == "unreviewed"
        )
        assert entry["annotation_count"] == len(payload["annotations"])
        assert set(payload["info"]["tracks"]) == set(listing)
        for tag, track in listing.items():
            assert track["total_annotations"] == boxes[tag]
            assert track["pending_annotations"] == pending[tag]
        for track in payload["tracks"]:
            assert track == {name: listing[track["track_tag"]][name] for name in track}
        image_ids = {image["id"] for image in payload["images"]}
        assert image_ids == {a["image_id"] for a in payload["annotations"]}


def test_complete_is_the_default_and_selects_whole_tracks(backend: Backend) -> None:
    add_batch(backend.database, "select", tracks=3, frames=4, completed_tracks=1, empty_tracks=1)
    backend.edit("complete", "select", "patch_001")
    default = backend.get("/batches/select/tracks/export").json()
    complete = backend.export("select", "complete").json()
    assert canonical(default) == canonical(complete)
    # A track without boxes counts as complete; one completed by hand keeps its unreviewed ones.
    assert sorted(complete["info"]["tracks"]) == ["patch_000", "patch_001", "patch_003"]
    statuses = Counter((a["track_tag"], a["status"]) for a in complete["annotations"])
    assert statuses == {("patch_000", "accepted"): 4, ("patch_001", "unreviewed"): 4}
    assert len(backend.export("select").json()["annotations"]) == 12


def test_images_are_those_of_the_exported_tracks(backend: Backend) -> None:
    everything = backend.export("guns_1016205", "all").json()["images"]
    complete = backend.export("guns_1016205", "complete").json()
    assert {i["id"] for i in complete["images"]} == {a["image_id"] for a in complete["annotations"]}
    assert len(complete["images"]) < len(everything) <= backend.batch("guns_1016205")["frame_count"]


def test_two_exports_differ_in_their_bytes_alone(backend: Backend) -> None:
    first, second = (backend.export("guns_1016205") for _ in range(2))
    assert first.json()["info"]["exported_at"] < second.json()["info"]["exported_at"]
    assert canonical(first.json()) == canonical(second.json())
    # 140 boxes in the same order twice would be a miracle.
    assert [a["annotation_id"] for a in first.json()["annotations"]] != [
        a["annotation_id"] for a in second.json()["annotations"]
    ]


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/batches/nowhere/tracks/export", "Batch not found"),
        ("/batches/nowhere/tracks", "Batch not found"),
        ("/batches/tattoo2k25/tracks/export", "No completed tracks available for export"),
        ("/batches/no-tracks/tracks/export", "No tracks found for export"),
        ("/batches/no-tracks/tracks/export?status_filter=all", "No tracks found for export"),
        ("/api/batches", "Not Found"),
        ("/batches/tattoo2k25", "Not Found"),
    ],
)
def test_404(backend: Backend, path: str, detail: str) -> None:
    if not any(b["batch_key"] == "no-tracks" for b in backend.get("/batches").json()):
        add_batch(backend.database, "no-tracks", tracks=0)
    response = backend.get(path)
    assert response.status_code == 404
    assert response.text == f'{{"detail":"{detail}"}}'
    assert backend.get("/batches/no-tracks/tracks").json() == []


def test_422_for_a_bad_filter(backend: Backend) -> None:
    response = backend.export("nowhere", "x")
    assert response.status_code == 422
    assert response.json() == {
        "detail": [
            {
                "type": "literal_error",
                "loc": ["query", "status_filter"],
                "msg": "Input should be 'all' or 'complete'",
                "input": "x",
                "ctx": {"expected": "'all' or 'complete'"},
            }
        ]
    }


def test_500_for_a_nan_and_for_that_batch_alone(backend: Backend) -> None:
    add_batch(backend.database, "nan", tracks=2, completed_tracks=1, nan=True)
    for _ in range(2):
        response = backend.export("nan")
        assert (response.status_code, response.text) == (500, "Internal Server Error")
        assert response.headers["content-type"].startswith("text/plain")
    assert backend.tracks("nan").keys() == {"patch_000", "patch_001"}
    assert backend.export("tablet4_0001").status_code == 200


@pytest.mark.parametrize("prefix", ["", ROOT_PATH])
@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=lambda key: ascii(key)[:24])
def test_any_key_is_found(backend: Backend, key: str, prefix: str) -> None:
    if key not in {b["batch_key"] for b in backend.get("/batches").json()}:
        add_batch(backend.database, key, tracks=1, frames=2, completed_tracks=1)
    encoded = quote(key, safe="").replace(".", "%2E")
    address = urlsplit(backend.base).netloc
    connection = http.client.HTTPConnection(address, timeout=10)  # which alters no path
    answers = []
    for path in ("tracks", "tracks/export"):
        connection.request("GET", f"{prefix}/batches/{encoded}/{path}")
        answers.append(json.loads(connection.getresponse().read()))
    connection.close()
    assert [track["track_tag"] for track in answers[0]] == ["patch_000"]
    assert answers[1]["info"]["batch_key"] == key
    assert backend.batch(key)["annotation_count"] == 2


# --- what an edit changes


def canonical(payload: dict[str, Any]) -> dict[str, Any]:
    """Return an export by names that last, without what differs between any two."""
    frames = {image["id"]: image["frame_index"] for image in payload["images"]}
    return {
        "images": {image["frame_index"]: image for image in payload["images"]},
        "annotations": {
            (a["track_tag"], frames[a["image_id"]]): {k: v for k, v in a.items() if k != "id"}
            for a in payload["annotations"]
        },
        "categories": {category["id"]: category for category in payload["categories"]},
        "tracks": {track["track_tag"]: track for track in payload["tracks"]},
    }


def state(backend: Backend, batch: str) -> dict[str, dict[Any, Any]]:
    """Return everything that the three answers say of a batch."""
    return {
        "batches": {batch: backend.batch(batch)},
        "listing": backend.tracks(batch),
        **canonical(backend.export(batch).json()),
    }


def difference(
    before: dict[str, dict[Any, Any]], after: dict[str, dict[Any, Any]]
) -> dict[str, set[Any]]:
    """Return what differs between two states, as (which, field) by place."""
    found: dict[str, set[Any]] = {}
    for place, entries in after.items():
        old = before[place]
        fields = {
            (which, field)
            for which in old.keys() | entries.keys()
            for field in old.get(which, {}).keys() | entries.get(which, {}).keys()
            if old.get(which, {}).get(field) != entries.get(which, {}).get(field)
        }
        if fields:
            found[place] = fields
    return found


def changes(backend: Backend, batch: str, edit: str, track: str = "-", **values: str) -> Any:
    """Make an edit and return what it changed."""
    before = state(backend, batch)
    assert backend.edit(edit, batch, track, **values).status_code == 200
    return difference(before, state(backend, batch))


def judged(track: str, frames: range) -> dict[str, set[Any]]:
    """Return what any judgment of a track's boxes changes in the export."""
    return {
        "images": {(frame, "frame_version") for frame in frames},
        "annotations": {
            ((track, frame), field)
            for frame in frames
            for field in ("status", "updated_at", "latest_judgment")
        },
    }


def fields_of(track: str, *fields: str) -> set[tuple[str, str]]:
    return {(track, field) for field in fields}


@pytest.mark.parametrize("edit", ["accept", "reject"])
def test_judging_a_track(backend: Backend, batch: str, edit: str) -> None:
    found = changes(backend, batch, edit, "patch_001")
    assert found == {
        "listing": fields_of("patch_001", "pending_annotations", "last_updated_at", "completed"),
        "tracks": fields_of("patch_001", "pending_annotations"),
        **judged("patch_001", range(4)),
    }
    boxes = canonical(backend.export(batch, "complete").json())["annotations"]
    judgment = boxes["patch_001", 0]["latest_judgment"]
    assert judgment["status"] == boxes["patch_001", 0]["status"] == f"{edit}ed"
    assert judgment["created_at"] == boxes["patch_001", 0]["updated_at"]
    assert judgment["user"] == "reviewer"
    assert backend.tracks(batch)["patch_001"]["last_updated_at"] == judgment["created_at"]


def test_judging_one_frame(backend: Backend, batch: str) -> None:
    answer = backend.edit("reject", batch, "patch_001", value="2", user="mira", note="hm")
    assert answer.json() == {
        "batch_key": batch,
        "track_tag": "patch_001",
        "edit": "reject",
        "summary": "1 box rejected",
    }
    found = changes(backend, batch, "accept", "patch_001", value="3", note="hm")
    assert found == {
        "listing": fields_of("patch_001", "pending_annotations", "last_updated_at"),
        "tracks": fields_of("patch_001", "pending_annotations"),
        **judged("patch_001", range(3, 4)),
    }
    assert backend.tracks(batch)["patch_001"]["pending_annotations"] == 2
    box = canonical(backend.export(batch).json())["annotations"]["patch_001", 2]
    assert (box["latest_judgment"]["user"], box["latest_judgment"]["note"]) == ("mira", "hm")


def test_judging_again_changes_times_alone(backend: Backend, batch: str) -> None:
    backend.edit("accept", batch, "patch_001")
    found = changes(backend, batch, "accept", "patch_001")
    assert found["listing"] == fields_of("patch_001", "last_updated_at")
    assert "batches" not in found


def test_abandoning_and_recovering(backend: Backend, batch: str) -> None:
    backend.edit("accept", batch, "patch_001", value="2")
    listed = (
        "status",
        "abandoned_from_frame",
        "pending_annotations",
        "last_updated_at",
    )
    expected = {
        "listing": fields_of("patch_001", *listed),
        "tracks": fields_of("patch_001", "status", "pending_annotations"),
        **judged("patch_001", range(1, 4)),
    }
    abandon = changes(backend, batch, "abandon", "patch_001", value="1")
    assert abandon == expected
    track = backend.tracks(batch)["patch_001"]
    assert (track["status"], track["abandoned_from_frame"]) == ("abandoned", 1)
    assert track["pending_annotations"] == 1

    recover = changes(backend, batch, "recover", "patch_001")
    assert recover == expected
    boxes = canonical(backend.export(batch).json())["annotations"]
    assert [boxes["patch_001", frame]["status"] for frame in range(4)] == [
        "unreviewed",
        "unreviewed",
        "accepted",
        "unreviewed",
    ]
    track = backend.tracks(batch)["patch_001"]
    assert (track["status"], track["abandoned_from_frame"]) == ("active", None)


def test_a_track_wholly_abandoned_is_complete(backend: Backend, batch: str) -> None:
    backend.edit("abandon", batch, "patch_001")
    assert backend.tracks(batch)["patch_001"]["completed"]
    assert "patch_001" in backend.export(batch, "complete").json()["info"]["tracks"]


def test_completing_and_uncompleting(backend: Backend, batch: str) -> None:
    expected = {
        "batches": {(batch, "incomplete_tracks")},
        "listing": fields_of("patch_001", "manually_completed", "completed"),
        "tracks": fields_of("patch_001", "manually_completed"),
    }
    for edit, exported in (
        ("complete", ["patch_000", "patch_001"]),
        ("uncomplete", ["patch_000"]),
    ):
        assert changes(backend, batch, edit, "patch_001") == expected
        complete = backend.export(batch, "complete").json()
        assert sorted(complete["info"]["tracks"]) == exported


def test_changing_the_class(backend: Backend, batch: str) -> None:
    found = changes(backend, batch, "class", "patch_001", value="rifle")
    assert found == {
        "listing": fields_of("patch_001", "primary_class"),
        "tracks": fields_of("patch_001", "primary_class"),
    }


def test_flagging_person_down(backend: Backend, batch: str) -> None:
    expected = {
        "listing": fields_of("patch_001", "person_down"),
        "annotations": {(("patch_001", frame), "person_down") for frame in range(4)},
    }
    assert changes(backend, batch, "person-down", "patch_001") == expected
    assert backend.tracks(batch)["patch_001"]["person_down"] is True
    off = changes(backend, batch, "person-down", "patch_001", value="off")
    assert off == expected


def test_saving_a_frame(backend: Backend, batch: str) -> None:
    found = changes(backend, batch, "save-frame", "patch_001", value="2")
    assert found == {"images": {(2, "frame_version")}}


def test_ingesting_again(backend: Backend, batch: str) -> None:
    backend.edit("complete", batch, "patch_001")
    backend.edit("class", batch, "patch_001", value="rifle")
    before = backend.export(batch).json()
    found = changes(backend, batch, "ingest-again")
    assert found["batches"] == {
        (batch, field)
        for field in ("frame_count", "annotation_count", "created_at", "incomplete_tracks")
    }
    assert {which for which, _ in found["listing"]} == {"patch_000", "patch_001", "patch_002"}
    entry = backend.batch(batch)
    assert (entry["frame_count"], entry["annotation_count"], entry["incomplete_tracks"]) == (
        5,
        15,
        3,
    )
    assert backend.get("/batches").json()[0] == entry
    after = backend.export(batch).json()
    for section in ("images", "annotations"):
        name = "annotation_id" if section == "annotations" else "id"
        old, new = ({e[name] for e in export[section]} for export in (before, after))
        assert not old & new
        assert len(new) == len(after[section])
    assert {a["status"] for a in after["annotations"]} == {"unreviewed"}
    assert not any("latest_judgment" in a for a in after["annotations"])
    assert {t["primary_class"] for t in after["tracks"]} == {None}
    assert backend.export(batch, "complete").status_code == 404


@pytest.mark.parametrize(
    ("status", "detail", "edit", "track", "value"),
    [
        (404, "tracks are patch_000, patch_001, patch_002", "accept", "patch_9", None),
        (404, "needs a track", "accept", "-", None),
        (422, "edits are accept, reject", "approve", "patch_000", None),
        (422, "frames are 0, 1, 2, 3", "accept", "patch_000", "4"),
        (422, "frames are 0, 1, 2, 3", "abandon", "patch_000", "x"),
        (422, "finds no box", "recover", "patch_000", None),
        (422, "name of the class", "class", "patch_000", None),
        (422, "on or off", "person-down", "patch_000", "yes"),
        (422, "takes no value", "complete", "patch_000", "yes"),
    ],
)
def test_a_bad_edit_changes_nothing(
    backend: Backend, batch: str, status: int, detail: str, edit: str, track: str, value: str | None
) -> None:
    before = state(backend, batch)
    response = backend.edit(edit, batch, track, **({} if value is None else {"value": value}))
    assert response.status_code == status
    assert detail in response.json()["detail"]
    assert difference(before, state(backend, batch)) == {}


def test_an_edit_of_an_unknown_batch_names_those_that_exist(tmp_path: Path) -> None:
    add_batch(tmp_path / "db", "only")
    with connect(tmp_path / "db") as connection:
        with pytest.raises(BatchNotFoundError, match="batches are only"):
            apply_edit(connection, "accept", "other", "patch_000")
        with pytest.raises(TrackNotFoundError):
            apply_edit(connection, "accept", "only", "patch_3")
        with pytest.raises(EditError):
            apply_edit(connection, "", "only", "patch_000")


def test_edits_are_no_part_of_the_api_but_apart(backend: Backend) -> None:
    paths = backend.get("/openapi.json").json()["paths"]
    assert {path for path in paths if not path.startswith("/demo/")} == {
        "/health",
        "/batches",
        "/batches/{batch}/tracks",
        "/batches/{batch}/tracks/export",
    }
    assert len(paths) == 5


def test_many_at_once_see_whole_states(backend: Backend, batch: str) -> None:
    def read(number: int) -> None:
        if number % 6 == 0:
            edit = ("accept", "abandon")[number // 6 % 2]
            assert backend.edit(edit, batch, "patch_001").status_code == 200
        payload = backend.export(batch).json()
        pending = sum(a["status"] == "unreviewed" for a in payload["annotations"])
        assert pending == sum(t["pending_annotations"] for t in payload["tracks"])
        edited = [a for a in payload["annotations"] if a["track_tag"] == "patch_001"]
        assert len({a["status"] for a in edited}) == 1

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(read, range(96)))


# --- the sample


def test_the_sample_is_the_same_every_time(tmp_path: Path) -> None:
    create_sample(tmp_path / "a")
    script = "import sys, pathlib; from workflow.demo.sample import create_sample as c; "
    subprocess.run(
        [sys.executable, "-c", f"{script}c(pathlib.Path(sys.argv[1]))", str(tmp_path / "b")],
        cwd=REPOSITORY,
        check=True,
    )
    dumps = []
    for name in ("a", "b"):
        with connect(tmp_path / name) as connection:
            dumps.append(list(connection.iterdump()))
    assert dumps[0] == dumps[1]
    assert len(dumps[0]) > 700


def test_the_sample_is_plausible_and_small(tmp_path: Path) -> None:
    size, classes, seen = 0, set(), Counter[str]()
    with serving(tmp_path / "db") as base:
        running = Backend(base, tmp_path / "db")
        for entry in running.get("/batches").json():
            response = running.export(entry["batch_key"])
            size += len(response.content)
            payload = response.json()
            classes |= {category["name"] for category in payload["categories"]}
            seen["person_down"] += sum(
                t["person_down"] for t in running.tracks(entry["batch_key"]).values()
            )
            seen["manual"] += sum(t["manually_completed"] for t in payload["tracks"])
            seen["abandoned"] += sum(t["status"] == "abandoned" for t in payload["tracks"])
            boxes = {k: a["bbox"] for k, a in canonical(payload)["annotations"].items()}
            for (track, frame), (x, y, width, height) in boxes.items():
                if (x, y, width, height) == (0, 0, 0, 0):
                    seen["malformed"] += 1
                    continue
                assert x >= 0 and y >= 0 and x + width <= 1920 and y + height <= 1080
                assert width > 0 and height > 0
                following = boxes.get((track, frame + 1), [0, 0, 0, 0])
                if following[2]:
                    assert math.dist(following[:2], (x, y)) < 150
    assert size < 2_000_000
    assert len(classes) >= 5
    assert seen["malformed"] == 1
    assert min(seen["person_down"], seen["manual"], seen["abandoned"]) >= 2


# --- the command line


def demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workflow.demo", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def start_serving(*arguments: str | Path) -> tuple[subprocess.Popen[str], str]:
    """Start `serve`; return the process and the base URL that it announced."""
    process = subprocess.Popen(
        [sys.executable, "-m", "workflow.demo", "serve", *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_announces_itself_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    database, url_file = tmp_path / "new folder" / "db", tmp_path / "url"
    url_file.write_text("http://stale")
    process, url = start_serving("--database", database, "--url-file", url_file)
    assert url.startswith("http://127.0.0.1:") and url.endswith(ROOT_PATH)
    assert url_file.read_text() == f"{url}\n"
    assert len(requests.get(f"{url}/batches", timeout=10).json()) == 6
    add_batch(database, "nan", nan=True)
    failing = requests.get(f"{url}/batches/nan/tracks/export?status_filter=all", timeout=10)
    assert failing.status_code == 500
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == [database.parent]


def test_serve_verbosely_logs_requests_to_stderr(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "workflow.demo",
            "serve",
            "--verbose",
            "--database",
            tmp_path / "db",
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    requests.get(f"{url}/health", timeout=10)
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert out == ""
    assert "/health HTTP/1.1" in err
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal")
def test_serve_dies_with_its_parent(tmp_path: Path) -> None:
    arguments = ["serve", "--die-with-parent", "--database", str(tmp_path / "db")]
    script = (
        "import subprocess, sys\n"
        f"command = [sys.executable, '-m', 'workflow.demo', *{arguments!r}]\n"
        "subprocess.Popen(command).wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    assert requests.get(f"{url}/health", timeout=10).ok
    parent.kill()
    # The pipe ends when the last process that holds it does: the server.
    assert parent.communicate(timeout=20)[0] == ""
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/health", timeout=10)


def test_serve_says_in_one_line_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE t (x)").connection.close()
    for name in ("text", "other"):
        content = (tmp_path / name).read_bytes()
        result = demo("serve", "--database", tmp_path / name)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: {tmp_path / name} is ")
        assert result.stderr.count("\n") == 1
        assert (tmp_path / name).read_bytes() == content
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = demo("serve", "--database", tmp_path / "db", "--port", port)
    assert result.returncode == 2
    assert "in use" in result.stderr and result.stderr.count("\n") == 1


def test_edit_while_serving(backend: Backend, batch: str) -> None:
    before = state(backend, batch)
    result = demo("edit", "--database", backend.database, "accept", batch, "patch_001", "2")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{batch} patch_001: 1 box accepted\n"
    found = difference(before, state(backend, batch))
    assert found["annotations"] == judged("patch_001", range(2, 3))["annotations"]


def test_every_edit_prints_one_line(backend: Backend, batch: str) -> None:
    for edit in EDITS:
        value = ["rifle"] if edit == "class" else []
        track = [] if edit == "ingest-again" else ["patch_001"]
        result = demo("edit", "--database", backend.database, edit, batch, *track, *value)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.count("\n") == 1 and result.stdout.startswith(batch)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["approve", "tablet4_0001", "patch_000"], "edits are accept, reject, abandon"),
        (["accept", "nowhere", "patch_000"], "tablet4_0001"),
        (["accept", "tablet4_0001", "patch_9"], "tracks are patch_000, patch_001"),
        (["accept", "tablet4_0001"], "needs a track"),
        (["accept", "tablet4_0001", "patch_000", "x"], "takes a frame of the track, not 'x'"),
    ],
)
def test_edit_says_in_one_line_why_it_cannot(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    create_sample(tmp_path / "db")
    result = demo("edit", "--database", tmp_path / "db", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and text in result.stderr
    assert result.stderr.count("\n") == 1


def test_edit_and_list_make_no_database(tmp_path: Path) -> None:
    for arguments in (["list"], ["edit", "accept", "b", "t"]):
        result = demo(*arguments, "--database", tmp_path / "missing")
        assert result.returncode == 2
        assert result.stderr == f"error: there is no demo database at {tmp_path / 'missing'}\n"
    assert list(tmp_path.iterdir()) == []


def test_list_fits_a_terminal(tmp_path: Path) -> None:
    create_sample(tmp_path / "db")
    add_batch(tmp_path / "db", "k" * 300, tracks=0)
    add_batch(tmp_path / "db", "line\nbreak", tracks=1, empty_tracks=1)
    result = demo("list", "--database", tmp_path / "db")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for text in ("tattoo2k25", "completed by hand", "abandoned from", "pending", "complete"):
        assert text in result.stdout
    assert "no tracks" in result.stdout and "line\\nbreak" in result.stdout
