"""Runs the demo backend in a thread of this process, on a real socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from .app import ROOT_PATH, create_app

SHUTDOWN_SECONDS = 5


class _Server(uvicorn.Server):
    """Tells when it accepts connections, and when it ended without ever doing so."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.settled.set()


@contextmanager
def serving(
    database: Path, *, host: str = "127.0.0.1", port: int = 0, verbose: bool = False
) -> Iterator[str]:
    """Serve a demo database for the length of a `with` block.

    Args:
        database: A demo database; a missing one is made with the sample data.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        verbose: Log requests, through `logging` as `uvicorn.access`.

    Yields:
        The base URL, root path included, once connections are accepted.

    Raises:
        NotADatabaseError: The file exists and is something else.
        OSError: The address cannot be listened on.
    """
    app = create_app(database)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        # asyncio does not do so for sockets handed to it; without it each answer takes 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="info" if verbose else "critical",
                access_log=verbose,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        # A daemon: a request that hangs must not keep the process from ending.
        thread = threading.Thread(
            target=server.run, args=([listener],), name="demo-backend", daemon=True
        )
        thread.start()
        try:
            server.settled.wait()
            if not server.started:
                raise OSError(f"the demo backend did not start on {host}")
            name = f"[{host}]" if family == socket.AF_INET6 else host
            yield f"http://{name}:{listener.getsockname()[1]}{ROOT_PATH}"
        finally:
            server.should_exit = True
            thread.join()
