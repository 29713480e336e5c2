"""The API client: its pure functions, and what it makes of answers over real sockets."""

import base64
import errno
import gzip
import io
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import export_via_api
import pytest
from export_via_api import (
    EMPTY_DETAILS,
    STATUS_FILTERS,
    ApiError,
    Client,
    Download,
    RouteMissingError,
    SettingError,
    Settings,
    TruncatedBodyError,
    UnreachableError,
    batch_path,
    batches_by_key,
    check_payload,
    check_whole,
    empty_payload,
    export_file_name,
    export_name,
    is_loopback,
    nearest_keys,
    parse_api_base,
    parse_timeout,
    plain,
    replacing,
    show,
    split_batch_keys,
    split_credentials,
    storage_error,
)
from snakemake.io import PeriodicityDetector

from tests.fault_server import (
    ROOT_PATH,
    Exchange,
    Fault,
    FaultServer,
    Hold,
    TrackState,
    as_json,
    close,
    cut,
    drip,
    gzipped,
    login_page,
    mutated,
    other_batch,
    payload,
    raw,
    redirect,
    reset,
    status,
    stream,
)

TOKEN = "s3cret-bearer-token-0123456789"
SCRIPTS = Path(export_via_api.__file__).parent
HOSTILE_KEYS = [
    *("guns_1016205", "../x", "/abs", "a/b", "{x}", "a b", "a,b", "-n", "--help", ".hidden"),
    *(
        "...",
        "..a",
        "./",
        "a//b",
        "a/",
        "\\",
        "C:\\x",
        "a\nb",
        "a\r\nHost: x",
        "\t",
        "\x00",
        "\x7f",
    ),
    *("%", "%2F", "%2e%2e", "a%b", "~", "a~b", "?x=1", "#x", "a&b=c", "a+b", ";", ":", "@", "*"),
    *(
        "'",
        '"',
        "$(x)",
        "`x`",
        "|",
        "<b>",
        "Жёлтый",
        "🦉" * 60,
        "é",
        "e\u0301",
        "\u202ex",
        "\ufeffx",
    ),
    *("a" * 300, "x" * 30, "ab" * 40, "_complete" * 40, "_all" * 40, "b" + "-" * 40, "." * 40),
    *("A", "a", "x_all", "x_complete", "x_complete_tracks.json", "tracks", "export", " ", "None"),
]
REFUSED_KEYS = ["", ".", "..", "\ud800", "a\udcffb"]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.add("guns", {"p": TrackState(), "q": TrackState(pending=1)})
        server.add("pending", {"p": TrackState(pending=2)})
        server.add("bare", {})
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before the next tries, in seconds, which are recorded and not slept."""
    pauses: list[float] = []
    monkeypatch.setattr("export_via_api.time.sleep", pauses.append)
    return pauses


def client_of(server: FaultServer, timeout: float = 10, **environ: str) -> Client:
    return Client(server.base_url, timeout, environ)


def fetch(client: Client, path: Path, key: str = "guns", status_filter: str = "all") -> Download:
    return client.download(key, status_filter, path, lambda part: check_payload(part, key))


def assert_readable(message: str) -> str:
    """A message is one line that a person can read."""
    assert message.isprintable(), ascii(message)
    assert len(message) < 700, message
    assert message.endswith("."), message
    assert not re.search(r"object at 0x|Traceback|\bNone\b|\(b'|[.,] *\.$", message), message
    return message


def refusal(call: Callable[[], object], kind: type[Exception] = ApiError) -> str:
    """The message of the expected failure of a call."""
    with pytest.raises(kind) as caught:
        call()
    return assert_readable(str(caught.value))


# Names


def test_different_keys_have_different_names() -> None:
    keys = {*HOSTILE_KEYS, *REFUSED_KEYS}
    keys |= {export_name(key) for key in keys}  # a name is a key as well
    keys |= {quote(key, safe="", errors="replace") for key in keys}
    keys |= {key + mark for key in keys for mark in ("_complete", "_all", "~", ".", "%7E")}
    files = {
        export_file_name(key, status_filter) for key in keys for status_filter in STATUS_FILTERS
    }
    assert len(files) == 2 * len(keys)


@pytest.mark.parametrize("key", [*HOSTILE_KEYS, *REFUSED_KEYS], ids=ascii)
def test_a_name_is_a_harmless_file_name(key: str) -> None:
    for status_filter in STATUS_FILTERS:
        name = export_file_name(key, status_filter)
        assert re.fullmatch(r"[A-Za-z0-9._%~-]+", name)
        assert name[0] not in ".-"
        assert len(name) <= 200
        assert name.endswith(f"_{status_filter}_tracks.json")
        for wildcard in (f"{export_name(key)}_{status_filter}", name):
            assert PeriodicityDetector().is_periodic(wildcard) is None


def test_no_tail_of_repeats_reaches_snakemake() -> None:
    detector = PeriodicityDetector()
    tails = ["".join(tail) for n in (1, 2, 3) for tail in itertools.product("a_c", repeat=n)]
    for tail, times in itertools.product([*tails, "_complete", "lete_comp", "l_al"], range(11, 32)):
        for head, status_filter in itertools.product(("", "b", "complete"), STATUS_FILTERS):
            name = f"{export_name(head + tail * times)}_{status_filter}"
            assert detector.is_periodic(name) is None, name


def test_ordinary_keys_keep_their_names() -> None:
    assert export_file_name("guns_1016205", "complete") == "guns_1016205_complete_tracks.json"
    assert export_name("a.b-c_D") == "a.b-c_D"
    assert export_name("a/b") == "a%2Fb"
    assert export_name(".x") == "%2Ex"
    assert export_name("-x") == "%2Dx"


def test_a_very_long_key_is_named_at_once() -> None:
    run = (
        "import export_via_api as e; e.export_name('a' * 20_000 + 'b'); e.export_name('ж' * 9_000)"
    )
    environ = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    subprocess.run([sys.executable, "-c", run], env=environ, check=True, timeout=10)


def test_nearest_keys() -> None:
    assert "'guns_1016205'" in nearest_keys("guns_101620", ["tattoo2k25", "guns_1016205"])
    assert assert_readable(nearest_keys("zzz", ["guns"])) == nearest_keys("zzz", [])
    assert_readable(nearest_keys("x\ny", ["x\nz", "x" * 300]))


@pytest.mark.parametrize("text", [*HOSTILE_KEYS, *REFUSED_KEYS, "\x1b[31m", "x" * 9999], ids=ascii)
def test_shown_text_is_one_short_harmless_line(text: str) -> None:
    shown = show(text)
    assert shown.isprintable()
    assert len(shown) <= 120
    assert shown.encode()
    assert plain(text).isprintable()
    assert 0 < len(plain(text)) <= 60


def test_a_shortened_text_shows_that_it_is() -> None:
    assert "x…" in show("x" * 300)
    assert plain("x" * 300).endswith("x…")
    assert show("x" * 100) == repr("x" * 100)


# Settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:8081/a/b", "http://localhost:8081/a/b"),
        ("http://localhost:8081/a/b///", "http://localhost:8081/a/b"),
        (" https://Example.ORG/Api \n", "https://example.org/Api"),
        ("HTTP://example.org", "http://example.org"),
        ("http://[::1]:8081/api/", "http://[::1]:8081/api"),
        ("http://127.0.0.1:65535", "http://127.0.0.1:65535"),
    ],
)
def test_api_base(given: str, expected: str) -> None:
    assert parse_api_base(given, "X") == expected
    assert parse_api_base(expected, "X") == expected


@pytest.mark.parametrize(
    "given",
    [
        *("", "localhost:8081", "localhost:8081/api", "ftp://host/api", "http://", "http:///api"),
        *("http:/host", "//host", "http://host:99999", "http://host:0", "http://host:-1"),
        *("http://host:port", "http://[::1", "http://[nonsense]/", "http://ho st/", "http://h/a b"),
        *("http://host/\x00", "http://host/a\nb", "file:///etc/passwd", "http://h\u2100st/"),
        *("http://host/api?token=1", "http://host/api#part", "http://me:pw@host/api"),
    ],
)
def test_unusable_api_base(given: str) -> None:
    message = refusal(lambda: parse_api_base(given, "EXPORT_API_BASE"), SettingError)
    assert message.startswith("EXPORT_API_BASE ")


@pytest.mark.parametrize(
    "given",
    [
        *("http://me:hunter22@host:99999", "http://me:hunter22@ho st/", "me:hunter22@host/api"),
        *("http:/me:hunter22@host/api", "http://me:hunter22/@host/api", "ftp://me:hunter22@host"),
        *("http://host:99999/?token=hunter22", "https//host/api?token=hunter22"),
    ],
)
def test_unusable_api_base_hides_its_secrets(given: str) -> None:
    environ = {"EXPORT_API_BASE": given}
    for call in (
        lambda: Settings.from_environment(environ),
        lambda: parse_api_base(given, "EXPORT_API_BASE"),
    ):
        assert "hunter22" not in refusal(call, SettingError)


@pytest.mark.parametrize(
    ("given", "url", "credentials"),
    [
        ("http://host/api", "http://host/api", None),
        ("http://host/@me", "http://host/@me", None),
        ("http://me:pw@host/api", "http://host/api", ("me", "pw")),
        ("http://me@host", "http://host", ("me", "")),
        ("http://me:p%40%2Fw@host:1/a", "http://host:1/a", ("me", "p@/w")),
        ("http://me:p@w:x@host", "http://host", ("me", "p@w:x")),
        ("http://:@host", "http://host", ("", "")),
        ("http://me:pw@[::1]:80/a@b", "http://[::1]:80/a@b", ("me", "pw")),
    ],
)
def test_split_credentials(given: str, url: str, credentials: tuple[str, str] | None) -> None:
    assert split_credentials(given) == (url, credentials)


@pytest.mark.parametrize(("given", "seconds"), [("60", 60), (" 0.5 ", 0.5), ("1e3", 1000), (7, 7)])
def test_timeout(given: str | float, seconds: float) -> None:
    assert parse_timeout(given, "X") == seconds


@pytest.mark.parametrize(
    "given", ["0", "-1", "nan", "inf", "-inf", "1e400", "", "1m", "60 s", "1\n2"]
)
def test_unusable_timeout(given: str) -> None:
    message = refusal(lambda: parse_timeout(given, "EXPORT_REQUEST_TIMEOUT"), SettingError)
    assert "EXPORT_REQUEST_TIMEOUT" in message


@pytest.mark.parametrize("seconds", ["1e-9", "2e6", "3e6", "1e10", "1e300"])
def test_a_timeout_that_is_accepted_works(server: FaultServer, seconds: str) -> None:
    """A socket takes no timeout above 2**31 ms: one that large must be refused or cut."""
    try:
        timeout = parse_timeout(seconds, "X")
    except SettingError:
        return
    try:
        Client(server.base_url, timeout, {}).batches()
    except ApiError as error:
        assert_readable(str(error))  # too short


def test_split_batch_keys() -> None:
    assert split_batch_keys("") == split_batch_keys(" , ,") == ()
    assert split_batch_keys("b, a ,b,,c d/e") == ("b", "a", "c d/e")


def test_settings_from_environment() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment(dict.fromkeys(EXPORT_VARIABLES, "")) == Settings()
    given = ("http://me:pw@host/api/", "a,b", "all", "5", TOKEN)
    settings = Settings.from_environment(dict(zip(EXPORT_VARIABLES, given, strict=True)))
    assert settings == Settings("http://host/api", ("a", "b"), "all", 5.0)
    assert "pw" not in repr(settings)
    message = refusal(
        lambda: Settings.from_environment({"EXPORT_STATUS_FILTER": "Complete"}), SettingError
    )
    assert "EXPORT_STATUS_FILTER" in message


EXPORT_VARIABLES = [
    f"EXPORT_{name}"
    for name in ("API_BASE", "BATCH_KEY", "STATUS_FILTER", "REQUEST_TIMEOUT", "API_TOKEN")
]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True)),
        *(("api.localhost", True), ("localhost.example.org", False), ("10.0.0.1", False)),
        *(("notlocalhost", False), ("127.0.0.1.example.org", False), ("", False)),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# Bodies


SAMPLE = json.dumps(
    {
        "info": {"batch_key": '\\"{[\\\\', "é\\": "\\\\\\"},
        "images": [{}, [], '"', "\\", "🦉]}", {"a": [1, -2.5e3, None, True]}],
        "\\\\": {"}": "\\"},
    },
    ensure_ascii=False,
).encode()


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 16, 1 << 20])
@pytest.mark.parametrize("sample", [SAMPLE, b"[" + SAMPLE + b"]", b" \n{ }", b'["\\\\"]'])
def test_every_cut_is_found(
    monkeypatch: pytest.MonkeyPatch, chunk_size: int, sample: bytes
) -> None:
    monkeypatch.setattr(export_via_api, "CHUNK_SIZE", chunk_size)
    for end in range(len(sample)):
        with pytest.raises(TruncatedBodyError) as caught:
            check_whole(io.BytesIO(sample[:end]))
        assert_readable(str(caught.value))
    check_whole(io.BytesIO(sample))
    check_whole(io.BytesIO(sample + b"\r\n "))


@pytest.mark.parametrize(
    "body",
    [
        *(b"not found", b"<html></html>", b"\x1f\x8b\x08\x00", b"\xff\xfe{\x00", b"\x00", b"]"),
        *(b"{]", b"[}", b"{}}", b"{}{}", b"{} []", b"[]]", b"\xef\xbb\xbf{}", b"<title>\n</title>"),
        b"<!doctype html><title class=x>Sign in \x1b[1m" + b"x" * 5000 + b"</title>",
    ],
)
def test_what_is_no_json_is_not_taken_for_cut(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        check_whole(io.BytesIO(body))
    assert not isinstance(caught.value, TruncatedBodyError)
    assert_readable(str(caught.value))


PARTS: dict[str, Any] = {
    "info": {"batch_key": "guns"},
    "images": [],
    "annotations": [],
    "tracks": [],
}
NESTED = b'{"info":%b{}%b}' % (b'{"a":' * 100_000, b"}" * 100_000)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (json.dumps(PARTS | {"info": {"batch_key": "x\ny"}}).encode(), "another batch"),
        (json.dumps(PARTS | {"info": {}}).encode(), "batch"),
        (json.dumps(PARTS | {"info": []}).encode(), "batch"),
        (b'{"detail":"Not today"}', "lacks"),
        (b"[]", "lacks"),
        (b'{"info":01}', "malformed"),
        (b'{"info":"\xff"}', "malformed"),
        (b'{"info":"\n"}', "malformed"),
        (b'{"info":%b}' % (b"1" * 5000), "malformed"),
        (json.dumps(PARTS).encode() + b" Internal Server Error", "malformed"),
        (json.dumps(PARTS | {"tracks": [float("nan")]}).encode(), "malformed"),
        (NESTED, "nested"),
    ],
)
def test_what_is_no_export_is_refused(tmp_path: Path, body: bytes, cause: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(body)
    assert cause in refusal(lambda: check_payload(path, "guns"))


def test_sound_payloads_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    for key in [*HOSTILE_KEYS, "\ud800"]:
        path.write_bytes(empty_payload(key))
        check_payload(path, key)
    path.write_bytes(json.dumps(PARTS | {"categories": [], "more": {}}).encode())
    check_payload(path, "guns")
    monkeypatch.setattr(export_via_api, "FULL_PARSE_LIMIT", 10)
    check_payload(path, "guns")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TruncatedBodyError):
        check_payload(path, "guns")


# Files


def test_replacing_puts_a_whole_file_in_place(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x"
    for text in ("old", "new"):
        with replacing(target) as part:
            part.write_text(text)
            assert part.parent == target.parent
            assert not target.exists() or target.read_text() == "old"
        assert target.read_text() == text
    with replacing(target, tmp_path / "staging") as part:
        part.write_text("staged")
        assert part.parent == tmp_path / "staging"
    assert target.read_text() == "staged"
    assert not list((tmp_path / "staging").iterdir())


@pytest.mark.parametrize("error", [ApiError, OSError, KeyboardInterrupt, SystemExit])
def test_replacing_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / export_file_name("k" * 300, "complete")
    target.write_text("old")
    before = target.stat()
    with pytest.raises(error), replacing(target) as part:
        part.write_text("half")
        raise error
    assert target.stat() == before
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_what_cannot_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "full").mkdir(parents=True)
    with pytest.raises(OSError), replacing(target) as part:
        part.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "x"):
        pass  # nothing was written


def test_storage_errors() -> None:
    for code, said in (
        (errno.ENOSPC, "No space left"),
        (errno.EDQUOT, "No space left"),
        (errno.EACCES, "Permission denied"),
        (errno.EROFS, "Read-only"),
    ):
        error = OSError(code, os.strerror(code), "/elsewhere")
        message = assert_readable(str(storage_error(error, Path("a_all_tracks.json"))))
        assert said in message
        assert "a_all_tracks.json" in message
    assert_readable(str(storage_error(OSError("odd"), Path("x"))))


# Sound answers


def test_the_three_requests(server: FaultServer, tmp_path: Path) -> None:
    client = client_of(server)
    assert [batch["batch_key"] for batch in client.batches()] == ["bare", "pending", "guns"]
    assert {track["track_tag"] for track in client.tracks("guns")} == {"p", "q"}
    for status_filter in STATUS_FILTERS:
        came = fetch(client, tmp_path / "x", "guns", status_filter)
        assert (tmp_path / "x").read_bytes() == server.bodies["guns", status_filter]
        assert came.size == len(server.bodies["guns", status_filter])
        assert (came.attempts, came.empty) == (1, "")
    assert [request.method for request in server.requests] == ["GET"] * 4
    assert server.asked("export")[0].raw_path == (
        f"{ROOT_PATH}/batches/guns/tracks/export?status_filter=complete"
    )
    assert server.connections == 1
    assert all("authorization" not in request.headers for request in server.requests)


@pytest.mark.parametrize(
    ("key", "status_filter", "detail"),
    [("pending", "complete", EMPTY_DETAILS[0]), ("bare", "all", EMPTY_DETAILS[1])],
)
def test_nothing_to_export(
    server: FaultServer, tmp_path: Path, key: str, status_filter: str, detail: str
) -> None:
    came = fetch(client_of(server), tmp_path / "x", key, status_filter)
    assert came.empty == detail
    assert came.size == (tmp_path / "x").stat().st_size
    check_payload(tmp_path / "x", key)
    value = json.loads((tmp_path / "x").read_bytes())
    assert value["info"]["tracks"] == value["images"] == value["annotations"] == []
    assert value["tracks"] == value["categories"] == []


def test_hostile_keys_reach_the_server_exactly(server: FaultServer, tmp_path: Path) -> None:
    client = client_of(server)
    for key in HOSTILE_KEYS:
        server.add(key)
        fetch(client, tmp_path / "x", key)
        client.tracks(key)
        export, listing = server.requests[-2:]
        assert (export.kind, export.batch) == ("export", key)
        assert (listing.kind, listing.batch) == ("tracks", key)
        assert export.raw_path.split("/")[-3] == quote(key, safe="")
    assert set(batches_by_key(client.batches())) > set(HOSTILE_KEYS)


@pytest.mark.parametrize("key", REFUSED_KEYS, ids=ascii)
def test_keys_that_no_url_carries_are_refused_by_name(
    server: FaultServer, tmp_path: Path, key: str
) -> None:
    client = client_of(server)
    for call in (lambda: batch_path(key), lambda: client.tracks(key)):
        assert show(key) in refusal(call)
    assert show(key) in refusal(lambda: fetch(client, tmp_path / "x", key))
    assert not server.requests


def test_batches_without_a_key_stay_apart() -> None:
    listed: list[dict[str, Any]] = [{"batch_key": "a"}, {}, {"batch_key": 7}, {"batch_key": "a"}]
    assert list(batches_by_key(listed)) == ["a", "<entry 1 has no key>", "<entry 2 has no key>"]


def test_one_session_keeps_connections(server: FaultServer, tmp_path: Path) -> None:
    client = client_of(server)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.tracks("guns"), range(80)))
    assert server.count("tracks", "guns") == 80
    assert server.connections <= 8
    server.reset()
    single = client_of(server)
    for _ in range(3):
        single.batches()
        single.tracks("guns")
        fetch(single, tmp_path / "x")
        fetch(single, tmp_path / "x", "bare")  # its 404's body is read, so the connection stays
        refusal(lambda: single.tracks("gone"))
    assert server.connections == 1


@pytest.mark.parametrize(
    "fault", [gzipped(), drip(500, 0.001), redirect()], ids=["gzip", "drip", "redirect"]
)
def test_odd_but_sound_answers(server: FaultServer, tmp_path: Path, fault: Fault) -> None:
    server.fail("export", fault, times=1)
    fetch(client_of(server), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == server.bodies["guns", "all"]


def test_ipv6_loopback(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with FaultServer(host="::1") as server:
        server.add("guns")
        fetch(Client(parse_api_base(server.base_url + "/", "X"), 10, {}), tmp_path / "x")
        assert server.count("export") == 1


# Retries


def overlong(exchange: Exchange) -> None:
    """More bytes than Content-Length says."""
    answer = exchange.answer
    exchange.send(
        answer.head(Content_Length=len(answer.body) - 9, Connection="close") + answer.body
    )


def zipped(body: bytes) -> bytes:
    return gzip.compress(body)


DETAIL = {"detail": "Please wait"}
RETRIED: dict[str, tuple[Fault, str]] = {
    "closed": (close(), "cannot reach"),
    "reset": (reset(), "cannot reach"),
    "reset in the body": (reset(100), "cut short"),
    "cut to nothing under a length": (cut(0), "cut short"),
    "cut under a length": (cut(100), "cut short"),
    "cut by one byte under a length": (cut(-1), "cut short"),
    "cut under chunking": (cut(100, "chunked"), "cut short"),
    "cut by one byte, close-delimited": (cut(-1, "close"), "cut short"),
    "cut, close-delimited": (cut(100, "close"), "cut short"),
    "cut in the gzip stream": (gzipped(-30), "cut short"),
    "cut in the gzip header": (gzipped(5), ""),
    "a length that is too small": (overlong, "cut short"),
    "cut in the headers": (raw(b"HTTP/1.1 200 OK\r\nContent-Type: applic"), "empty"),
    "empty": (payload(b""), "empty"),
    "blank": (payload(b" \n" * 9), "empty"),
    "429": (status(429, DETAIL), "Please wait"),
    "502": (status(502, "<html><title>502 Bad Gateway</title>"), "502 Bad Gateway"),
    "503": (status(503, DETAIL), "Please wait"),
    "504": (status(504, "upstream\r\n  timeout"), "504: upstream timeout"),
}
NESTED_LIST = b"[" * 60_000
NOT_RETRIED: dict[str, tuple[Fault, str]] = {
    "400": (status(400, {"detail": {"msg": "odd\nrequest"}}), "odd"),
    "401": (status(401, {"detail": "Token expired"}), "401: Token expired): set EXPORT_API_TOKEN"),
    "403": (status(403, "<html><title>403\n Forbidden</title>"), "403: 403 Forbidden"),
    "404 batch": (status(404, {"detail": "Batch not found"}), "no such batch"),
    "404 path": (status(404, {"detail": "Not Found"}), "does not know this path"),
    "404 page": (status(404, "<h1>\x00nginx</h1>" * 99), "404: <h1>nginx"),
    "405": (status(405, {"detail": "Method Not Allowed"}), "405: Method Not Allowed"),
    "422": (
        status(422, {"detail": [{"msg": "should be 'all'"}, {"msg": "b"}]}),
        "should be 'all'; b",
    ),
    "500": (status(500, "Internal Server Error"), "500: Internal Server Error"),
    "500 null": (status(500, {"detail": None}), "500"),
    "500 list": (status(500, ["detail"]), '500: ["detail"]'),
    "500 odd list": (status(500, {"detail": ["a", 1]}), "500"),
    "500 text": (status(500, b'"detail"'), "500"),
    "500 nothing": (status(500), "500. "),
    "500 no UTF-8": (status(500, b"\xff\xfe\x1b[31mred"), "500: "),
    "500 gzip": (status(500, zipped(b'{"detail":"Zipped"}'), Content_Encoding="gzip"), "Zipped"),
    "500 false gzip": (status(500, b"text", Content_Encoding="gzip"), "500"),
    "500 nested": (status(500, NESTED_LIST), "500"),
    "500 huge": (status(500, b"x" * 5_000_000), "500: xxxx"),
    "501": (status(501, "no"), "501: no"),
    "204": (status(204), "204"),
    "206": (status(206, {"info": {}}), "206"),
    "300": (status(300, "choose"), "300"),
    "304": (status(304), "304"),
    "301 to nowhere": (status(301), "301"),
    "999": (status(999, "denied"), "999"),
    "login page": (login_page("Sign\n in"), "HTML page titled 'Sign in'"),
    "login page as JSON": (payload(b"  <HTML><TITLE>x</TITLE>"), "HTML page titled 'x'"),
    "text": (payload(b"upstream connect error"), "'upstream connect error'"),
    "BOM": (payload(b"\xef\xbb\xbf}"), "not JSON"),
    "binary": (payload(bytes(range(128, 256))), "not JSON"),
    "malformed": (payload(b'{"info":{"batch_key" "guns"}}'), "malformed JSON"),
    "nested": (payload(NESTED), "nested"),
    "detail with 200": (payload(b'{"detail":"Not authenticated"}'), "is JSON, but"),
    "null": (payload(b"null"), "JSON"),
    "false gzip": (status(200, b"{}", Content_Encoding="gzip"), "no usable answer"),
    "loop": (redirect(), "redirects"),
    "redirect to odd scheme": (
        status(302, Location="ftp://elsewhere/" + "x" * 5000),
        "no usable answer",
    ),
    "redirect to bad host": (status(302, Location="http://[::1/"), "no usable answer"),
    "redirect to long label": (status(302, Location=f"http://{'a' * 70}/"), "no usable answer"),
    "redirect to bad port": (status(302, Location="http://127.0.0.1:99999/"), "no usable answer"),
    "redirect to no UTF-8": (status(302, Location="/\xff\xfe"), "no usable answer"),
}
EXPORT_ONLY: dict[str, tuple[Fault, str]] = {
    "other batch": (other_batch("else"), "another batch, 'else'"),
    "a part lacks": (mutated(lambda value: value.pop("images") and None), "lacks one of"),
    "NaN": (mutated(lambda value: value.update(more=float("nan"))), "malformed"),
    "a list": (mutated(lambda value: [value]), "lacks one of"),
}


@pytest.mark.parametrize("kind", ["batches", "tracks", "export"])
@pytest.mark.parametrize("name", RETRIED)
def test_tried_four_times(
    server: FaultServer, pauses: list[float], tmp_path: Path, kind: str, name: str
) -> None:
    fault, cause = RETRIED[name]
    client = client_of(server)
    call = request_of(client, kind, tmp_path)
    server.fail(kind, fault)
    assert cause in refusal(call)
    assert (server.count(kind), len(pauses)) == (4, 3)
    server.heal()
    server.reset()
    server.fail(kind, fault, times=3)
    call()
    assert server.count(kind) == 4


def request_of(client: Client, kind: str, folder: Path) -> Callable[[], object]:
    if kind == "export":
        return lambda: fetch(client, folder / "x")
    return client.batches if kind == "batches" else lambda: client.tracks("guns")


@pytest.mark.parametrize("kind", ["batches", "tracks", "export"])
@pytest.mark.parametrize("name", NOT_RETRIED)
def test_tried_once(
    server: FaultServer, pauses: list[float], tmp_path: Path, kind: str, name: str
) -> None:
    fault, cause = NOT_RETRIED[name]
    server.fail(kind, fault)
    message = refusal(request_of(client_of(server), kind, tmp_path))
    assert cause in message or (kind != "export" and "malformed" in message)
    assert message.startswith("GET /batches")
    assert pauses == []
    assert server.count(kind) == (31 if name == "loop" else 1)


@pytest.mark.parametrize("name", EXPORT_ONLY)
def test_what_is_no_export_is_asked_once(
    server: FaultServer, pauses: list[float], tmp_path: Path, name: str
) -> None:
    fault, cause = EXPORT_ONLY[name]
    server.fail("export", fault)
    assert cause in refusal(lambda: fetch(client_of(server), tmp_path / "x"))
    assert (server.count("export"), pauses) == (1, [])


def test_pauses_grow_and_differ(server: FaultServer, pauses: list[float], tmp_path: Path) -> None:
    server.fail("export", close())
    for _ in range(2):
        refusal(lambda: fetch(client_of(server), tmp_path / "x"), UnreachableError)
    for pause, least in zip(pauses, [1, 2, 4] * 2, strict=True):
        assert least <= pause <= 1.25 * least
    assert len(set(pauses)) == 6


def test_each_try_may_fail_otherwise(
    server: FaultServer, pauses: list[float], tmp_path: Path
) -> None:
    for fault in (status(503), cut(50), reset()):
        server.fail("export", fault, times=1)
    assert fetch(client_of(server), tmp_path / "x").attempts == 4
    assert (tmp_path / "x").read_bytes() == server.bodies["guns", "all"]
    for fault in (cut(50), status(500, "broken")):
        server.fail("export", fault, times=1)
    server.reset()
    assert "500: broken" in refusal(lambda: fetch(client_of(server), tmp_path / "x"))
    assert server.count("export") == 2
    assert len(pauses) == 4


def test_an_empty_answer_after_a_cut_one(
    server: FaultServer, pauses: list[float], tmp_path: Path
) -> None:
    server.fail("export", status(200, SAMPLE[:-5], Content_Type="application/json"), times=1)
    came = fetch(client_of(server), tmp_path / "x", "bare")
    assert (came.attempts, came.empty) == (2, EMPTY_DETAILS[1])
    check_payload(tmp_path / "x", "bare")


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        *(("7", 7, 7), (" 7 ", 7, 7), ("0", 0, 0), ("60", 60, 60), ("61", 60, 60)),
        *(("9" * 400, 60, 60), ("9" * 6000, 1, 60)),
        *(("-5", 1, 1.25), ("1.5", 1, 1.25), ("nan", 1, 1.25), ("", 1, 1.25), ("soon", 1, 1.25)),
        *(("Fri, 01 Jan 2100 00:00:00 GMT", 60, 60), ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0)),
        *(("Fri, 31 Dec 999999 23:59:59 GMT", 1, 60), ("Fri, 99 Foo 2026 99:99:99 GMT", 0, 60)),
        *(("0 Jan 0", 0, 60), ("Fri, 31 Dec 2026 23:59:59 +99999999999", 0, 60)),
        ("Mon, 01 Jan 0000 00:00:00 GMT", 0, 60),
    ],
)
def test_retry_after(
    server: FaultServer, pauses: list[float], value: str, least: float, most: float
) -> None:
    server.fail("batches", status(503, Retry_After=value), times=1)
    client_of(server).batches()
    assert len(pauses) == 1
    assert least <= pauses[0] <= most


def test_retry_after_a_date(server: FaultServer, pauses: list[float]) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server.fail("batches", status(429, Retry_After=soon), times=1)
    client_of(server).batches()
    assert 20 < pauses[0] <= 30


# Causes


def test_no_backend(server: FaultServer, pauses: list[float], tmp_path: Path) -> None:
    server.stop()
    for kind in ("batches", "tracks", "export"):
        message = refusal(request_of(client_of(server), kind, tmp_path), UnreachableError)
        for said in ("port-forward", "EXPORT_API_BASE", "export_batches.sh", "Connection refused"):
            assert said in message
    assert len(pauses) == 9
    server.start()
    fetch(client_of(server), tmp_path / "x")


@pytest.mark.parametrize(
    "base",
    ["http://nowhere.invalid/api", f"http://{'a' * 70}/", "http://a..b/", "https://127.0.0.1:1"],
)
def test_no_such_host(pauses: list[float], base: str) -> None:
    base = parse_api_base(base, "X")
    assert base in refusal(Client(base, 10, {}).batches)


def test_not_tls(server: FaultServer, pauses: list[float]) -> None:
    base = server.base_url.replace("http:", "https:")
    assert "no secure connection" in refusal(Client(base, 10, {}).batches)


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\x15\x03\x01\x00\x02\x02\x46",
            b"\r\n\r\n",
            b"\x1b[31mred\r\n",
        ),
        *(b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000, b"220 smtp\r\n" * 99),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n[]\r\n0\r\n\r\n",
    ],
    ids=lambda data: ascii(data[:24]),
)
def test_another_protocol(server: FaultServer, pauses: list[float], data: bytes) -> None:
    server.fail("batches", raw(data))
    refusal(client_of(server).batches)


@pytest.mark.parametrize(
    "header", ["Content-Length: -1", "Content-Length: abc", "Content-Length: 2, 2", "X-\xff: \xff"]
)
def test_odd_headers_of_a_sound_answer(
    server: FaultServer, pauses: list[float], header: str
) -> None:
    server.fail("batches", raw(f"HTTP/1.1 200 OK\r\n{header}\r\n\r\n[]".encode("latin-1")))
    assert client_of(server).batches() == []


def test_wrong_path(server: FaultServer) -> None:
    base = server.base_url.removesuffix("/api")
    message = refusal(Client(base, 10, {}).batches)
    assert "404: Not Found" in message
    assert "EXPORT_API_BASE" in message
    assert base in message


def test_no_listing_route(server: FaultServer) -> None:
    server.fail("tracks", status(404, {"detail": "Not Found"}))
    refusal(lambda: client_of(server).tracks("guns"), RouteMissingError)
    server.heal()
    with pytest.raises(ApiError) as caught:
        client_of(server).tracks("gone")
    assert not isinstance(caught.value, RouteMissingError)


def test_no_answer_in_time(server: FaultServer, pauses: list[float], tmp_path: Path) -> None:
    server.fail("export", Hold())
    message = refusal(lambda: fetch(client_of(server, timeout=0.2), tmp_path / "x"))
    assert "no answer within 0.2 s" in message
    assert "EXPORT_REQUEST_TIMEOUT" in message
    assert server.count("export") == 1


@pytest.mark.parametrize("kind", ["batches", "export"])
def test_a_body_that_stalls(
    server: FaultServer, pauses: list[float], tmp_path: Path, kind: str
) -> None:
    server.fail(kind, Hold(after=50))
    message = refusal(request_of(client_of(server, timeout=0.2), kind, tmp_path))
    assert "0.2 s" in message
    assert "EXPORT_REQUEST_TIMEOUT" in message
    assert "cannot reach" not in message


def test_too_many_requests_say_what_to_do(server: FaultServer, pauses: list[float]) -> None:
    server.fail("batches", status(429, {"detail": "Slow down"}))
    message = refusal(client_of(server).batches)
    assert "429: Slow down" in message
    assert "later" in message


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"batches":[]}', b"[1]", b'[{"batch_key":"a"},null]', b'"a"', b'{"detail":"x"}'),
        *(b'[{"a":NaN}]', b"\xef\xbb\xbf[]", "[]".encode("utf-16")),
    ],
)
def test_lists_that_are_none(server: FaultServer, body: bytes) -> None:
    server.fail("batches", payload(body))
    assert "JSON" in refusal(client_of(server).batches)


def test_a_long_key_leaves_its_message_whole(server: FaultServer, tmp_path: Path) -> None:
    message = refusal(lambda: fetch(client_of(server), tmp_path / "x", "k" * 300))
    assert re.match(r"GET /batches/k{80,}….*: the backend has no such batch", message)


def test_a_disk_that_is_full_is_no_network_error(server: FaultServer, pauses: list[float]) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left") as caught:
        fetch(client_of(server), full)
    assert caught.value.errno == errno.ENOSPC
    assert server.count("export") == 1


# Secrets


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(os.fsencode(f"{user}:{password}")).decode()


def with_credentials(server: FaultServer, credentials: str) -> str:
    return server.base_url.replace("//", f"//{credentials}@")


def test_bearer_token(server: FaultServer, tmp_path: Path) -> None:
    client = client_of(server, EXPORT_API_TOKEN=f" {TOKEN}\n")
    client.batches()
    client.tracks("guns")
    fetch(client, tmp_path / "x")
    assert [r.headers["authorization"] for r in server.requests] == [f"Bearer {TOKEN}"] * 3
    assert not any(TOKEN in request.raw_path for request in server.requests)
    assert TOKEN not in repr(client)


@pytest.mark.parametrize("token", ["a\r\nX-Evil: 1", "a\nb", "tökén", "a\x00b", "a\x7fb", "\udcff"])
def test_a_token_that_no_header_carries(token: str) -> None:
    message = refusal(
        lambda: Client("http://127.0.0.1:1", 1, {"EXPORT_API_TOKEN": token}), SettingError
    )
    assert "EXPORT_API_TOKEN" in message
    assert token not in message


@pytest.mark.parametrize(
    ("given", "user", "password"),
    [
        ("me:hunter22", "me", "hunter22"),
        ("me:hunter%4022%2F", "me", "hunter@22/"),
        ("me", "me", ""),
        ("m%C3%A9:gehe%C3%AFm", "mé", "geheïm"),
        ("я:пароль", "я", "пароль"),
        ("me:p\udcffw", "me", "p\udcffw"),
    ],
)
def test_credentials_of_the_base_url(
    server: FaultServer, given: str, user: str, password: str
) -> None:
    environ = {"EXPORT_API_BASE": with_credentials(server, given)}
    client = Client(Settings.from_environment(environ).api_base, 10, environ)
    client.batches()
    assert server.requests[-1].headers["authorization"] == basic(user, password)
    both = Client(server.base_url, 10, environ | {"EXPORT_API_TOKEN": TOKEN})
    both.batches()
    assert server.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"


def test_credentials_go_to_their_own_backend_alone(server: FaultServer) -> None:
    Client(server.base_url, 10, {"EXPORT_API_BASE": "http://me:pw@127.0.0.1:1/api"}).batches()
    assert "authorization" not in server.requests[-1].headers


def echo(code: int, before: str = "") -> Fault:
    """An answer that quotes the credentials that it was sent, encoded and in clear."""

    def fault(exchange: Exchange) -> None:
        sent = exchange.request.headers["authorization"]
        kind, _, value = sent.partition(" ")
        clear = base64.b64decode(value).decode(errors="replace") if kind == "Basic" else value
        said = f"{before}{sent} {clear}"
        exchange.send_whole(as_json(code, {"detail": said}))

    return fault


def echo_start(exchange: Exchange) -> None:
    sent = exchange.request.headers["authorization"].encode()
    exchange.send_whole(as_json(200, 0).__class__(200, sent))


LONG_TOKEN = "eyJhbGciOiJSUzI1NiJ9." + "".join(f"{number:x}" for number in range(3000, 3300))


@pytest.mark.parametrize("kind", ["batches", "tracks", "export"])
@pytest.mark.parametrize(
    "fault",
    [*(echo(code) for code in (400, 401, 404, 500, 503)), echo(403, "x" * 170), echo_start],
    ids=["400", "401", "404", "500", "503", "at the end of a detail", "as the body"],
)
@pytest.mark.parametrize("secret", [TOKEN, LONG_TOKEN, "basic"])
def test_no_message_holds_a_secret(
    server: FaultServer, pauses: list[float], tmp_path: Path, kind: str, fault: Fault, secret: str
) -> None:
    environ = {"EXPORT_API_TOKEN": secret}
    hidden = [secret]
    if secret == "basic":
        password = "hünter22-hunter22"
        environ = {"EXPORT_API_BASE": with_credentials(server, f"me:{quote(password)}")}
        hidden = [password, basic("me", password).partition(" ")[2]]
    server.fail(kind, fault)
    with pytest.raises(ApiError) as caught:
        request_of(Client(server.base_url, 10, environ), kind, tmp_path)()
    message = str(caught.value)
    assert message.isprintable()
    for secret_ in hidden:
        assert secret_[:10] not in message, "a piece of it is too much"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultServer]:
    """A `.netrc` for every host, and a proxy for every URL, which is returned."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\ndefault login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with FaultServer() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
        yield proxy


@pytest.mark.parametrize(
    ("environ", "sent"),
    [({}, None), ({"EXPORT_API_TOKEN": TOKEN}, f"Bearer {TOKEN}")],
    ids=["bare", "token"],
)
def test_netrc_and_proxies_do_nothing_on_loopback(
    server: FaultServer,
    traps: FaultServer,
    tmp_path: Path,
    environ: dict[str, str],
    sent: str | None,
) -> None:
    server.fail("export", redirect(server.base_url), times=1)
    bases = [server.base_url, server.base_url.replace("127.0.0.1", "localhost")]
    for base in bases:
        client = Client(base, 10, environ)
        client.batches()
        fetch(client, tmp_path / "x")
    assert {request.headers.get("authorization") for request in server.requests} == {sent}
    assert len(server.requests) == 5
    assert traps.connections == 0


def test_netrc_does_not_replace_the_token_elsewhere(traps: FaultServer) -> None:
    """Another host is reached through the proxy, as the user asks; with this token alone."""
    base = f"http://backend.example{ROOT_PATH}"
    Client(base, 10, {"EXPORT_API_TOKEN": TOKEN}).batches()
    assert traps.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"
    Client(base, 10, {}).batches()
    assert "authorization" not in traps.requests[-1].headers


@pytest.mark.parametrize(
    "proxy", ["http://me:hunter22@127.0.0.1:1", "http://me:hunter22@[::1", "x://me:hunter22@h"]
)
def test_a_proxy_keeps_its_password(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], proxy: str
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    assert "hunter22" not in refusal(Client("http://backend.example", 10, {}).batches)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_does_not_carry_the_token(
    server: FaultServer, tmp_path: Path, code: int
) -> None:
    with FaultServer() as other:
        other.add("guns")
        server.fail("export", redirect(other.base_url, code))
        client = client_of(server, EXPORT_API_TOKEN=TOKEN)
        fetch(client, tmp_path / "x")
        assert server.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"
        assert other.count("export", "guns") == 1
        assert TOKEN not in repr(other.requests)


# Memory


def large_export() -> Iterator[bytes]:
    """100 MB of an export."""
    yield b'{"info":{"batch_key":"guns"},"images":[],"annotations":[],"tracks":[],"more":[0'
    piece = b",0.12345" * 125_000
    for _ in range(100):
        yield piece
    yield b"]}"


def bomb(exchange: Exchange) -> None:
    """The same, compressed to less than 1 MB."""
    exchange.send(as_json(200, 0).head(Content_Encoding="gzip", Connection="close") + BOMB)


BOMB = b""


@pytest.mark.parametrize("fault", [stream(large_export), bomb], ids=["large", "bomb"])
def test_memory_is_bounded(server: FaultServer, tmp_path: Path, fault: Fault) -> None:
    global BOMB
    BOMB = BOMB or gzip.compress(b"".join(large_export()), 1)
    server.fail("export", fault)
    code = f"""
        import pathlib, resource
        from export_via_api import Client, check_payload
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        client = Client({server.base_url!r}, 60, {{}})
        client.batches()
        before = peak()
        came = client.download("guns", "all", pathlib.Path("x"), lambda p: check_payload(p, "guns"))
        print(came.size, peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    size, grown = map(int, run.stdout.split())
    assert size > 100_000_000
    assert grown < 40_000, "kB"  # a few chunks of 1 MB
