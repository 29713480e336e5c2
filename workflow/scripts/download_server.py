"""Runs downloads in forked copies of a process that has loaded what they need.

To start Python and load an HTTP library takes several times the CPU that a small export does. A run
of many downloads starts one such process, which loads them once and forks for each job: so each
job still has a process of its own. `download_client.py` is the jobs' side.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import download_tracks

SOCKET_VARIABLE = "EXPORT_DOWNLOAD_SOCKET"  # tells the jobs where the server is


class Job(socketserver.StreamRequestHandler):
    """One download, in a forked process: its arguments come; a sign and its exit code go."""

    def handle(self) -> None:
        """Run the job, unless the run or the job's own process ends before."""
        arguments = json.loads(self.rfile.readline())
        self.wfile.write(b"+")
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            download_tracks.main(arguments)
            code: object = 0
        except SystemExit as ended:
            code = ended.code
        self.wfile.write(f"{code or 0}\n".encode())

    def _watch(self) -> None:
        # Neither sends anything more: to become readable is to be closed.
        select.select([self.connection, sys.stdin], [], [])
        os._exit(1)


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Forks for each connection."""

    max_children = 1000  # the workflow limits how many downloads run at once
    request_queue_size = 128


class DownloadServer:
    """A server for the time of a run; it ends when the process that started it does."""

    def __init__(self) -> None:
        """Start it; jobs that begin before it is ready run without it."""
        self._folder = TemporaryDirectory(prefix="export-", ignore_cleanup_errors=True)
        address = Path(self._folder.name, "socket")
        self._process = subprocess.Popen(
            [sys.executable, __file__, address], stdin=subprocess.PIPE, close_fds=True
        )
        os.environ[SOCKET_VARIABLE] = str(address)

    def stop(self) -> None:
        """End it."""
        del os.environ[SOCKET_VARIABLE]
        self._process.communicate()
        self._folder.cleanup()


def main() -> None:
    """Serve until stdin is closed, which is when the run ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        server = Server(sys.argv[1], Job)
    except OSError:  # a temporary folder with a long name, say: jobs run without a server
        return
    with server:
        # One thread alone, as it forks.
        while sys.stdin not in (ready := select.select([server, sys.stdin], [], [], 1)[0]):
            if ready:
                server.handle_request()
            server.service_actions()
        os._exit(0)


if __name__ == "__main__":
    main()
