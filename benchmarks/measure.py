"""Run a command and measure it: wall time, CPU time of all its processes, peak anonymous memory."""

import dataclasses
import os
import resource
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a command took; times in seconds, memory in MB.

    `memory` is the largest anonymous memory (what is neither a file's nor shared) that one of its
    processes had: Linux alone tells it.
    """

    wall: float
    cpu: float
    memory: float
    output: str


def measure(
    command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None
) -> Measured:
    """Run a command in a folder; raise when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = _now()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = [0.0]
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, done, peak))
    watcher.start()
    output, _ = process.communicate()
    wall = _now() - started
    done.set()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{output}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(wall, cpu, peak[0], output)


def _now() -> float:
    return os.times().elapsed


def _watch(pid: int, done: threading.Event, peak: list[float]) -> None:
    while not done.wait(0.1):
        try:
            root = psutil.Process(pid)
            processes = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        peak[0] = max([peak[0], *(_anonymous(process.pid) for process in processes)])


def _anonymous(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1000
    except (OSError, IndexError):
        return 0.0
