"""Measure the workflow beside what people use today, in one run: make bench.

Ratios count, not seconds: a table's rows were measured side by side on the same machine.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import requests

from benchmarks.measure import Measured, measure

ROOT = Path(__file__).parents[1]
# What people use today: one batch after another, each payload parsed and written again.
SERIAL = """
import json, requests, sys
base = sys.argv[1]
for batch in requests.get(base + "/batches").json():
    key = batch["batch_key"]
    payload = requests.get(f"{base}/batches/{key}/tracks/export").json()
    with open(f"{key}.json", "w") as file:
        json.dump(payload, file)
"""
CURL = """
curl -sS "$1/batches" | python3 -c '
import json, sys
for batch in json.load(sys.stdin):
    key = batch["batch_key"]
    print(f"url = {sys.argv[1]}/batches/{key}/tracks/export\\noutput = {key}.json")
' "$1" | curl -sS --parallel --parallel-max 4 --config -
"""


class Server:
    """A backend in a process of its own."""

    def __init__(self, base_url: str) -> None:
        """Take its address."""
        self.base_url = base_url

    def requests(self) -> dict[str, int]:
        """Return how many requests there were since this was last called."""
        counted: dict[str, int] = requests.get(f"{self.base_url}/requests").json()
        return counted

    def edit(self, number: int) -> None:
        """Review a track of a batch."""
        requests.get(f"{self.base_url}/edit/batch_{number:05}")


@contextmanager
def serving(batches: int, size: int = 20_000, latency: float = 0) -> Iterator[Server]:
    """Run a backend."""
    options = ["--batches", str(batches), "--size", str(size), "--latency", str(latency)]
    command = [sys.executable, "-m", "benchmarks.server", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Server(process.stdout.readline().strip())
        finally:
            process.kill()


def workflow(server: Server, folder: Path, *options: str) -> Measured:
    """Run the workflow in a folder."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    settings = {"EXPORT_API_BASE": server.base_url}
    return measure([*command, "--cores", "4", *options], folder, settings)


class Table:
    """Rows of one comparison, printed as they come."""

    def __init__(self, title: str, unit: str = "first row") -> None:
        """Print the head."""
        self._first: float | None = None
        print(f"\n{title}\n")
        heads = ("wall s", f"x {unit}", "CPU s", "CPU s/batch", "memory MB", "requests")
        print(f"{'':36}" + "".join(f"{head:>13}" for head in heads))

    def row(self, what: str, took: Measured, batches: int, made: dict[str, int]) -> Measured:
        """Print a row, and return what it measured."""
        self._first = self._first or took.wall
        counted = "+".join(str(made.get(kind, 0)) for kind in ("batches", "tracks", "export"))
        print(
            f"{what:36}{took.wall:13.2f}{took.wall / self._first:13.2f}{took.cpu:13.2f}"
            f"{took.cpu / batches:13.3f}{took.memory:13.0f}{counted:>13}",
            flush=True,
        )
        return took


def median(runs: Sequence[Measured]) -> Measured:
    """Return the run whose wall time is the median."""
    wall = statistics.median_low(run.wall for run in runs)
    return next(run for run in runs if run.wall == wall)


def several(
    times: int, run: Callable[[], Measured], server: Server
) -> tuple[Measured, dict[str, int]]:
    """Run something several times; return the median run, and one run's requests."""
    server.requests()
    runs = [run()]
    made = server.requests()
    runs += [run() for _ in range(times - 1)]
    server.requests()
    return median(runs), made


def first_exports(folder: Path, batches: int, latency: float) -> None:
    """Compare first exports of small batches."""
    table = Table(f"First export of {batches} batches of 20 kB, {latency:g} s of server latency")
    limit = batches * latency / 4
    with serving(batches, latency=latency) as server:
        for name, command in {
            "curl, four in parallel": ["bash", "-c", CURL, "curl", server.base_url],
            "serial requests.get + json.dump": [sys.executable, "-c", SERIAL, server.base_url],
        }.items():
            if latency and "serial" in name:
                continue  # batches times latency: nothing to learn
            work = fresh(folder / "first")
            table.row(name, measure(command, work), batches, server.requests())
        took = table.row("this workflow", workflow(server, fresh(folder / "first")), batches, {})
        assert server.requests()["export"] == batches
        if limit:
            print(
                f"limit (batches x latency / 4): {limit:.1f} s; {took.wall / limit:.2f} times that"
            )


def fleets(folder: Path, sizes: Sequence[int], times: int) -> None:
    """Compare first exports, runs without a change, and with three, of fleets of all sizes."""
    table = Table("Fleets of batches of 20 kB (requests: batch lists + listings + exports)")
    for batches in sizes:
        with serving(batches) as server:
            fleet(table, fresh(folder / "fleet"), server, batches, times)


def fleet(table: Table, work: Path, server: Server, batches: int, times: int) -> None:
    """Measure one fleet."""
    first = workflow(server, work)
    table.row(f"{batches} batches, first export", first, batches, server.requests())
    idle, made = several(times, lambda: workflow(server, work), server)
    table.row(f"{batches} batches, no change", idle, batches, made)

    def change_three() -> Measured:
        for number in (0, batches // 2, batches - 1):
            server.edit(number)
        return workflow(server, work)

    changed, made = several(times, change_three, server)
    table.row(f"{batches} batches, three changed", changed, batches, made)
    print(f"{'':36}three changed / no change: {changed.wall / idle.wall:.2f}")


def large(folder: Path, size: int) -> None:
    """Compare one large export with curl."""
    table = Table(f"One payload of {size / 1e9:g} GB", "curl")
    work = fresh(folder / "large")
    with serving(1, size=size) as server:
        url = f"{server.base_url}/batches/batch_00000/tracks/export"
        curl = ["curl", "-sS", "-o", "curl.json", url]
        measure(curl, work)  # the server's file is in memory now
        (work / "curl.json").unlink()
        table.row("curl -o", measure(curl, work), 1, server.requests())
        (work / "curl.json").unlink()
        stand_alone = [sys.executable, str(ROOT / "workflow/scripts/export_via_api.py")]
        settings = {"EXPORT_API_BASE": server.base_url}
        took = measure(stand_alone, fresh(folder / "large"), settings)
        table.row("export_via_api.py", took, 1, server.requests())
        work = fresh(folder / "large")
        idle = workflow(server, work, "status")
        table.row("this workflow, status alone", idle, 1, server.requests())
        took = workflow(server, work)
        table.row("this workflow, all in all", took, 1, server.requests())
        table.row("this workflow, the download", download_of(work, took), 1, {})


def download_of(work: Path, run: Measured) -> Measured:
    """Return how long the download, with its checks, took within a run."""
    receipt = json.loads((work / "results/receipts/batch_00000_complete.json").read_text())
    began, ended = (
        datetime.fromisoformat(receipt[f"{what}_at"]) for what in ("started", "finished")
    )
    return Measured((ended - began).total_seconds(), run.cpu, run.memory, "")


def fresh(folder: Path) -> Path:
    """Return an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleets", type=int, nargs="*", default=[10, 100, 1000], metavar="N")
    parser.add_argument("--batches", type=int, default=300, help="of a first export")
    parser.add_argument("--latency", type=float, default=1, help="seconds; 0 leaves it out")
    parser.add_argument("--size", type=float, default=1e9, help="bytes of the large payload")
    parser.add_argument("--times", type=int, default=3, help="runs that a median is taken of")
    options = parser.parse_args()
    os.environ.pop("EXPORT_BATCH_KEY", None)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if options.batches:
            first_exports(Path(folder), options.batches, 0)
            if options.latency:
                first_exports(Path(folder), options.batches, options.latency)
        if options.size:
            large(Path(folder), int(options.size))
        if options.fleets:
            fleets(Path(folder), options.fleets, options.times)


if __name__ == "__main__":
    main()
