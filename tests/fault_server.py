"""An HTTP server on 127.0.0.1 that answers as the Auto Labeler's API does, until told otherwise.

    with FaultServer() as server:
        server.add("guns", {"person": TrackState(), "gun": TrackState(pending=2)})
        server.fail("export", batch="guns", fault=cut(100), times=2)
        ...  # point a client at server.base_url
        assert server.count("export") == 3

Without a fault it answers from the small model in `batches`, or relays to `upstream`, byte for
byte. A fault is a function that is given an `Exchange` (one request with its sound answer) and
puts what it likes on the wire.
"""

import gzip
import hashlib
import http.client
import json
import random
import re
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, BinaryIO, Self
from urllib.parse import parse_qsl, unquote, urlsplit

ROOT_PATH = "/dataset-curation/auto-labeler-labeler/api"
JSON_TYPE = {"Content-Type": "application/json"}
ROUTES = {1: "batches", 3: "tracks", 4: "export"}  # by the number of path segments
PATTERN = ("batches", None, "tracks", "export")


@dataclass(frozen=True)
class Request:
    """A request as it came: `raw_path` as on the wire, the rest decoded."""

    method: str
    raw_path: str
    segments: tuple[str, ...]  # of the path below the root path, each decoded
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case

    @property
    def route(self) -> str:
        """The decoded path below the root path, without the query."""
        return "/" + "/".join(self.segments)

    @property
    def kind(self) -> str:
        """What is asked for: `batches`, `tracks`, `export` or `other`."""
        fits = all(part in (None, have) for part, have in zip(PATTERN, self.segments, strict=False))
        return ROUTES.get(len(self.segments), "other") if fits else "other"

    @property
    def batch(self) -> str | None:
        return None if self.kind in ("batches", "other") else self.segments[1]

    @property
    def status_filter(self) -> str:
        return self.query.get("status_filter", "complete")


@dataclass(frozen=True)
class Answer:
    """A whole answer; its length or encoding is added when it is sent."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON_TYPE)

    def head(self, **headers: str | int) -> bytes:
        """The status line and header block; a keyword argument `X_Y` adds the header `X-Y`."""
        more = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        lines = [f"{name}: {value}\r\n" for name, value in {**self.headers, **more}.items()]
        phrase = http.client.responses.get(self.status, "Unknown")
        return f"HTTP/1.1 {self.status} {phrase}\r\n{''.join(lines)}\r\n".encode("latin-1")


def as_json(status: int, value: object) -> Answer:
    """An answer of compact JSON."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if re.search("[\ud800-\udfff]", text):  # has no UTF-8 form, but a JSON escape
        text = json.dumps(value, separators=(",", ":"))
    return Answer(status, text.encode())


@dataclass
class Exchange:
    """One request, the answer that it would get, and the connection."""

    server: "FaultServer"
    request: Request
    answer: Answer
    connection: socket.socket
    keep: bool = False  # whether the connection serves another request

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def note_full(self, answer: Answer) -> None:
        """Remember an export's body, just before its last byte is sent."""
        request = self.request
        if request.batch is not None and request.kind == "export" and answer.status == 200:
            self.server.bodies[request.batch, request.status_filter] = answer.body
            self.server.sent.add(hashlib.sha256(answer.body).hexdigest())

    def send_whole(self, answer: Answer) -> None:
        self.note_full(answer)
        self.keep = True
        body = b"" if self.request.method == "HEAD" else answer.body
        self.send(answer.head(Content_Length=len(answer.body)) + body)


Fault = Callable[[Exchange], None]


def sound(exchange: Exchange) -> None:
    """No fault: the sound answer."""
    exchange.send_whole(exchange.answer)


def status(code: int, body: bytes | str | object = b"", **headers: str) -> Fault:
    """Any whole answer. Text is sent as text/plain, other objects as JSON; headers as `X_Y=`."""
    kind = {} if body == b"" else {"Content-Type": "text/plain"}
    if isinstance(body, str):
        body = body.encode()
    elif not isinstance(body, bytes):
        kind, body = JSON_TYPE, as_json(code, body).body
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = Answer(code, body, {**kind, **more})
    return lambda exchange: exchange.send_whole(answer)


def payload(body: bytes) -> Fault:
    """A 200 of application/json with any bytes as its body, none for instance."""
    return status(200, body, Content_Type="application/json")


def login_page(title: str = "Sign in") -> Fault:
    """What a proxy that guards a backend answers: an HTML page, with a 200."""
    page = f"<!doctype html>\n<html><head><title>{title}</title></head><body></body></html>"
    return status(200, page, Content_Type="text/html; charset=utf-8")


def redirect(base_url: str = "", code: int = 307) -> Fault:
    """Redirect to the same route under another base URL; without one to itself, in a loop."""

    def fault(exchange: Exchange) -> None:
        path = exchange.request.raw_path
        to = base_url + path.removeprefix(exchange.server.root_path) if base_url else path
        exchange.send_whole(Answer(code, b"", {"Location": to}))

    return fault


def mutated(change: Callable[[Any], Any]) -> Fault:
    """The sound JSON answer, changed in place by `change`, or what `change` returns."""

    def fault(exchange: Exchange) -> None:
        value = json.loads(exchange.answer.body)
        came = change(value)
        exchange.send_whole(as_json(exchange.answer.status, value if came is None else came))

    return fault


def other_batch(key: str = "another") -> Fault:
    """An export that says it is of another batch."""
    return mutated(lambda value: value["info"].update(batch_key=key))


def raw(data: bytes) -> Fault:
    """Any bytes on the wire, a broken header block for instance; then the connection closes."""
    return lambda exchange: exchange.send(data)


def close() -> Fault:
    """Close the connection without an answer."""
    return raw(b"")


def reset(after: int | None = None) -> Fault:
    """Reset the connection, before any answer or after so many bytes of the body."""

    def fault(exchange: Exchange) -> None:
        if after is not None:
            answer = exchange.answer
            exchange.send(answer.head(Content_Length=len(answer.body)) + answer.body[:after])
        linger = struct.pack("ii", 1, 0)
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    return fault


def cut(keep: int, framing: str = "length") -> Fault:
    """The sound body cut after `keep` bytes (from the end if negative).

    Under `length` and `chunked` the client can tell; a body that lasts until the connection
    closes (`close`) looks whole.
    """

    def fault(exchange: Exchange) -> None:
        answer = exchange.answer
        body = answer.body[:keep]
        if framing == "length":
            exchange.send(answer.head(Content_Length=len(answer.body)) + body)
        elif framing == "chunked":
            size = f"{len(answer.body):x}\r\n".encode()
            exchange.send(answer.head(Transfer_Encoding="chunked") + size + body)
        else:
            exchange.send(answer.head(Connection="close") + body)

    return fault


def gzipped(keep: int | None = None) -> Fault:
    """The sound answer compressed; the gzip stream cut inside a whole body if `keep` is given."""

    def fault(exchange: Exchange) -> None:
        if keep is None:
            exchange.note_full(exchange.answer)
        squeezed = gzip.compress(exchange.answer.body)[:keep]
        head = exchange.answer.head(Content_Encoding="gzip", Content_Length=len(squeezed))
        exchange.keep = True
        exchange.send(head + squeezed)

    return fault


def stream(pieces: Callable[[], Iterable[bytes]]) -> Fault:
    """A chunked 200 of any length, made while it is sent."""

    def fault(exchange: Exchange) -> None:
        exchange.send(Answer(200, b"").head(Transfer_Encoding="chunked"))
        for piece in pieces():
            exchange.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        exchange.send(b"0\r\n\r\n")

    return fault


def drip(size: int, pause: float) -> Fault:
    """The sound answer, `size` bytes at a time, `pause` seconds between them."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.answer
        exchange.note_full(answer)
        exchange.send(answer.head(Content_Length=len(answer.body)))
        for start in range(0, len(answer.body), size):
            exchange.send(answer.body[start : start + size])
            if exchange.server.closing.wait(pause):
                return

    return fault


def drip_head(pause: float) -> Fault:
    """A header block without end, a byte at a time: no single wait is long."""

    def fault(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        while not exchange.server.closing.wait(pause):
            exchange.send(b".")

    return fault


def endless(piece: bytes, code: int = 200, **headers: str) -> Fault:
    """A body that goes on until the client has enough."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}

    def fault(exchange: Exchange) -> None:
        exchange.send(Answer(code, b"", {**JSON_TYPE, **more}).head(Connection="close"))
        while not exchange.server.closing.is_set():
            exchange.send(piece)

    return fault


def bomb(size: int, filler: bytes = b" ") -> Fault:
    """A small gzip stream that inflates to so many bytes: the sound answer, padded."""

    def fault(exchange: Exchange) -> None:
        squeeze = zlib.compressobj(9, wbits=31)
        block = filler * (1 << 20)
        body = b"".join(squeeze.compress(block) for _ in range(size >> 20))
        body += squeeze.compress(exchange.answer.body) + squeeze.flush()
        head = exchange.answer.head(Content_Encoding="gzip", Content_Length=len(body))
        exchange.send(head + body)

    return fault


class Hold:
    """A fault that stops before the answer, or after `after` bytes of its body.

    `reached` is set as soon as a request waits here; the rest is sent once `release` is set.
    """

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.reached = threading.Event()
        self.release = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        answer = exchange.answer
        whole = answer.head(Content_Length=len(answer.body)) + answer.body
        now = len(whole) - len(answer.body[self.after :]) if self.after is not None else 0
        exchange.send(whole[:now])
        self.reached.set()
        while not self.release.wait(0.02):
            if exchange.server.closing.is_set():
                return
        exchange.note_full(answer)
        exchange.keep = True
        exchange.send(whole[now:])


@dataclass(frozen=True)
class TrackState:
    """A track of the model, with one box in each of its frames."""

    frames: tuple[int, ...] = (0, 1, 2)
    pending: int = 0  # so many of its last boxes are unreviewed
    abandoned_from: int | None = None  # frame index
    manually_completed: bool = False
    primary_class: str | None = None
    person_down: bool = False
    reviews: int = 0  # how often its boxes were judged; `last_updated_at` goes with it

    def is_exported(self, status_filter: str) -> bool:
        return status_filter == "all" or self.pending == 0 or self.manually_completed


@dataclass
class BatchState:
    """A batch of the model."""

    tracks: dict[str, TrackState]
    ingests: int  # of all batches up to this one; `created_at` goes with it
    frame_versions: dict[int, int] = field(default_factory=dict)


def object_id(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def moment(minutes: int) -> str:
    return f"2025-11-{20 + minutes // 1440}T{minutes // 60 % 24:02}:{minutes % 60:02}:00"


@dataclass
class _Rule:
    kind: str
    batch: str | None
    fault: Fault
    left: float


class FaultServer:
    """The server; a context manager. Its attributes may be read and changed at any time.

    Attributes:
        base_url: What EXPORT_API_BASE should be; the same after `stop` and `start`.
        requests: Every request so far.
        connections: How many TCP connections were accepted.
        bodies: The bytes of the export last served in full, by (batch key, status filter).
        sent: The SHA-256 of every export ever served in full.
        batches: The model, oldest batch first.
        embedding: How many floats each annotation carries: what makes a payload large.
        closing: Set while the server stops: a fault that waits should end.
    """

    def __init__(
        self, upstream: str | None = None, host: str = "127.0.0.1", root_path: str = ROOT_PATH
    ) -> None:
        self.upstream, self.host, self.root_path = upstream, host, root_path
        self.requests: list[Request] = []
        self.bodies: dict[tuple[str, str], bytes] = {}
        self.sent: set[str] = set()
        self.batches: dict[str, BatchState] = {}
        self.connections = self.port = self._ingests = 0
        self.embedding = 4
        self.closing = threading.Event()
        self._lock = threading.RLock()
        self._rules: list[_Rule] = []
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def base_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.root_path}"

    def start(self) -> None:
        """Listen: on a free port the first time, on the same port after a `stop`."""
        self.closing.clear()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, self.port), family=family)
        self.port = self._listener.getsockname()[1]
        self._listener.settimeout(0.2)  # where `shutdown` does not wake `accept`
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """Refuse connections from here on, and drop those that are open."""
        self.closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    # Faults and counts

    def fail(
        self, kind: str, fault: Fault, batch: str | None = None, times: float = float("inf")
    ) -> None:
        """Apply a fault to the next `times` requests of a kind (and batch); the first set wins."""
        with self._lock:
            self._rules.append(_Rule(kind, batch, fault, times))

    def heal(self) -> None:
        """Take all faults away."""
        with self._lock:
            self._rules.clear()

    def count(self, kind: str, batch: str | None = None) -> int:
        """Return how many requests of a kind (and batch) came since the last `reset`."""
        return len(self.asked(kind, batch))

    def asked(self, kind: str, batch: str | None = None) -> list[Request]:
        """Return the requests of a kind (and batch) since the last `reset`."""
        with self._lock:
            return [r for r in self.requests if r.kind == kind and batch in (None, r.batch)]

    def reset(self) -> None:
        """Forget the requests and connections so far; model, faults and bodies stay."""
        with self._lock:
            self.requests.clear()
            self.connections = 0

    # The model and its edits

    def add(self, key: str, tracks: Mapping[str, TrackState] | None = None) -> None:
        """Ingest a batch, anew if it is there; by default with one completed track."""
        with self._lock:
            self._ingests += 1
            given = {"patch_000": TrackState()} if tracks is None else dict(tracks)
            self.batches[key] = BatchState(given, self._ingests)

    def remove(self, key: str) -> None:
        with self._lock:
            del self.batches[key]

    def edit(self, key: str, tag: str, **changes: Any) -> None:
        """Change fields of a track; a change to its boxes counts as a review of them."""
        with self._lock:
            tracks = self.batches[key].tracks
            reviewed = {"frames", "pending", "abandoned_from"} & changes.keys()
            changes.setdefault("reviews", tracks[tag].reviews + bool(reviewed))
            tracks[tag] = replace(tracks[tag], **changes)

    def save_frame(self, key: str, frame: int) -> None:
        """Save a frame without a change: a new `frame_version`, and nothing else."""
        with self._lock:
            versions = self.batches[key].frame_versions
            versions[frame] = versions.get(frame, 0) + 1

    def answer_to(self, request: Request) -> Answer:
        """Return the model's answer to a request."""
        with self._lock:
            batch = self.batches.get(request.batch or "") if request.batch is not None else None
            if request.segments == ("health",):
                return as_json(200, {"status": "ok"})
            if request.segments == ("batches", ""):
                path = request.raw_path.partition("?")[0].rstrip("/")
                return Answer(307, b"", {"Location": path})
            if request.kind == "other":
                return as_json(404, {"detail": "Not Found"})
            if request.method != "GET":
                return as_json(405, {"detail": "Method Not Allowed"})
            if request.kind == "batches":
                newest = sorted(self.batches, key=lambda k: -self.batches[k].ingests)
                return as_json(200, [_batch_entry(key, self.batches[key]) for key in newest])
            if request.kind == "export" and request.status_filter not in ("complete", "all"):
                said = "Input should be 'all' or 'complete'"
                return as_json(422, {"detail": [{"type": "literal_error", "msg": said}]})
            if batch is None or request.batch is None:
                return as_json(404, {"detail": "Batch not found"})
            if request.kind == "tracks":
                return as_json(200, [_track_entry(tag, t) for tag, t in batch.tracks.items()])
            if not batch.tracks:
                return as_json(404, {"detail": "No tracks found for export"})
            kept = {
                tag: t for tag, t in batch.tracks.items() if t.is_exported(request.status_filter)
            }
            if not kept:
                return as_json(404, {"detail": "No completed tracks available for export"})
            return as_json(200, _export(request.batch, batch, kept, self.embedding))

    def export_of(self, key: str, status_filter: str = "complete") -> Answer:
        """Return what an export would be answered now; no two have the same bytes."""
        segments = ("batches", key, "tracks", "export")
        return self.answer_to(Request("GET", "", segments, {"status_filter": status_filter}, {}))

    # The wire

    def _accept(self) -> None:
        while not self.closing.is_set():
            with suppress(OSError):
                connection, _ = self._listener.accept()
                with self._lock:
                    self.connections += 1
                    self._open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError, http.client.HTTPException):  # the client went away, or we stop
            try:
                with connection, connection.makefile("rb") as reader:
                    if reader.peek(1)[:1] == b"\x16":  # TLS, in which a line may never end
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        return
                    while not self.closing.is_set() and (request := self._read(reader)):
                        if not self._answer(request, connection):
                            break
            finally:
                with self._lock:
                    self._open.discard(connection)

    def _answer(self, request: Request, connection: socket.socket) -> bool:
        """Answer, and tell whether the connection serves another request."""
        with self._lock:
            self.requests.append(request)
            fault = self._next_fault(request)
        answer = self._relay(request) if self.upstream else self.answer_to(request)
        exchange = Exchange(self, request, answer, connection)
        fault(exchange)
        return exchange.keep and request.headers.get("connection") != "close"

    def _read(self, reader: BinaryIO) -> Request | None:
        line = reader.readline().decode("latin-1").split()
        if len(line) != 3:
            return None
        headers = {k.lower(): v for k, v in http.client.parse_headers(reader).items()}
        reader.read(int(headers.get("content-length", 0)))
        target = re.sub(r"^http://[^/]*", "", line[1])  # a client of a proxy names the host as well
        path, _, query = target.partition("?")
        below = path.removeprefix(self.root_path) if path.startswith(self.root_path + "/") else path
        segments = tuple(unquote(part) for part in below.split("/")[1:])
        return Request(line[0], target, segments, dict(parse_qsl(query)), headers)

    def _next_fault(self, request: Request) -> Fault:
        for rule in self._rules:
            if rule.left > 0 and rule.kind == request.kind and rule.batch in (None, request.batch):
                rule.left -= 1
                return rule.fault
        return sound

    def _relay(self, request: Request) -> Answer:
        base = urlsplit(self.upstream or "")
        path = base.path.rstrip("/") + request.raw_path.removeprefix(self.root_path)
        headers = {k: v for k, v in request.headers.items() if k not in ("host", "connection")}
        relay = http.client.HTTPConnection(base.hostname or "", base.port, timeout=60)
        try:
            relay.request(request.method, path, headers=headers)
            response = relay.getresponse()
            drop = ("content-length", "transfer-encoding", "connection")
            kept = {k: v for k, v in response.getheaders() if k.lower() not in drop}
            return Answer(response.status, response.read(), kept)
        finally:
            relay.close()


def _batch_entry(key: str, batch: BatchState) -> dict[str, Any]:
    tracks = batch.tracks.values()
    return {
        "batch_key": key,
        "gcs_prefix": f"gs://dataset/media/{key}",
        "frame_count": len({frame for track in tracks for frame in track.frames}),
        "annotation_count": sum(len(track.frames) for track in tracks),
        "created_at": moment(batch.ingests),
        "incomplete_tracks": sum(not track.manually_completed for track in tracks),
    }


def _track_entry(tag: str, track: TrackState) -> dict[str, Any]:
    return {
        "track_tag": tag,
        "categories": ["gun"] if track.frames else [],
        "primary_class": track.primary_class,
        "person_down": track.person_down,
        "status": "active" if track.abandoned_from is None else "abandoned",
        "total_annotations": len(track.frames),
        "pending_annotations": track.pending,
        "frame_count": len(track.frames),
        "first_frame_index": min(track.frames, default=None),
        "last_frame_index": max(track.frames, default=None),
        "abandoned_from_frame": track.abandoned_from,
        "last_updated_at": moment(track.reviews) if track.frames else None,
        "completed": track.is_exported("complete"),
        "manually_completed": track.manually_completed,
    }


def _export(
    key: str, batch: BatchState, tracks: Mapping[str, TrackState], embedding: int
) -> dict[str, Any]:
    """Return an export: unsorted, and never the same bytes twice."""
    frames = {frame for track in tracks.values() for frame in track.frames}
    images = [_image(key, frame, batch.frame_versions.get(frame, 0)) for frame in frames]
    annotations = [
        _annotation(key, tag, track, place, embedding)
        for tag, track in tracks.items()
        for place in range(len(track.frames))
    ]
    listing = [_track_entry(tag, track) for tag, track in tracks.items()]
    names = "track_tag primary_class categories manually_completed status pending_annotations"
    shown = [{name: entry[name] for name in names.split()} for entry in listing]
    for part in (images, annotations, shown):
        random.shuffle(part)
    for number, annotation in enumerate(annotations[1:], 1):
        annotation["id"] = number
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return {
        "info": {"batch_key": key, "exported_at": now, "tracks": list(tracks)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "gun"}],
        "tracks": shown,
    }


_IMAGE = {"width": 1920, "height": 1080}
_ANNOTATION: dict[str, Any] = (
    json.loads("""{"category_id": 1, "category_name": "gun", "area": 4052.6,
    "blur_decision": "sharp", "blur_metrics": {"blur_decision": "sharp", "v": 12.5},
    "has_mask": null, "patch_id": null, "strict": null, "meta": null, "labels": null,
    "created_at": "2025-11-20T00:00:00"}""")
)


def _image(key: str, frame: int, version: int) -> dict[str, Any]:
    name = f"f{frame:05}.jpg"
    place = {"file_name": name, "gcs_uri": f"gs://dataset/media/{key}/{name}"}
    numbers = {"frame_index": frame, "frame_version": version}
    return {"id": object_id(key, frame)} | place | numbers | _IMAGE


def _annotation(
    key: str, tag: str, track: TrackState, place: int, embedding: int
) -> dict[str, Any]:
    frame = track.frames[place]
    status = "unreviewed" if place >= len(track.frames) - track.pending else "accepted"
    if track.abandoned_from is not None and frame >= track.abandoned_from:
        status = "abandoned"
    own = object_id(key, tag, frame)
    wobble = random.Random(own)
    identity = {"id": own, "annotation_id": own, "image_id": object_id(key, frame)}
    edited = {"status": status, "person_down": track.person_down}
    return (
        _ANNOTATION
        | identity
        | edited
        | {
            "track_tag": tag,
            "bbox": [100.5 + 3 * frame, 200.25, 50.5, 80.25],
            "confidence": wobble.random(),
            "embedding_swin": [wobble.gauss() for _ in range(embedding)],
            "updated_at": moment(track.reviews),
        }
    )
