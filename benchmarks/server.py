"""A backend to measure against: any number of batches, any size of payload, any latency.

    python -m benchmarks.server --batches 300 --size 20000 --latency 1

Prints its base URL. It answers the API's three routes from memory; `/requests` answers how many
requests there were since it was last asked, and `/edit/KEY` reviews a track of a batch.
"""

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO

FLOATS = 768  # of an embedding: what makes real payloads large
SMALL = 1 << 22  # bytes up to which payloads are kept in memory
EXPORTED_AT = "2026-01-01T00:00:00+00:00"


def annotation(number: int) -> bytes:
    """Return an annotation as the API sends it, about 15 kB."""
    return _annotation_parts()[0] + b"%024x" % number + _annotation_parts()[1]


@cache
def _annotation_parts() -> tuple[bytes, bytes]:
    entry = {
        "id": 1,
        "annotation_id": "ID",
        "image_id": "image",
        "track_tag": "patch_000",
        "category_id": 1,
        "category_name": "gun",
        "bbox": [100.5, 200.25, 50.5, 80.25],
        "area": 4052.6,
        "status": "accepted",
        "confidence": 0.5,
        "person_down": False,
        "embedding_swin": [-0.03724711554723822] * FLOATS,
        "created_at": "2025-11-20T00:00:00",
        "updated_at": "2025-11-20T00:00:00",
    }
    before, after = json.dumps(entry, separators=(",", ":")).encode().split(b"ID")
    return before, after


def payload(key: str, size: int) -> Iterator[bytes]:
    """Return an export of about so many bytes, piece by piece."""
    image = {"id": "image", "file_name": "f.jpg", "width": 1920, "height": 1080, "frame_index": 0}
    info = {"batch_key": key, "exported_at": EXPORTED_AT, "tracks": ["patch_000"]}
    track = {"track_tag": "patch_000", "primary_class": "gun", "pending_annotations": 0}
    yield f'{{"info":{json.dumps(info)},"images":[{json.dumps(image)}],"annotations":['.encode()
    yield annotation(0)
    for number in range(1, max(1, size // len(annotation(0)))):
        yield b"," + annotation(number)
    yield f'],"categories":[{{"id":1,"name":"gun"}}],"tracks":[{json.dumps(track)}]}}'.encode()


class Backend(ThreadingHTTPServer):
    """The model, and the counts of requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, batches: int, size: int, latency: float) -> None:
        """Begin to listen on a free port of 127.0.0.1."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.latency, self.size = latency, size
        self.reviews: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.batches = [f"batch_{number:05}" for number in range(batches)]
        # Large payloads are all the same file.
        self.large: BinaryIO | None = None
        if size > SMALL:
            self.large = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server
            self.large.writelines(payload(self.batches[0], size))
            self.large.flush()

    def list_batches(self) -> Any:
        """Return the batch list."""
        return [
            {"batch_key": key, "created_at": "2026-01-01T00:00:00", "frame_count": 1}
            for key in self.batches
        ]

    def list_tracks(self, key: str) -> Any:
        """Return a batch's track listing."""
        reviewed = f"2026-01-01T00:00:{self.reviews[key]:02}"
        track = {"track_tag": "patch_000", "pending_annotations": 0, "last_updated_at": reviewed}
        return [track | {"manually_completed": False, "completed": True}]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    server: Backend
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer a request."""
        match self.path.partition("?")[0].strip("/").split("/"):
            case ["batches"]:
                self._count("batches")
                self._answer(json.dumps(self.server.list_batches()).encode())
            case ["batches", key, "tracks"]:
                self._count("tracks")
                self._answer(json.dumps(self.server.list_tracks(key)).encode())
            case ["batches", key, "tracks", "export"]:
                self._count("export")
                time.sleep(self.server.latency)
                self._export(key)
            case ["requests"]:
                with self.server.lock:
                    counted = dict(self.server.requests)
                    self.server.requests.clear()
                self._answer(json.dumps(counted).encode())
            case ["edit", key]:
                self.server.reviews[key] += 1
                self._answer(b"{}")

    def _count(self, kind: str) -> None:
        with self.server.lock:
            self.server.requests[kind] += 1

    def _export(self, key: str) -> None:
        large = self.server.large
        if large is None:
            self._answer(b"".join(payload(key, self.server.size)))
            return
        self._head(large.seek(0, 2))
        self.wfile.flush()
        self.connection.settimeout(None)
        self.connection.sendfile(large, 0)

    def _answer(self, body: bytes) -> None:
        self._head(len(body))
        self.wfile.write(body)

    def _head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="A backend to measure against.")
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--size", type=int, default=20_000, help="bytes of an export, about")
    parser.add_argument("--latency", type=float, default=0, help="seconds before an export")
    options = parser.parse_args()
    backend = Backend(options.batches, options.size, options.latency)
    url = f"http://127.0.0.1:{backend.server_port}"
    print(url, flush=True)
    backend.serve_forever()


if __name__ == "__main__":
    main()
