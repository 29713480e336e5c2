"""Has a download run by the run's download server, or runs it itself where there is none.

The command of the rule `download_tracks`; see download_server.py. It loads next to nothing: to do
so is its purpose.
"""

import json
import os
import socket
import sys


def main() -> int:
    """Return the download's exit code."""
    script = os.path.join(os.path.dirname(__file__), "download_tracks.py")  # noqa: PTH118,PTH120
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ["EXPORT_DOWNLOAD_SOCKET"])
        except (OSError, KeyError):
            os.execv(sys.executable, [sys.executable, script, *sys.argv[1:]])  # noqa: S606
        connection.sendall(json.dumps(sys.argv[1:]).encode() + b"\n")
        return int(connection.recv(16) or 1)


if __name__ == "__main__":
    sys.exit(main())
