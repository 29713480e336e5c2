"""Another workflow includes this one as a module, as README.md shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fault_server import FaultServer, TrackState

pytestmark = pytest.mark.slow


def snippet() -> str:
    """Return the README's example, with the path of this clone."""
    text = (ROOT / "README.md").read_text()
    (found,) = re.findall(
        r"\n    configfile: [^\n]*\n\n    module exports:\n.*?(?=\n\S)", text, flags=re.S
    )
    return "\n".join(line[4:] for line in found.splitlines()).replace(
        "auto-labeler-export/Snakefile", str(ROOT / "Snakefile")
    )


class Outer:
    """A workflow that uses the exports of one backend or several."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "Snakefile").write_text(text)

    def run(self, *arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
            cwd=self.folder,
            env={k: v for k, v in os.environ.items() if not k.startswith("EXPORT_")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def text(self, path: str) -> str:
        return (self.folder / path).read_text()


def test_the_readmes_example(server: FaultServer, tmp_path: Path) -> None:
    outer = Outer(tmp_path / "outer", snippet())
    (outer.folder / "config.yaml").write_text(f"exports:\n  api_base: {server.base_url}\n")
    outer.run()
    export = "exports/results/guns_1016205_complete_tracks.json"
    assert outer.text(export).encode() == server.bodies["guns_1016205", "complete"]
    made = outer.text("model.txt")
    assert server.count("export") == 1

    outer.run("--dry-run")
    server.reset()
    outer.run()
    assert (server.count("batches"), server.count("export")) == (1, 0)

    server.edit("guns_1016205", "patch_000", reviews=5)
    server.edit("guns_1016205", "patch_001", manually_completed=True)
    outer.run()
    assert server.count("export") == 1
    assert outer.text("model.txt") != made

    # The module's own targets, under its name.
    outer.run("exports_all")
    assert len(list((outer.folder / "exports/results").glob("*_tracks.json"))) == 3
    assert "tablet4_0001" in outer.text("exports/results/summary.tsv")
    assert {path.name for path in outer.folder.iterdir()} == {
        *(".snakemake", "Snakefile", "config.yaml", "exports", "model.txt"),
    }


def test_two_backends(tmp_path: Path) -> None:
    with FaultServer() as first, FaultServer() as second:
        text = []
        for name, backend in (("one", first), ("two", second)):
            backend.add("guns", {name: TrackState()})
            text.append(
                f"""
module {name}:
    snakefile: {str(ROOT / "Snakefile")!r}
    config: {{"api_base": {backend.base_url!r}, "batch_key": "guns"}}
    prefix: {name!r}

use rule * from {name} as {name}_*
"""
            )
        targets = [f"{name}/results/coco/guns_complete.json" for name in ("one", "two")]
        text.append(f"\nrule both:\n    default_target: True\n    input: {targets!r}\n")
        outer = Outer(tmp_path / "outer", "\n".join(text))
        outer.run()
        assert '"track_tag":"one"' in outer.text(targets[0])
        assert '"track_tag":"two"' in outer.text(targets[1])


def test_a_modules_bad_configuration(server: FaultServer, tmp_path: Path) -> None:
    outer = Outer(tmp_path / "outer", snippet())
    (outer.folder / "config.yaml").write_text("exports:\n  status_filter: some\n")
    assert "status_filter is 'some': it must be complete or all" in outer.run(expect=1)
