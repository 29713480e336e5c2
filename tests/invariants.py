"""What must hold of a working directory after anything that can happen to a run."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.conftest import Workflow

ARRAYS = ("images", "annotations", "tracks")


class Invariants:
    """Checks a workflow's folder against what its server sent.

    `hold` may be called at any moment, while a run is broken off too; `hold_after_a_clean_run` when
    a run has ended with exit code 0 and nothing was edited since it began. Both raise
    AssertionError. `checked` counts the files that were looked at.
    """

    def __init__(self, workflow: Workflow, secrets: Iterable[str] = ()) -> None:
        self.workflow = workflow
        self.secrets = [secret.encode() for secret in secrets]
        self.published: set[Path] = set()
        self.checked = 0

    def exports(self) -> set[Path]:
        return set((self.workflow.folder / "results").glob("*_tracks.json"))

    def forget(self, path: Path) -> None:
        """Take a file out that was deleted by hand."""
        self.published.discard(path)

    def hold(self) -> None:
        """Nothing is lost or half-written, and no secret is told."""
        found = self.exports()
        assert self.published <= found, f"lost: {self.published - found}"
        self.published = found
        for path in found:
            self.checked += 1
            body = path.read_bytes()
            whole = hashlib.sha256(body).hexdigest() in self.workflow.server.sent
            assert whole or is_empty(body), f"{path.name} is nothing that the server sent whole"
        for path in self.workflow.folder.rglob("*"):
            if self.secrets and path.is_file():
                content = path.read_bytes()
                assert not any(secret in content for secret in self.secrets), path

    def hold_after_a_clean_run(self, status_filter: str = "complete") -> None:
        """Besides: nothing is missing or stale, nothing is left over, and the records agree."""
        self.hold()
        for key in self.workflow.server.batches:
            body = self.workflow.published(key, status_filter)
            receipt = self.workflow.receipt(key, status_filter)
            assert receipt["sha256"] == hashlib.sha256(body).hexdigest(), key
            assert receipt["size"] == len(body), key
            assert content(json.loads(body)) == self.newest(key, status_filter), f"{key} is stale"
        results = self.workflow.folder / "results"
        sums = dict(line.split("  ")[::-1] for line in (results / "SHA256SUMS").open())
        for path in self.exports():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert sums[f"{path.name}\n"] == digest, path
        left = [*results.glob(".staging/*"), *self.workflow.folder.rglob("*.part")]
        assert not left, left

    def newest(self, key: str, status_filter: str) -> Any:
        """Return what an export would hold now."""
        answer = self.workflow.server.export_of(key, status_filter)
        return content(json.loads(answer.body)) if answer.status == 200 else EMPTY


def is_empty(body: bytes) -> bool:
    payload = json.loads(body)
    return not any(payload[part] for part in ARRAYS)


def content(payload: Any) -> Any:
    """Return what does not differ between two exports of the same state, in one order."""
    drop = {"images": ("frame_version",), "annotations": ("id",), "tracks": ()}
    return [
        sorted(
            json.dumps({k: v for k, v in entry.items() if k not in drop[part]}) for entry in all_
        )
        for part in ARRAYS
        for all_ in [payload[part]]
    ]


EMPTY: list[list[str]] = [[], [], []]
