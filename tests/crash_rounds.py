"""Break a run off at a random moment, recover, and check that nothing is lost; over and over.

    make crash ROUNDS=200 SEED=1

A round edits batches on the server, lets some answers go wrong, starts a run, sends it (or its
whole process group) a signal at some moment, and checks what is left; perhaps once more; then all
is well again, a plain run has to end with exit code 0, and everything has to be there and be new.
The seed fixes what is done; at which instruction a signal arrives is the machine's affair.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.conftest import Workflow
from tests.fault_server import (
    Fault,
    FaultServer,
    TrackState,
    close,
    cut,
    drip,
    gzipped,
    login_page,
    payload,
    reset,
    status,
)
from tests.invariants import Invariants

BATCHES = 8
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LONGEST = 4.0  # seconds after which a run is over
TOKEN = "cr4sh-t0k3n-0123456789"
FAULTS: dict[str, Fault] = {
    "500": status(500, "boom"),
    "503": status(503, {"detail": "busy"}, Retry_After="1"),
    "404": status(404, {"detail": "Not Found"}),
    "401": status(401, {"detail": "No token"}),
    "login page": login_page(),
    "not JSON": payload(b"nonsense"),
    "empty body": payload(b""),
    "closed": close(),
    "reset": reset(200),
    "cut by length": cut(300),
    "cut by chunks": cut(300, "chunked"),
    "cut by close": cut(300, "close"),
    "cut gzip": gzipped(150),
    "drip": drip(100, 0.02),
}
OPTIONS: tuple[tuple[str, ...], ...] = (
    (),
    (),
    ("--workflow-profile", "none"),
    ("--rerun-triggers", "mtime"),
    ("--forceall",),
    ("results/batch_0_complete_tracks.json",),
    ("repair",),
)


class Rounds:
    """Rounds in one working directory; `figures` counts what was done."""

    def __init__(self, folder: Path, server: FaultServer, seed: int) -> None:
        self.random = random.Random(seed)
        self.server = server
        self.workflow = Workflow(folder, server, {"EXPORT_API_TOKEN": TOKEN})
        self.invariants = Invariants(self.workflow, [TOKEN])
        self.figures: Counter[str] = Counter()
        self.orphans: list[int] = []  # process groups
        for number in range(BATCHES):
            server.add(f"batch_{number}", {f"t{n}": TrackState(pending=n) for n in range(3)})

    def run(self) -> None:
        """Run one round."""
        self.figures["rounds"] += 1
        for _ in range(self.random.choice((1, 1, 2))):
            self.edit()
            self.damage()
            self.break_answers()
            self.crash()
            self.invariants.hold()
        self.server.heal()
        self.recover()

    def edit(self) -> None:
        for _ in range(self.random.randrange(4)):
            key = f"batch_{self.random.randrange(BATCHES)}"
            tag = self.random.choice(("t0", "t1", "t2"))
            kind = self.random.choice(("review", "complete", "uncomplete", "ingest", "remove"))
            if kind == "ingest" or key not in self.server.batches:
                self.server.add(key, {f"t{n}": TrackState(pending=n) for n in range(3)})
            elif kind == "review":
                self.server.edit(key, tag, reviews=self.random.randrange(1000))
            elif kind == "remove":
                self.server.remove(key)
            else:
                self.server.edit(key, tag, manually_completed=kind == "complete")
            self.figures[f"edits: {kind}"] += 1

    def damage(self) -> None:
        """Delete an export by hand now and then."""
        published = sorted(self.invariants.exports())
        if published and self.random.random() < 0.2:
            path = self.random.choice(published)
            path.unlink()
            self.invariants.forget(path)
            self.figures["files deleted by hand"] += 1

    def break_answers(self) -> None:
        self.server.heal()
        for _ in range(self.random.choice((0, 0, 1, 2, 3))):
            name = self.random.choice(sorted(FAULTS))
            kind = self.random.choice(("batches", "tracks", "export", "export"))
            key = self.random.choice([None, *sorted(self.server.batches)])
            batch = None if kind == "batches" else key
            self.server.fail(kind, FAULTS[name], batch, times=self.random.choice((1, 1, 2)))
            self.figures[f"faults on {kind}"] += 1

    def crash(self) -> None:
        """Start a run and break it off, unless it is over before."""
        options = self.random.choice(OPTIONS)
        number = self.random.choice(SIGNALS)
        group = self.random.random() < 0.5
        moment = self.random.uniform(0.1, LONGEST)
        said = self.workflow.folder.parent / f"{self.workflow.folder.name}.said"
        with said.open("wb") as output:
            process = subprocess.Popen(
                self.workflow.command(*options),
                env=self.workflow.environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            process.wait(moment)
            self.figures["runs that were over before"] += 1
        except subprocess.TimeoutExpired:
            (os.killpg if group else os.kill)(process.pid, number)
            self.figures[f"{number.name} to the {'group' if group else 'process'}"] += 1
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"process {process.pid} outlives {number.name}") from None
        assert TOKEN not in said.read_text()
        if self.random.random() < 0.5:
            wait_for_group(process.pid)
        else:  # a killed run's children may live on beside the next run
            self.orphans.append(process.pid)

    def recover(self) -> None:
        if any((self.workflow.folder / ".snakemake/locks").glob("*")):
            self.workflow.run("--unlock")
        if self.random.random() < 0.1:
            shutil.rmtree(self.workflow.folder / ".snakemake", ignore_errors=True)
            self.figures["lost .snakemake"] += 1
        self.workflow.run()
        for group in self.orphans:
            wait_for_group(group)
        self.figures["exports made in recovery"] += self.server.count("export")
        if self.orphans:  # they may have left something after that run cleared up
            self.invariants.hold()
            self.orphans.clear()
            self.workflow.run()
        self.invariants.hold_after_a_clean_run()
        if self.random.random() < 0.2:
            self.workflow.run()
            assert not self.server.count("export"), "a fresh export was downloaded again"
            self.figures["runs without a change"] += 1


def wait_for_group(number: int) -> None:
    """Wait until no process of a group is left."""
    with suppress(ProcessLookupError):
        while True:
            os.killpg(number, 0)
            time.sleep(0.05)


def rounds(folder: Path, seed: int, count: int) -> Counter[str]:
    """Run `count` rounds in a folder and return their figures; raise AssertionError."""
    with FaultServer() as server:
        all_ = Rounds(folder, server, seed)
        for number in range(count):
            try:
                all_.run()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, round {number}, {folder}: {error}") from error
        return all_.figures + Counter(checked=all_.invariants.checked)


def rounds_in_a_folder_of_its_own(seed: int, count: int) -> Counter[str]:
    """Run rounds in a temporary folder, which stays when they fail."""
    folder = Path(tempfile.mkdtemp(prefix="crash-rounds-"))
    print(f"seed {seed}: {folder}", flush=True)
    figures = rounds(folder, seed, count)
    shutil.rmtree(folder, ignore_errors=True)
    return figures


def report(figures: Counter[str]) -> str:
    """Return figures as lines of text."""
    return "\n".join(f"{figures[name]:>8} {name}" for name in sorted(figures))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run rounds, some seeds side by side, and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds side by side")
    options = parser.parse_args(arguments)
    each = -(-options.rounds // options.jobs)
    seeds = range(options.seed, options.seed + options.jobs)
    with ProcessPoolExecutor(options.jobs) as pool:
        total = sum(
            pool.map(rounds_in_a_folder_of_its_own, seeds, [each] * options.jobs), Counter[str]()
        )
    print(report(total))
    print("Nothing was lost, half-written, stale after recovery, or told.")


if __name__ == "__main__":
    main()
