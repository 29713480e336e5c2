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
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ["EXPORT_DOWNLOAD_SOCKET"])
            connection.sendall(json.dumps(sys.argv[1:]).encode() + b"\n")
            begun = connection.recv(1)
        except (OSError, KeyError):
            begun = b""
        if not begun:  # no server, or it ended before it came to this
            script = os.path.join(os.path.dirname(__file__), "download_tracks.py")  # noqa: PTH118,PTH120
            os.execv(sys.executable, [sys.executable, script, *sys.argv[1:]])  # noqa: S606
        code = connection.recv(16)
        if not code:
            print("Error: the download was killed: run again.", file=sys.stderr)
        return int(code or 1)


if __name__ == "__main__":
    sys.exit(main())
