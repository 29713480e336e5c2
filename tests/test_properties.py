"""What holds of the pure parts for any input, found by search rather than by example."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from export_settings import resolve_settings
from export_via_api import (
    ApiError,
    SettingError,
    TruncatedBodyError,
    _write,
    check_payload,
    export_file_name,
    export_name,
    parse_api_base,
)
from fetch_manifest import is_exported, revision_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from payload_checks import check_export

from tests.conftest import ROOT

settings.register_profile(
    "deterministic", derandomize=True, database=None, deadline=None, max_examples=200
)
settings.load_profile("deterministic")

SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
FILTERS = ("complete", "all")

# Keys as people make them, and anything that JSON can carry, lone surrogates included.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=400)
KEYS = st.one_of(
    st.text(string.ascii_letters + string.digits + "._-~%/", max_size=200),
    ANY_TEXT,
    st.builds(
        lambda part, times: part * times,
        st.text("ab._-%", min_size=1, max_size=3),
        st.integers(1, 100),
    ),
)


# File names


@given(KEYS, KEYS)
@example("a/b", "a%2Fb")
@example("é", "e\u0301")
@example("x" * 151, "x" * 152)
@example("A", "a")
def test_different_keys_have_different_files(one: str, other: str) -> None:
    names = {export_file_name(key, f) for key in {one, other} for f in FILTERS}
    assert len(names) == 2 * len({one, other})


@given(KEYS)
@example("")
@example("..")
@example("\ud800")
def test_a_file_stays_in_its_folder(key: str) -> None:
    for status_filter in FILTERS:
        name = export_file_name(key, status_filter)
        path = Path("results", name)
        assert path.parent == Path("results") and path.name == name
        assert len(name.encode()) <= 200
        assert set(name) <= set(string.ascii_letters + string.digits + "._-%~")
        assert name[0] not in "-."
        assert export_name(key) == export_name(key)


# Revisions


TRACKS = st.lists(
    st.fixed_dictionaries(
        {
            "track_tag": st.text("abc", min_size=1, max_size=2),
            "categories": st.lists(st.sampled_from(["gun", "rifle", "person"]), max_size=3),
            "pending_annotations": st.integers(0, 2),
            "manually_completed": st.booleans(),
            "last_updated_at": st.one_of(st.none(), st.sampled_from(["2026-01-01", "2026-01-02"])),
        },
        optional={"person_down": st.booleans(), "frame_count": st.integers()},
    ),
    max_size=5,
)


def revision(tracks: list[dict[str, Any]], status_filter: str) -> str:
    return revision_of([t for t in tracks if is_exported(t, status_filter)], ["backend", "x"])


def exported_entries(tracks: list[dict[str, Any]], status_filter: str) -> list[str]:
    """What a revision stands for, told in another way than the code tells it."""
    kept = [
        t
        for t in tracks
        if status_filter == "all" or t["pending_annotations"] == 0 or t["manually_completed"]
    ]
    return sorted(
        json.dumps(t | {"categories": sorted(t["categories"])}, sort_keys=True) for t in kept
    )


@given(TRACKS, TRACKS, st.sampled_from(FILTERS))
def test_a_revision_changes_when_and_only_when_an_exported_entry_does(
    one: list[dict[str, Any]], other: list[dict[str, Any]], status_filter: str
) -> None:
    same = exported_entries(one, status_filter) == exported_entries(other, status_filter)
    assert (revision(one, status_filter) == revision(other, status_filter)) is same


@given(TRACKS, st.sampled_from(FILTERS), st.data())
def test_one_edit_changes_the_revision_of_what_is_exported(
    tracks: list[dict[str, Any]], status_filter: str, data: st.DataObject
) -> None:
    before = revision(tracks, status_filter)
    assert revision(data.draw(st.permutations(tracks)), status_filter) == before
    if tracks:
        track = data.draw(st.sampled_from(tracks))
        was = is_exported(track, status_filter)
        track["last_updated_at"] = "2026-02-02"
        assert (revision(tracks, status_filter) != before) is was


# Settings


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(ANY_TEXT, inner, max_size=3)
    ),
    max_leaves=5,
)
GIVEN = st.dictionaries(
    st.one_of(st.sampled_from(sorted(SCHEMA["properties"])), ANY_TEXT), JSON_VALUES
)
VARIABLES = st.dictionaries(
    st.sampled_from(
        [
            f"EXPORT_{key.upper()}"
            for key in (
                "api_base",
                "batch_key",
                "status_filter",
                "size_limit",
                "request_timeout",
                "time_limit",
            )
        ]
    ),
    st.one_of(
        st.text(),
        st.sampled_from(["all", "complete", "1", "0", "nan", "http://a/b", "http://u:p@a"]),
    ),
)


@given(GIVEN, VARIABLES, GIVEN)
def test_settings_are_sound_or_refused_in_one_line(
    command_line: dict[str, Any], environ: dict[str, str], files: dict[str, Any]
) -> None:
    try:
        found = resolve_settings(command_line, environ, files, SCHEMA)
    except SettingError as error:
        assert str(error).isprintable()
        return
    assert found.status_filter in FILTERS
    assert 0 < found.request_timeout < float("inf")
    assert 0 < found.time_limit < float("inf")
    assert 0 < found.size_limit < float("inf")
    assert parse_api_base(found.api_base, "x") == found.api_base
    assert "@" not in found.api_base.split("/")[2]
    assert all(isinstance(key, str) for key in found.batch_keys)
    assert len(set(found.batch_keys)) == len(found.batch_keys)


# Payloads


def export() -> dict[str, Any]:
    boxes = [
        {"id": n, "image_id": f"i{n % 3}", "track_tag": f"t{n % 2}", "bbox": [1, 2, 3.5, 4]}
        for n in range(6)
    ]
    return {
        "info": {"batch_key": "b", "exported_at": "2026-01-01T00:00:00Z", "tracks": ["t0", "t1"]},
        "images": [{"id": f"i{n}", "width": 100, "height": 50, "frame_index": n} for n in range(3)],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "gun"}],
        "tracks": [
            {"track_tag": f"t{n}", "pending_annotations": 0, "manually_completed": False}
            for n in range(2)
        ],
    }


BODY = json.dumps(export()).encode()
CHECKS: list[Callable[[Path], object]] = [
    lambda path: check_export(path, "b", "complete"),
    lambda path: check_payload(path, "b"),
]
STRUCTURE = st.sampled_from(
    [*(bytes([n]) for n in b'{}[]",:\\0e-'), b"null", b"NaN", b"\xff", b'"id"']
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("payload") / "body"


@pytest.mark.parametrize("check", CHECKS, ids=["workflow", "stand-alone"])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_still_json(
    path: Path, check: Callable[[Path], object], data: st.DataObject
) -> None:
    body = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(start + 20, len(body))))
        body[start:end] = data.draw(st.one_of(STRUCTURE, st.binary(max_size=8)))
    cut = data.draw(st.integers(0, len(body)))  # anywhere, within a character as well
    try:
        _write(path, [bytes(body[:cut]), bytes(body[cut:])])
        check(path)
    except ApiError as error:
        assert str(error).isprintable()
        return
    payload = json.loads(bytes(body), parse_constant=refuse)
    assert payload["info"]["batch_key"] == "b"


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON, and was accepted")


@pytest.mark.parametrize("check", CHECKS, ids=["workflow", "stand-alone"])
@given(length=st.integers(0, len(BODY) - 1))
def test_every_cut_is_a_cut(path: Path, check: Callable[[Path], object], length: int) -> None:
    path.write_bytes(BODY[:length])
    with pytest.raises(TruncatedBodyError):
        check(path)


@given(st.data())
def test_an_accepted_export_refers_to_nothing_that_it_lacks(
    path: Path, data: st.DataObject
) -> None:
    payload = export()
    part = data.draw(st.sampled_from(["images", "annotations", "tracks"]))
    entries = payload[part]
    number = data.draw(st.integers(0, len(entries) - 1))
    change = data.draw(st.sampled_from(["drop", "repeat", "set", "unset", "move"]))
    if change == "drop":
        del entries[number]
    elif change == "repeat":
        entries.append(dict(entries[number]))
    elif change == "move":
        entries.insert(0, entries.pop(number))
    else:
        name = data.draw(st.sampled_from(sorted(entries[number])))
        del entries[number][name]
        if change == "set":
            entries[number][name] = data.draw(JSON_VALUES.filter(lambda v: v == v))
    path.write_text(json.dumps(payload))
    try:
        found = check_export(path, "b", "complete")
    except ApiError as error:
        assert str(error).isprintable()
        return
    images = [image["id"] for image in payload["images"]]
    tags = [track["track_tag"] for track in payload["tracks"]]
    assert len(set(images)) == len(images) and len(set(tags)) == len(tags)
    assert {box["image_id"] for box in payload["annotations"]} <= set(images)
    assert {box["track_tag"] for box in payload["annotations"]} <= set(tags)
    for track in payload["tracks"]:
        assert not track.get("pending_annotations") or track.get("manually_completed")
    counted = (found.images, found.annotations, len(found.track_tags))
    assert counted == (len(images), len(payload["annotations"]), len(tags))
