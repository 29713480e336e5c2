"""What of a downloaded payload is an error, and what is worth a warning."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from export_via_api import ApiError, TruncatedBodyError
from payload_checks import change_warnings, check_export


def payload(**changes: Any) -> dict[str, Any]:
    return {
        "info": {"batch_key": "b", "exported_at": "2026-01-01T00:00:00", "tracks": ["t"]},
        "images": [{"id": "i", "width": 100, "height": 50}],
        "annotations": [
            {"id": 0, "image_id": "i", "track_tag": "t", "bbox": [1, 2, 3, 4.5], "x": [{}]}
        ],
        "categories": [],
        "tracks": [{"track_tag": "t", "pending_annotations": 0, "manually_completed": False}],
    } | changes


def check(tmp_path: Path, body: bytes | dict[str, Any], status_filter: str = "complete") -> Any:
    path = tmp_path / "payload"
    path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    return check_export(path, "b", status_filter)


def test_a_sound_payload(tmp_path: Path) -> None:
    findings = check(tmp_path, payload())
    assert (findings.images, findings.annotations, findings.track_tags) == (1, 1, ("t",))
    assert findings.exported_at == "2026-01-01T00:00:00"
    assert findings.warnings == ()


def test_every_cut_is_found(tmp_path: Path) -> None:
    whole = json.dumps(payload()).encode()
    for length in range(len(whole)):
        with pytest.raises(TruncatedBodyError):
            check(tmp_path, whole[:length])
    with pytest.raises(ApiError):
        check(tmp_path, whole + b"x")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html><title>Sign in</title>", "HTML page titled 'Sign in'"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"info": {"batch_key": "b"}, "images": [NaN]}', "malformed"),
        (b"[]", "not the export"),
        (b'{"x":' * 100_000, "nested"),
        (payload(info={"batch_key": "c"}), "another batch, 'c'"),
        (payload(info={}), "batch_key"),
        (payload(tracks=[]), "track_tag 't'"),
        (payload(images=[]), "image_id 'i'"),
        (payload(images=[{"id": "i"}, {"id": "i"}]), "image id 'i' is there twice"),
        (payload(annotations=[{"image_id": None, "track_tag": "t"}]), "image_id"),
    ],
)
def test_errors(tmp_path: Path, body: bytes | dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words):
        check(tmp_path, body)


def test_pending_tracks_belong_only_into_all(tmp_path: Path) -> None:
    track = {"track_tag": "t", "pending_annotations": 2, "manually_completed": False}
    with pytest.raises(ApiError, match="2 pending"):
        check(tmp_path, payload(tracks=[track]))
    check(tmp_path, payload(tracks=[track]), "all")
    check(tmp_path, payload(tracks=[track | {"manually_completed": True}]))
    check(tmp_path, payload(tracks=[{"track_tag": "t"}]))


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([0, 0, 0, 0], "1 boxes without area"),
        ([5, 5, -1, 3], "1 boxes without area"),
        (None, "1 malformed boxes"),
        ([1, 2, 3], "1 malformed boxes"),
        ([1, 2, 3, "4"], "1 malformed boxes"),
        ([1, 2, 3, True], "1 malformed boxes"),
        ([90, 10, 20, 5], "1 boxes that reach outside"),
        ([-5, 10, 20, 5], "1 boxes that reach outside"),
        ([10, 45, 5, 6.5], "1 boxes that reach outside"),
        ([-0.5, 0, 101, 50], None),
    ],
)
def test_boxes(tmp_path: Path, box: object, words: str | None) -> None:
    annotation = {"id": 1, "image_id": "i", "track_tag": "t", "bbox": box}
    warnings = check(tmp_path, payload(annotations=[annotation])).warnings
    assert [w.startswith(words or "") for w in warnings] == ([True] if words else [])


def test_tracks_and_ids(tmp_path: Path) -> None:
    box = {"image_id": "i", "track_tag": "t", "bbox": [1, 1, 2, 2]}
    twice = check(tmp_path, payload(annotations=[{"id": 1} | box, {"id": "x"} | box])).warnings
    assert "annotation ids of mixed types (int, str)" in twice
    assert "1 times the same track twice in one image" in twice
    assert check(tmp_path, payload(annotations=[])).warnings == (
        "1 tracks without annotations (first: 't')",
    )


def test_changes() -> None:
    assert change_warnings(["a"], ["a"], 1) == []
    assert change_warnings(["a"], None, None) == []
    (other,) = change_warnings(["a", "b"], ["a", "c", "d"], 3)
    assert "1 more, 2 fewer" in other
    assert change_warnings(["a"], None, 3) == ["1 tracks, where the last export had 3"]
    assert change_warnings([], [], 2) == ["0 tracks, where the last export had 2"]


def test_memory_does_not_grow_with_embeddings(tmp_path: Path) -> None:
    """64 MB of floats that are skipped must not be held."""
    floats = ",".join(["0.123456789"] * 5000)
    box = '{"id":%d,"image_id":"i","track_tag":"t","bbox":[1,1,2,2],"embedding_swin":[%s]}'
    path = tmp_path / "large"
    sound = json.dumps(payload(annotations=[])).replace(
        '"annotations": []',
        f'"annotations": [{",".join(box % (n, floats) for n in range(1000))}]',
    )
    path.write_text(sound)
    assert path.stat().st_size > 50_000_000
    script = (
        "import sys, pathlib, payload_checks\n"
        "def anonymous():\n"
        "    text = pathlib.Path('/proc/self/status').read_text()\n"
        "    return int(text.split('RssAnon:')[1].split()[0])\n"
        "before = anonymous()\n"
        "payload_checks.check_export(pathlib.Path(sys.argv[1]), 'b', 'complete')\n"
        "print(anonymous() - before)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells a process's anonymous memory")
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=Path(__file__).parents[1] / "workflow/scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 10_000  # kB
