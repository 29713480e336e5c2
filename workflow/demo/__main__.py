"""The demo backend's command line: serve it, edit as a reviewer would, list what is there."""

import argparse
import ctypes
import logging
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from .database import DemoError, connect
from .edits import EDITS, NO_TRACK, apply_edit
from .table import batch_table

USAGE_ERROR = 2
PR_SET_PDEATHSIG = 1  # From linux/prctl.h.


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 2 for what it cannot do."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            _serve(options)
        elif options.command == "edit":
            _edit(options)
        else:
            _list(options)
    except (DemoError, OSError, sqlite3.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT, which end the process with exit code 0."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)
    if options.die_with_parent:
        _die_with(parent)
    if options.verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # Here, and not above: it takes most of a second that the other commands need not spend,
    # and the signals are cared for by now.
    from .server import serving

    if options.url_file is not None:
        options.url_file.unlink(missing_ok=True)
    try:
        with serving(
            options.database, host=options.host, port=options.port, verbose=options.verbose
        ) as base_url:
            if options.url_file is not None:
                _write_atomically(options.url_file, f"{base_url}\n")
            print(base_url, flush=True)
            threading.Event().wait()
    finally:
        if options.url_file is not None:
            options.url_file.unlink(missing_ok=True)


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal must not interrupt the end that the first one began.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(0)


def _die_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent's thread that started this one ends.

    Linux alone can; elsewhere this does nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # It ended before the kernel was told.
            raise SystemExit(0)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _edit(options: argparse.Namespace) -> None:
    with connect(options.database) as connection:
        result = apply_edit(connection, options.edit, options.batch, options.track, options.value)
    where = [result.batch_key, result.track_tag]
    if result.track_tag == NO_TRACK:
        where.pop()
    print(f"{' '.join(where)}: {result.summary}")


def _list(options: argparse.Namespace) -> None:
    with connect(options.database) as connection:
        print(batch_table(connection))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workflow.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    serve = commands.add_parser("serve", help="serve the API until SIGTERM or Ctrl-C")
    serve.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument(
        "--url-file", type=Path, help="file to hold the base URL while connections are accepted"
    )
    serve.add_argument("--verbose", action="store_true", help="log requests to stderr")
    serve.add_argument(
        "--die-with-parent", action="store_true", help="end when the parent does (Linux)"
    )

    edit = commands.add_parser("edit", help="apply a reviewer's edit, server running or not")
    edit.add_argument("edit", metavar="EDIT", help=", ".join(EDITS))
    edit.add_argument("batch", metavar="BATCH", help="batch key")
    edit.add_argument(
        "track", metavar="TRACK", nargs="?", default=NO_TRACK, help="track tag (not ingest-again)"
    )
    edit.add_argument(
        "value", metavar="VALUE", nargs="?", help="a frame index, a class name, on or off"
    )

    show = commands.add_parser("list", help="show batches, tracks and how far their review is")
    for command in (serve, edit, show):
        command.add_argument(
            "--database",
            type=Path,
            default=Path(".demo", "backend.sqlite"),
            help="SQLite file (default: %(default)s); serve makes a missing one, with sample data",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
