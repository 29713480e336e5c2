"""A small Kubernetes API server: as much as the real `kubectl port-forward` asks of one.

One namespace, one service, one pod. The pod's port is a TCP address of this machine. The server
can misbehave as clusters do: cut forwards, freeze them, refuse access, miss a resource.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CONTEXT = "demo"
NAMESPACE = "dataset-curation"
SERVICE = "auto-labeler-backend"
SERVICE_PORT = 8000
POD = f"{SERVICE}-0"
PROTOCOL = "SPDY/3.1+portforward.k8s.io"

# SPDY/3 frame types, and the flag that ends one direction of a stream.
SYN_STREAM, SYN_REPLY, RST_STREAM, PING = 1, 2, 3, 6
FIN = 1

# The dictionary that SPDY/3 headers are compressed with (section 2.6.10.1 of its specification):
# names with their lengths, then common values in a row.
_NAMES = (
    "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,"
    "accept-ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,"
    "content-language,content-length,content-location,content-md5,content-range,content-type,date,"
    "etag,expect,expires,from,host,if-match,if-modified-since,if-none-match,if-range,"
    "if-unmodified-since,last-modified,location,max-forwards,pragma,proxy-authenticate,"
    "proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,"
    "user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,"
    "public,set-cookie,keep-alive,origin"
)
_VALUES = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 "
    "Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 "
    "Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service "
    "UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, "
    "Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,"
    "sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(struct.pack(">I", len(name)) + name.encode() for name in _NAMES.split(","))
    + _VALUES.encode()
)


@dataclass
class Cluster:
    """What the server answers, and what it saw. Tests change and read it while it runs."""

    backend: tuple[str, int]
    url: str = ""
    namespace_exists: bool = True
    service_exists: bool = True
    pod_phase: str = "Running"
    pod_refuses: bool = False  # the pod's port, as while a container restarts
    denied: dict[str, int] = field(default_factory=dict)  # resource, for example "pods": status
    hold_after: int = 0  # after so many bytes, each answer of the pod stops (0: it does not)
    frozen: bool = False  # new forwards freeze too
    requests: list[str] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for_held(self, timeout: float = 30) -> None:
        """Wait until an answer of the pod is stopped in its middle."""
        with self.changed:
            assert self.changed.wait_for(
                lambda: any(forward.holds for forward in self.forwards), timeout
            ), "no answer was held"

    def release(self) -> None:
        """Let all answers flow again."""
        with self.changed:
            self.hold_after = 0
            self.changed.notify_all()

    def cut(self) -> None:
        """Drop every forward, as when the API server or the network goes."""
        for forward in self.forwards:
            forward.close()

    def freeze(self) -> None:
        """Let the forwards there are go silent while their connections stay up."""
        for forward in self.forwards:
            forward.frozen = True

    def asked(self, part: bytes) -> int:
        """Count the requests to the pod that hold some bytes."""
        return sum(part in body for forward in self.forwards for body in forward.asked)

    def answers(self) -> list[bytes]:
        """Return the bytes that each connection to the pod carried back."""
        return [bytes(answer) for forward in self.forwards for answer in forward.answers]


class Forward:
    """One port-forward: the streams of an upgraded connection, each to the pod's port."""

    def __init__(self, cluster: Cluster, connection: socket.socket) -> None:
        self.cluster = cluster
        self.connection = connection
        self.closed = threading.Event()
        self.frozen = cluster.frozen
        self.holds = False
        self.asked: list[bytes] = []
        self.answers: list[bytearray] = []
        self._sending = threading.Lock()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._received = b""
        self._error_streams: dict[str, int] = {}  # by request
        self._pods: dict[int, socket.socket] = {}  # by data stream

    def serve(self) -> None:
        """Answer frames until either side ends the connection."""
        try:
            while header := self._read(8):
                first, flags_and_length = struct.unpack(">II", header)
                flags, body = flags_and_length >> 24, self._read(flags_and_length & 0xFFFFFF)
                if first >> 31:
                    self._control(first & 0xFFFF, flags, body)
                elif pod := self._pods.get(first):
                    self.asked.append(body)
                    with contextlib.suppress(OSError):
                        pod.sendall(body)
                        if flags & FIN:
                            pod.shutdown(socket.SHUT_WR)
        except (OSError, EOFError):
            pass
        finally:
            self.close()

    def close(self) -> None:
        """End the connection, and those to the pod with it."""
        with self.cluster.changed:
            self.closed.set()
            self.holds = False
            self.cluster.changed.notify_all()
        for end in (self.connection, *self._pods.values()):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _control(self, kind: int, flags: int, body: bytes) -> None:
        stream = struct.unpack(">I", body[:4])[0] & 0x7FFFFFFF
        if kind == PING:
            self._send_control(PING, body)
        elif kind == RST_STREAM and stream in self._pods:
            with contextlib.suppress(OSError):
                self._pods[stream].shutdown(socket.SHUT_RDWR)
        elif kind == SYN_STREAM:
            headers = self._headers(body[10:])
            no_headers = self._deflate.compress(struct.pack(">I", 0))
            no_headers += self._deflate.flush(zlib.Z_SYNC_FLUSH)
            self._send_control(SYN_REPLY, body[:4] + no_headers)
            if headers["streamtype"] == "error":
                self._error_streams[headers["requestid"]] = stream
            else:
                error_stream = self._error_streams.pop(headers["requestid"])
                self._connect(stream, error_stream, headers["port"])

    def _connect(self, stream: int, error_stream: int, port: str) -> None:
        try:
            if self.cluster.pod_refuses:
                raise ConnectionRefusedError("connection refused")
            pod = socket.create_connection(self.cluster.backend)
        except OSError as error:
            said = (
                f"error forwarding port {port} to pod {POD}, uid : failed to connect to "
                f"localhost:{port} inside namespace: dial tcp4 127.0.0.1:{port}: {error}"
            )
            self._send_data(error_stream, said.encode(), FIN)
            self._send_data(stream, b"", FIN)
            return
        self._pods[stream] = pod
        threading.Thread(target=self._answer, args=(stream, error_stream, pod), daemon=True).start()

    def _answer(self, stream: int, error_stream: int, pod: socket.socket) -> None:
        """Carry what the pod says back to kubectl."""
        answer = bytearray()
        self.answers.append(answer)
        with contextlib.suppress(OSError), pod:
            while data := pod.recv(1 << 14):
                answer += data
                if 0 < self.cluster.hold_after < len(answer):
                    self._hold()
                self._send_data(stream, data, 0)
            self._send_data(stream, b"", FIN)
            self._send_data(error_stream, b"", FIN)
        self._pods.pop(stream, None)

    def _hold(self) -> None:
        with self.cluster.changed:
            self.holds = not self.closed.is_set()
            self.cluster.changed.notify_all()
            self.cluster.changed.wait_for(
                lambda: self.closed.is_set() or not self.cluster.hold_after
            )
            self.holds = False

    def _headers(self, block: bytes) -> dict[str, str]:
        data = self._inflate.decompress(block)
        texts = []
        at = 4
        while at < len(data):
            length = struct.unpack_from(">I", data, at)[0]
            texts.append(data[at + 4 : at + 4 + length].decode())
            at += 4 + length
        return dict(zip(texts[::2], texts[1::2], strict=True))

    def _send_control(self, kind: int, body: bytes) -> None:
        self._send(struct.pack(">HHI", 0x8003, kind, len(body)) + body)

    def _send_data(self, stream: int, data: bytes, flags: int) -> None:
        self._send(struct.pack(">II", stream, flags << 24 | len(data)) + data)

    def _send(self, frame: bytes) -> None:
        """Send one SPDY frame as one binary websocket message."""
        if self.frozen:
            self.closed.wait()
        length = len(frame)
        head = bytes([0x82, length]) if length < 126 else struct.pack(">BBH", 0x82, 126, length)
        with self._sending:
            self.connection.sendall(head + frame)

    def _read(self, size: int) -> bytes:
        """Read SPDY bytes out of the websocket messages."""
        while len(self._received) < size:
            self._received += self._read_message()
            if self.frozen:
                self.closed.wait()
        data, self._received = self._received[:size], self._received[size:]
        return data

    def _read_message(self) -> bytes:
        first, second = self._read_exactly(2)
        length = second & 0x7F
        if length >= 126:
            width = 2 if length == 126 else 8
            length = int.from_bytes(self._read_exactly(width))
        mask = self._read_exactly(4)  # a client masks all that it sends
        masked = self._read_exactly(length)
        if first & 0x0F == 8:
            raise EOFError("closed by the client")
        mask = (mask * (length // 4 + 1))[:length]
        return (int.from_bytes(masked) ^ int.from_bytes(mask)).to_bytes(length)

    def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.connection.recv(size - len(data))
            if not more:
                raise EOFError("the client is gone")
            data += more
        return data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        cluster = self.server.cluster
        path = urlsplit(self.path).path
        cluster.requests.append(self.path)
        resource = path.split("/")
        namespaced = resource[1:4] == ["api", "v1", "namespaces"]
        namespace, kind, name, sub = (*resource[4:], "", "", "", "")[:4] if namespaced else [""] * 4
        names = {"services": SERVICE, "pods": POD}
        asked = sub or kind or ("namespaces" if namespaced else "")
        if asked in cluster.denied:
            self._deny(cluster.denied[asked], asked, name or namespace)
        elif path == "/version":
            self._reply({"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
        elif path == "/api":
            self._reply({"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            self._reply({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})
        elif path == "/api/v1":
            self._reply(_resources())
        elif namespaced and not kind:
            if namespace != NAMESPACE or not cluster.namespace_exists:
                self._missing("namespaces", namespace)
            else:
                self._reply(
                    {"kind": "Namespace", "apiVersion": "v1", "metadata": _named(NAMESPACE)}
                )
        elif kind in names and (
            namespace != NAMESPACE
            or name not in ("", names[kind])
            or not cluster.namespace_exists
            or (kind == "services" and not cluster.service_exists)
        ):
            self._missing(kind, name)
        elif kind == "services":
            self._reply(_service())
        elif kind == "pods" and not name:
            self._reply({"kind": "PodList", "apiVersion": "v1", "items": [_pod(cluster.pod_phase)]})
        elif kind == "pods" and not sub:
            self._reply(_pod(cluster.pod_phase))
        elif sub == "portforward":
            self._forward()
        else:
            self._missing(kind or "paths", name or path)

    do_POST = do_GET  # noqa: N815

    def _forward(self) -> None:
        key = self.headers.get("Sec-WebSocket-Key", "")
        if PROTOCOL not in self.headers.get("Sec-WebSocket-Protocol", ""):
            self._status(400, "BadRequest", "websockets only")
            return
        digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.send_header("Sec-WebSocket-Protocol", PROTOCOL)
        self.end_headers()
        self.close_connection = True
        forward = Forward(self.server.cluster, self.connection)
        self.server.cluster.forwards.append(forward)
        forward.serve()

    def _missing(self, kind: str, name: str) -> None:
        self._status(404, "NotFound", f'{kind} "{name}" not found')

    def _deny(self, status: int, kind: str, name: str) -> None:
        if status == 401:
            self._status(401, "Unauthorized", "Unauthorized")
        elif status == 403:
            said = (
                f'{kind} "{name}" is forbidden: User "jane" cannot get resource "{kind}" in API '
                f'group "" in the namespace "{NAMESPACE}"'
            )
            self._status(403, "Forbidden", said)
        else:
            self._missing(kind, name)

    def _status(self, code: int, reason: str, message: str) -> None:
        status = {"status": "Failure", "reason": reason, "message": message, "code": code}
        self._reply({"kind": "Status", "apiVersion": "v1", **status}, code)

    def _reply(self, value: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cluster = cluster

    def handle_error(self, *args: object) -> None:
        """A client that goes in mid-answer is no news."""


def _named(name: str) -> dict[str, Any]:
    return {"name": name, "namespace": NAMESPACE, "labels": {"app": SERVICE}}


def _resources() -> dict[str, Any]:
    kinds = [("namespaces", "Namespace"), ("services", "Service"), ("pods", "Pod")]
    resources = [
        {
            "name": name,
            "singularName": kind.lower(),
            "namespaced": name != "namespaces",
            "kind": kind,
            "verbs": ["get", "list", "watch"],
            "shortNames": {"services": ["svc"]}.get(name, []),
        }
        for name, kind in kinds
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "v1",
        "resources": resources,
    }


def _service() -> dict[str, Any]:
    ports = [{"name": "http", "port": SERVICE_PORT, "targetPort": 8000, "protocol": "TCP"}]
    spec = {"selector": {"app": SERVICE}, "ports": ports, "clusterIP": "10.0.0.1"}
    return {"kind": "Service", "apiVersion": "v1", "metadata": _named(SERVICE), "spec": spec}


def _pod(phase: str) -> dict[str, Any]:
    containers = [{"name": "backend", "image": "backend", "ports": [{"containerPort": 8000}]}]
    ready = {"type": "Ready", "status": "True" if phase == "Running" else "False"}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": _named(POD),
        "spec": {"containers": containers},
        "status": {"phase": phase, "conditions": [ready]},
    }


@contextlib.contextmanager
def serving_cluster(backend: tuple[str, int]) -> Iterator[Cluster]:
    """Serve a cluster whose pod's port is a TCP address, for the length of a `with` block."""
    cluster = Cluster(backend)
    with _Server(cluster) as server:
        cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield cluster
        finally:
            server.shutdown()
            cluster.cut()


def write_kubeconfig(path: Path, cluster: Cluster) -> None:
    """Write a kubeconfig whose current context is the cluster."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": CONTEXT,
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT}}],
        "clusters": [{"name": CONTEXT, "cluster": {"server": cluster.url}}],
        "users": [{"name": CONTEXT, "user": {"token": "of-the-cluster"}}],
    }
    path.write_text(json.dumps(config), encoding="utf-8")
