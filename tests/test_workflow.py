"""The workflow with the real Snakemake against a real server: what is exported, and when."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from export_via_api import export_file_name

from tests.conftest import Workflow
from tests.fault_server import FaultServer, TrackState, mutated, status
from workflow.demo.database import connect
from workflow.demo.edits import apply_edit
from workflow.demo.sample import add_batch
from workflow.demo.server import serving

BATCHES = ("guns_1016205", "tablet4_0001")  # those with something to export


def test_first_run_exports_and_second_does_not(workflow: Workflow, server: FaultServer) -> None:
    said = workflow.run()
    assert (server.count("batches"), server.count("tracks"), server.count("export")) == (1, 3, 3)
    workflow.assert_as_served(*BATCHES)
    empty = json.loads(workflow.published("tattoo2k25"))
    assert empty["info"]["batch_key"] == "tattoo2k25"
    assert all(empty[part] == [] for part in ("images", "annotations", "tracks"))
    assert "guns_1016205 (complete): 2 tracks, 6 annotations" in said
    assert "tattoo2k25 (complete): skipped" in said
    before = workflow.results()

    said = workflow.run()
    assert (server.count("batches"), server.count("tracks"), server.count("export")) == (1, 3, 0)
    assert workflow.results() == before
    assert "up to date     3" in said


STALE_EDITS: dict[str, dict[str, Any]] = {
    "accept": {"reviews": 5},
    "abandon": {"abandoned_from": 1},
    "un-accept": {"pending": 1},
    "class": {"primary_class": "rifle"},
    "person-down": {"person_down": True},
    "complete": {"manually_completed": True},
}


@pytest.mark.parametrize(
    ("arguments", "lose"),
    [
        ((), False),
        (("--workflow-profile", "none"), False),
        (("--rerun-triggers", "mtime"), False),
        ((), True),
    ],
    ids=["default", "no profile", "mtime only", "lost .snakemake"],
)
def test_an_edit_exports_its_batch_alone(
    workflow: Workflow, server: FaultServer, arguments: tuple[str, ...], lose: bool
) -> None:
    server.batches.clear()
    for edit in (*STALE_EDITS, "ingest again", "none"):
        server.add(edit, {"done": TrackState(), "undone": TrackState(pending=2)})
    workflow.run(*arguments)
    if lose:
        shutil.rmtree(workflow.folder / ".snakemake")
    for edit, changes in STALE_EDITS.items():
        server.edit(edit, "undone" if edit == "complete" else "done", **changes)
    server.add("ingest again", {"done": TrackState()})
    server.edit("none", "undone", pending=1, primary_class="rifle")  # still unfinished
    workflow.run(*arguments)
    assert workflow.exported() == sorted([*STALE_EDITS, "ingest again"])
    assert workflow.receipt("un-accept")["empty"]
    workflow.assert_as_served(*(STALE_EDITS.keys() - {"un-accept"}), "ingest again", "none")
    workflow.run(*arguments)
    assert workflow.exported() == []


def test_each_edit_of_the_demo_backend(tmp_path: Path) -> None:
    """The embedded backend behind a relay that counts: nothing but what was edited goes stale."""
    database = tmp_path / "backend.sqlite"
    edits = ("reject", "accept", "abandon", "complete", "class", "person-down", "ingest-again")
    for batch in (*edits, "save-frame", "unfinished"):
        add_batch(database, batch, completed_tracks=1)
    folder = tmp_path / "run"
    folder.mkdir()
    with serving(database) as base_url, FaultServer(upstream=base_url) as relay:
        workflow = Workflow(folder, relay)
        workflow.run()
        assert relay.count("tracks") == relay.count("export") == len(edits) + 2
        with connect(database) as connection:
            for edit in (*edits, "save-frame"):
                value = "rifle" if edit == "class" else None
                apply_edit(connection, edit, edit, "patch_000", value)
            apply_edit(connection, "accept", "unfinished", "patch_002", "0")  # one box of three
        workflow.run()
        assert workflow.exported() == sorted(edits)
        with connect(database) as connection:
            apply_edit(connection, "recover", "abandon", "patch_000")
            apply_edit(connection, "uncomplete", "complete", "patch_000")
        workflow.run()
        assert workflow.exported() == ["abandon", "complete"]


def test_a_dry_run_writes_nothing_and_asks_nothing(workflow: Workflow, server: FaultServer) -> None:
    def files() -> set[Path]:
        # Snakemake keeps folders of its own; none holds anything of the workflow's.
        return {p for p in workflow.folder.rglob("*") if ".snakemake" not in p.parts}

    said = workflow.run("-n")
    assert "fetch manifest" in said
    assert not files()
    assert not server.requests
    workflow.run()
    before = files(), workflow.results()
    workflow.path("tablet4_0001").unlink()
    said = workflow.run("-n")
    assert not server.requests
    assert "download tracks       1" in said
    workflow.run()
    server.edit("guns_1016205", "patch_000", reviews=9)
    for arguments in (("-n",), ("--summary",), ("--dag",)):
        workflow.run(*arguments)
        assert not server.requests, arguments
    assert files() == before[0]
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]


def test_offline_works_with_the_last_manifest(workflow: Workflow, server: FaultServer) -> None:
    offline = ("--config", "refresh=false")
    assert "run once without it" in workflow.run(*offline, expect=1)
    workflow.run()
    server.edit("guns_1016205", "patch_000", reviews=9)
    workflow.run(*offline)
    assert not server.requests
    workflow.run(*offline, "-n")
    workflow.run("-n")
    workflow.path("tablet4_0001").unlink()
    workflow.run(*offline)
    assert (server.count("batches"), server.count("tracks")) == (0, 0)
    assert workflow.exported() == ["tablet4_0001"]
    workflow.run(*offline, "--forceall")
    assert (server.count("batches"), server.count("tracks"), server.count("export")) == (0, 0, 3)
    said = workflow.run(*offline, expect=1, EXPORT_API_BASE="http://127.0.0.1:1/other")
    assert "of another backend" in said
    said = workflow.run("results/guns_1016205_all_tracks.json", *offline, expect=1)
    assert "run without refresh=false" in said


def test_a_file_by_name_costs_one_listing(workflow: Workflow, server: FaultServer) -> None:
    for number in range(100):
        server.add(f"batch_{number:03}")
    for status_filter in ("all", "complete"):
        target = f"results/guns_1016205_{status_filter}_tracks.json"
        said = workflow.run(target)
        assert (server.count("batches"), server.count("tracks")) == (1, 1)
        assert workflow.exported() == ["guns_1016205"]
        workflow.assert_as_served("guns_1016205", status_filter=status_filter)
        assert "exported       1   guns_1016205" in said
        workflow.run(target)
        assert (server.count("tracks"), server.count("export")) == (1, 0)
        for force in (("-f", target), ("-R", "download_tracks", "--", target)):
            workflow.run(*force)
            assert (server.count("tracks"), server.count("export")) == (1, 1)
    server.edit("guns_1016205", "patch_001", pending=1)
    workflow.run(f"./{target}")
    assert server.count("export") == 0
    workflow.run("results/guns_1016205_all_tracks.json", target)
    assert (server.count("tracks"), server.count("export")) == (1, 1)


def test_a_selection_costs_its_listings(workflow: Workflow, server: FaultServer) -> None:
    for number in range(20):
        server.add(f"batch_{number:03}")
    workflow.run(EXPORT_BATCH_KEY="batch_001, guns_1016205")
    assert (server.count("batches"), server.count("tracks")) == (1, 2)
    assert workflow.exported() == ["batch_001", "guns_1016205"]
    workflow.run("--config", "batch_key=batch_001")
    assert (server.count("tracks"), server.count("export")) == (1, 0)
    (workflow.folder / "config").mkdir()
    (workflow.folder / "config/config.yaml").write_text("batch_key: [batch_003]\n")
    workflow.run()
    assert workflow.exported() == ["batch_003"]
    workflow.run("-F", EXPORT_BATCH_KEY="batch_001")
    assert (server.count("tracks"), workflow.exported()) == (1, ["batch_001"])


def test_an_unknown_key_fails_alone(workflow: Workflow, server: FaultServer) -> None:
    said = workflow.run(expect=1, EXPORT_BATCH_KEY="guns_1016205,tabelt4_0001,zzz")
    assert workflow.exported() == ["guns_1016205"]
    assert "has no key 'tabelt4_0001'. Nearest: 'tablet4_0001'" in said
    assert "has no key 'zzz'" in said
    assert sorted(p.name for p in workflow.path("x").parent.glob("*.json")) == [
        "guns_1016205_complete_tracks.json"
    ]
    said = workflow.run("results/gums_1016205_complete_tracks.json", expect=1)
    assert "Nearest: 'guns_1016205'" in said


@pytest.mark.slow
def test_a_batch_gone_from_the_backend_keeps_its_export(
    workflow: Workflow, server: FaultServer
) -> None:
    workflow.run()
    kept = workflow.published("tablet4_0001"), workflow.receipt("tablet4_0001")
    server.remove("tablet4_0001")
    workflow.run()
    assert (workflow.published("tablet4_0001"), workflow.receipt("tablet4_0001")) == kept
    before = workflow.results()
    said = workflow.run("results/tablet4_0001_complete_tracks.json", expect=1)
    assert "has no key 'tablet4_0001'" in said
    assert workflow.results() == before


def test_a_backend_without_batches(workflow: Workflow, server: FaultServer) -> None:
    server.batches.clear()
    for _ in range(2):
        workflow.run()
        assert server.count("batches") == 1
    assert workflow.results() == {}
    server.add("first")
    workflow.run()
    workflow.assert_as_served("first")


def test_nothing_exported_leaves_nothing(workflow: Workflow, server: FaultServer) -> None:
    server.fail("export", status(500, "boom"))
    workflow.run(expect=1)
    workflow.run("results/guns_1016205_complete_tracks.json", expect=1)
    assert not [path for path in workflow.folder.glob("results/**/*") if path.is_file()]


@pytest.mark.slow
def test_a_deleted_file_is_exported_again(workflow: Workflow) -> None:
    workflow.run()
    workflow.path("tablet4_0001").unlink()
    workflow.run()
    assert workflow.exported() == ["tablet4_0001"]
    receipts = workflow.folder / "results/receipts"
    (receipts / "guns_1016205_complete.json").unlink()
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]
    shutil.rmtree(workflow.folder / "resources")
    workflow.run()
    assert server_count(workflow) == 3
    workflow.run("--notemp", "-f", "results/tablet4_0001_complete_tracks.json")
    workflow.run("--notemp", "-f", "results/tablet4_0001_complete_tracks.json")
    assert workflow.exported() == ["tablet4_0001"]


def server_count(workflow: Workflow) -> int:
    return workflow.server.count("export")


@pytest.mark.slow
def test_another_backend_makes_exports_stale(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    with FaultServer() as other:
        other.add("guns_1016205", {"patch_000": TrackState()})
        elsewhere = Workflow(workflow.folder, other)
        elsewhere.run()
        assert elsewhere.exported() == ["guns_1016205"]
        assert workflow.receipt("guns_1016205")["api_base"] == other.base_url
        # A backend with a name is the same at another address.
        elsewhere.run(EXPORT_BACKEND_ID="lab")
        assert elsewhere.exported() == ["guns_1016205"]
        other.stop()
        other.port = 0
        other.start()
        elsewhere.run(EXPORT_BACKEND_ID="lab")
        assert elsewhere.exported() == []


@pytest.mark.slow
def test_settings_of_the_run_do_not_make_exports_stale(workflow: Workflow) -> None:
    workflow.run()
    workflow.run("--cores", "1", EXPORT_REQUEST_TIMEOUT="5", EXPORT_BATCH_KEY="guns_1016205")
    assert workflow.exported() == []
    workflow.run("--config", "request_timeout=7")
    assert workflow.exported() == []


def test_an_updated_script_exports_nothing_again(tmp_path: Path, server: FaultServer) -> None:
    copy = tmp_path / "clone"
    root = Path(__file__).parents[1]
    for name in ("Snakefile", "environment.yml"):
        copy.mkdir(exist_ok=True)
        shutil.copy(root / name, copy / name)
    shutil.copytree(root / "workflow", copy / "workflow", ignore=shutil.ignore_patterns("__*"))
    folder = tmp_path / "run"
    folder.mkdir()

    class Clone(Workflow):
        def command(self, *arguments: str) -> list[str]:
            command = super().command(*arguments)
            command[command.index("--snakefile") + 1] = str(copy / "Snakefile")
            return command

    workflow = Clone(folder, server)
    workflow.run()
    script = copy / "workflow/scripts/download_tracks.py"
    script.write_text(f"{script.read_text()}\n# another version\n")
    workflow.run()
    assert workflow.exported() == []


def test_without_track_listings_the_batch_list_decides(
    workflow: Workflow, server: FaultServer
) -> None:
    server.fail("tracks", status(404, {"detail": "Not Found"}))
    said = workflow.run()
    assert said.count("no track listing for 3 of 3 batches") == 1
    assert "--forceall" in said
    workflow.assert_as_served(*BATCHES)
    workflow.run()
    assert workflow.exported() == []
    server.edit("guns_1016205", "patch_001", manually_completed=True)
    workflow.run()
    assert workflow.exported() == ["guns_1016205"]


def test_without_created_at_or_counts(workflow: Workflow, server: FaultServer) -> None:
    """Older deployments leave fields out."""

    def old(batches: Any) -> None:
        for batch in batches:
            del batch["incomplete_tracks"], batch["created_at"]

    server.fail("batches", mutated(old))
    workflow.run()
    workflow.run()
    assert workflow.exported() == []


HOSTILE = [
    "../x",
    "/abs",
    "a/b",
    "{x}",
    "a b",
    "a,b",
    "-n",
    ".hidden",
    "k" * 300,
    "batch-é-中文-🎥",
    "guns" + "x" * 30,
    "%2F",
    "a%2Fb",
    "x'\"$(id)`;&|<>*?!#",
    "tab\tand\nline",
    "_complete",
    "all",
    "12",
]
IMPOSSIBLE = [".", "..", "", "\ud800"]


def test_hostile_keys(workflow: Workflow, server: FaultServer) -> None:
    server.batches.clear()
    for key in [*HOSTILE, *IMPOSSIBLE]:
        server.add(key)
    outside = sorted(workflow.folder.parent.iterdir())
    said = workflow.run(expect=1)
    assert workflow.exported() == sorted(HOSTILE)
    workflow.assert_as_served(*HOSTILE)
    files = {path.name for path in (workflow.folder / "results").glob("*.json")}
    assert files == {export_file_name(key, "complete") for key in HOSTILE}
    assert sorted(workflow.folder.parent.iterdir()) == outside
    assert "failed         4" in said
    for shown in ("'.'", "'..'", "''", r"'\ud800'"):
        assert f"the batch key {shown} cannot be part of a URL" in said
    workflow.run(expect=1)
    assert workflow.exported() == []
    target = workflow.path("../x").relative_to(workflow.folder)
    workflow.run("-f", str(target))
    assert workflow.exported() == ["../x"]


def test_long_fleet_needs_no_listing_twice(workflow: Workflow, server: FaultServer) -> None:
    for number in range(30):
        server.add(f"batch_{number:03}")
    workflow.run()
    assert server.count("tracks") == 33
    assert server.connections <= 33 + 9  # a connection an export; the manifest keeps its own
    workflow.assert_as_served(*BATCHES, *(f"batch_{number:03}" for number in range(30)))


def test_receipts_tell_what_was_exported(workflow: Workflow, server: FaultServer) -> None:
    workflow.run()
    receipt = workflow.receipt("guns_1016205")
    body = workflow.published("guns_1016205")
    payload = json.loads(body)
    assert receipt["sha256"] == hashlib.sha256(body).hexdigest()
    assert receipt["size"] == len(body)
    assert receipt["exported_at"] == payload["info"]["exported_at"]
    assert (receipt["tracks"], receipt["annotations"]) == (2, len(payload["annotations"]))
    assert receipt["api_base"] == server.base_url
    assert receipt["empty"] == "" and workflow.receipt("tattoo2k25")["empty"]
    assert any("mixed types" in warning for warning in receipt["warnings"])
