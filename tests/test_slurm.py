"""The Slurm profile, on a real Slurm of one node."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Workflow
from tests.fault_server import FaultServer, status
from tests.slurm_cluster import SlurmCluster, missing

PLUGIN = Path(sys.prefix, "slurm")  # where `make test-all` puts it

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


class OnSlurm(Workflow):
    """Runs the workflow on a cluster without accounting."""

    def command(self, *arguments: str) -> list[str]:
        profile = ["--workflow-profile", str(ROOT / "profiles/slurm")]
        options = ["--slurm-status-command", "squeue", "--slurm-no-account"]
        options += ["--slurm-init-seconds-before-status-checks", "1"]
        options += ["--seconds-between-status-checks", "1"]
        command = super().command(*profile, *options, *arguments)
        cores = command.index("--cores")
        return command[:cores] + command[cores + 2 :]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[SlurmCluster]:
    if why := missing():
        pytest.skip(f"no Slurm: {why}")
    if not PLUGIN.is_dir():
        pytest.skip("no Slurm plugin: make test-all installs it")
    with SlurmCluster(tmp_path / "slurm") as cluster:
        yield cluster


def test_exports_on_slurm(cluster: SlurmCluster, server: FaultServer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    workflow = OnSlurm(folder, server, {**cluster.environ, "PYTHONPATH": str(PLUGIN)})
    server.fail("export", status(500, "boom"), batch="guns_1016205")

    def cluster_jobs() -> int:
        return len(list((folder / ".snakemake/slurm_logs").rglob("*.log")))

    # One bad batch does not stop those that the same cluster job carries.
    keep_logs = "--slurm-keep-successful-logs"
    said = workflow.run(keep_logs, expect=1)
    assert "guns_1016205: GET /batches/guns_1016205/tracks/export: server error 500: boom" in said
    workflow.assert_as_served("tablet4_0001")
    assert workflow.receipt("tattoo2k25")["empty"]
    assert cluster_jobs() == 1, cluster.logs()

    server.heal()
    workflow.run(keep_logs, "--config", "formats=coco,mot,tables")
    assert workflow.exported() == ["guns_1016205"]
    workflow.assert_as_served("guns_1016205", "tablet4_0001")
    assert len(list((folder / "results/coco").iterdir())) == 3
    assert cluster_jobs() == 3  # a download, and a job that carries all nine conversions

    workflow.run()
    assert (server.count("batches"), server.count("tracks"), server.count("export")) == (1, 3, 0)
    assert cluster_jobs() == 3
