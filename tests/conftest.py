"""A backend to export from, and a working directory to run the workflow in."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from export_via_api import export_file_name

from tests.fault_server import FaultServer, TrackState

ROOT = Path(__file__).parents[1]
SUMMARY = ("summary.tsv", "SHA256SUMS", "report.html")


@dataclass
class Workflow:
    """Runs the real Snakemake in a folder of its own against a server."""

    folder: Path
    server: FaultServer
    environ: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        snakefile = str(ROOT / "Snakefile")
        options = ["--snakefile", snakefile, "--directory", str(self.folder), "--cores", "4"]
        return [sys.executable, "-m", "snakemake", *options, *arguments]

    def environment(self, **environ: str) -> dict[str, str]:
        plain = {k: v for k, v in os.environ.items() if not k.startswith("EXPORT_")}
        base = {"EXPORT_API_BASE": self.server.base_url, "COLUMNS": "200"}
        return plain | base | self.environ | environ

    def run(self, *arguments: str, expect: int = 0, **environ: str) -> str:
        """Run Snakemake, counting requests from here on; return what it printed."""
        self.server.reset()
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(**environ),
            capture_output=True,
            text=True,
            timeout=120,
        )
        said = done.stdout + done.stderr
        assert done.returncode == expect, said
        assert "Traceback" not in said, said
        return said

    def path(self, batch_key: str, status_filter: str = "complete") -> Path:
        return self.folder / "results" / export_file_name(batch_key, status_filter)

    def published(self, batch_key: str, status_filter: str = "complete") -> bytes:
        return self.path(batch_key, status_filter).read_bytes()

    def receipt(self, batch_key: str, status_filter: str = "complete") -> dict[str, Any]:
        name = self.path(batch_key, status_filter).name.replace("_tracks.json", ".json")
        receipt: dict[str, Any] = json.loads(
            (self.folder / "results" / "receipts" / name).read_text()
        )
        return receipt

    def results(self) -> dict[str, bytes]:
        """Every file under results/, with its content, but for those that sum up."""
        results = self.folder / "results"
        files = [path for path in results.rglob("*") if path.is_file() and path.name not in SUMMARY]
        return {str(path.relative_to(results)): path.read_bytes() for path in files}

    def assert_as_served(self, *batch_keys: str, status_filter: str = "complete") -> None:
        for key in batch_keys:
            assert self.published(key, status_filter) == self.server.bodies[key, status_filter]

    def exported(self) -> list[str]:
        """The batches whose export was asked of the server in the last run, sorted."""
        return sorted(str(request.batch) for request in self.server.asked("export"))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A backend with three batches; nothing in `tattoo2k25` is complete."""
    with FaultServer() as server:
        server.add(
            "guns_1016205",
            {
                "patch_000": TrackState(),
                "patch_001": TrackState(pending=2),
                "patch_002": TrackState(pending=1, manually_completed=True),
            },
        )
        server.add("tattoo2k25", {"patch_000": TrackState(pending=3)})
        server.add("tablet4_0001", {"patch_000": TrackState(), "patch_001": TrackState()})
        yield server


@pytest.fixture
def workflow(tmp_path: Path, server: FaultServer) -> Workflow:
    """The workflow in an empty working directory."""
    folder = tmp_path / "run"
    folder.mkdir()
    return Workflow(folder, server)
