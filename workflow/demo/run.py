"""What `make demo`, `make demo-backend` and `make demo-stop` do.

The demonstration keeps to `.demo/`, apart from real exports: the backend's database, and the
workflow's working directory with its results.
"""

import argparse
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from .database import connect
from .reads import list_tracks
from .server import serving

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(".demo")
DATABASE = FOLDER / "backend.sqlite"
URL_FILE = FOLDER / "backend.url"
PID_FILE = FOLDER / "backend.pid"
LOG_FILE = FOLDER / "backend.log"
EDITED_BATCH = "guns_1016205"
# The backend's port is another each time, and yet it is the same backend.
BACKEND_ID = "demo"


def main() -> int:
    """Run the demonstration; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workflow.demo.run", description=__doc__)
    parser.add_argument("--leave-running", action="store_true", help="only start the backend")
    parser.add_argument("--stop", action="store_true", help="stop a backend that was left running")
    options = parser.parse_args()
    os.chdir(REPOSITORY)
    FOLDER.mkdir(exist_ok=True)
    if options.stop:
        return stop_backend()
    if options.leave_running:
        return leave_backend_running()
    return run_demo()


def run_demo() -> int:
    """Serve the backend, export from it, stop it, and say what to look at."""
    with serving(DATABASE) as base_url:
        print(f"Demo backend at {base_url}", flush=True)
        unlock()
        run = subprocess.Popen(snakemake("--cores", "4"), env=environment(base_url))
        try:
            code = run.wait()
        except KeyboardInterrupt:  # it reached Snakemake too: let it end in order
            code = run.wait()
        example = unfinished_track()
    if code == 0:
        print(
            f"""
What to look at:
  {FOLDER}/results/report.html  what is exported, in a browser; summary.tsv has it as a table
  {FOLDER}/results/            one JSON file a batch; receipts/ says what is in each
  .venv/bin/python -m workflow.demo list       the batches and how far their review is

What to try: review a track as a reviewer would, then export again. One batch is made again.
  .venv/bin/python -m workflow.demo edit complete {EDITED_BATCH} {example}
  make demo"""
        )
    return code


def leave_backend_running() -> int:
    """Start the backend in the background, unless it runs, and print commands to try."""
    base_url = running_backend()
    if not base_url:
        serve = [sys.executable, "-m", "workflow.demo", "serve", "--url-file", str(URL_FILE)]
        with LOG_FILE.open("wb") as log:
            backend = subprocess.Popen(
                serve,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert backend.stdout is not None
        base_url = backend.stdout.readline().decode().strip()
        if not base_url:
            print(f"The demo backend did not start; see {LOG_FILE}.", file=sys.stderr)
            return 1
        PID_FILE.write_text(f"{backend.pid}\n")
    unlock()
    print(
        f"""The demo backend is running at {base_url}

Export everything, again, one file, and see what would be made:
  export EXPORT_API_BASE={base_url} EXPORT_BACKEND_ID={BACKEND_ID}
  .venv/bin/snakemake --directory {FOLDER} --cores 4
  .venv/bin/snakemake --directory {FOLDER} --cores 1 results/{EDITED_BATCH}_all_tracks.json
  .venv/bin/snakemake --directory {FOLDER} --cores 1 status
  .venv/bin/snakemake --directory {FOLDER} -n

Review a track, then export again:
  .venv/bin/python -m workflow.demo list
  .venv/bin/python -m workflow.demo edit complete {EDITED_BATCH} {unfinished_track()}

Stop it:
  make demo-stop""",
        flush=True,
    )
    return 0


def stop_backend() -> int:
    """Stop a backend that was left running."""
    if running_backend() and PID_FILE.exists():
        os.kill(int(PID_FILE.read_text()), signal.SIGTERM)
        print("The demo backend is stopped.")
    else:
        print("No demo backend is running.")
    PID_FILE.unlink(missing_ok=True)
    return 0


def running_backend() -> str:
    """Return the base URL of the backend that was left running; empty when there is none."""
    try:
        base_url = URL_FILE.read_text().strip()
        # Without proxies: it is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{base_url}/health", timeout=5):
            return base_url
    except (OSError, ValueError):
        return ""


def snakemake(*arguments: str) -> list[str]:
    """Return the command that runs the workflow in the demonstration's folder."""
    return [sys.executable, "-m", "snakemake", "--directory", str(FOLDER), *arguments]


def environment(base_url: str) -> dict[str, str]:
    """Return the environment without settings that are meant for real exports."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("EXPORT_")}
    return plain | {"EXPORT_API_BASE": base_url, "EXPORT_BACKEND_ID": BACKEND_ID}


def unlock() -> None:
    """Remove the lock of a demonstration that was killed."""
    locks = FOLDER / ".snakemake" / "locks"
    if locks.is_dir() and any(locks.iterdir()):
        subprocess.run(snakemake("--unlock"), check=True, capture_output=True)


def unfinished_track() -> str:
    """Return a track of the example batch that a reviewer could complete."""
    with connect(DATABASE) as connection:
        tracks = list_tracks(connection, EDITED_BATCH)
    tags = sorted(str(track["track_tag"]) for track in tracks if not track["completed"])
    return tags[0] if tags else sorted(str(track["track_tag"]) for track in tracks)[0]


if __name__ == "__main__":
    sys.exit(main())
