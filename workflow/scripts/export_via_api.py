#!/usr/bin/env python3
"""Export annotation tracks from an Auto Labeler backend, one JSON file per batch.

Needs Python 3.11 and `requests`, nothing else: this file can be copied alone to any machine that
reaches the backend. It writes `<batch>_<filter>_tracks.json` into the current folder. The
workflow's own scripts import the API client from here.

Settings are environment variables:

  EXPORT_API_BASE         base URL of the backend's API
                          (default http://localhost:8081/dataset-curation/auto-labeler-labeler/api)
  EXPORT_BATCH_KEY        batch keys to export, comma-separated (default: all batches)
  EXPORT_STATUS_FILTER    complete (default) or all
  EXPORT_REQUEST_TIMEOUT  seconds to wait for the backend at each step (default 60)
  EXPORT_TIME_LIMIT       seconds that one export may take in all, new tries included (default 3600)
  EXPORT_SIZE_LIMIT       MB that one export may have (default 10000)
  EXPORT_API_TOKEN        bearer token, where the deployment wants one (default: none)

Exit code: 0 nothing failed, 1 a batch failed or the backend did not answer, 2 a bad setting.
"""

from __future__ import annotations

import argparse
import base64
import codecs
import contextlib
import dataclasses
import difflib
import errno
import functools
import hashlib
import io
import ipaddress
import json
import math
import os
import random
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.exceptions import HTTPError as Urllib3Error
from urllib3.exceptions import InvalidHeader, ReadTimeoutError
from urllib3.util import Retry

DEFAULT_API_BASE = "http://localhost:8081/dataset-curation/auto-labeler-labeler/api"
STATUS_FILTERS = ("complete", "all")
DEFAULT_STATUS_FILTER = "complete"
DEFAULT_REQUEST_TIMEOUT = 60.0
MAX_REQUEST_TIMEOUT = 86_400.0  # seconds; a socket takes no more than 2**31 ms
DEFAULT_TIME_LIMIT = 3600.0  # seconds
DEFAULT_SIZE_LIMIT = 10_000.0  # MB
PAYLOAD_PARTS = ("info", "images", "annotations", "tracks")

TRIES = 4
RETRIED_STATUSES = (429, 502, 503, 504)
MAX_RETRY_AFTER = 60.0  # seconds
MAX_CONNECTIONS = 8
CHUNK_SIZE = 1 << 20  # bytes
MAX_ERROR_BODY = 1 << 16  # bytes of an error response that are read
MAX_LIST_BODY = 64 << 20  # bytes; tens of thousands of batches or tracks have less
FULL_PARSE_LIMIT = 32 << 20  # bytes; larger payloads are only checked for being whole

# The two 404s that say "nothing to export" (the API's own words) rather than "something is wrong".
EMPTY_DETAILS = ("No completed tracks available for export", "No tracks found for export")

OPEN_A_TUNNEL = (
    "If it runs in a cluster, open a port-forward (kubectl port-forward -n dataset-curation "
    "svc/auto-labeler-backend 8081:8000), or let workflow/scripts/export_batches.sh open the "
    "tunnel; if it is elsewhere, set EXPORT_API_BASE."
)

RAISE_SIZE_LIMIT = "see what the backend sends, and raise EXPORT_SIZE_LIMIT if it is sound"

Received = TypeVar("Received")


class ExportError(Exception):
    """An expected failure, told in one line: what failed, why, and what to do."""


class SettingError(ExportError):
    """A setting that cannot be used."""


class ApiError(ExportError):
    """The backend gave no usable answer."""


class TruncatedBodyError(ApiError):
    """A response body that ends before the payload does. Worth another try."""


class UnreachableError(ApiError):
    """No connection to the backend. Worth another try."""


class RouteMissingError(ApiError):
    """The backend does not know the requested path at all."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to export and from where. Holds no secret."""

    api_base: str = DEFAULT_API_BASE
    batch_keys: tuple[str, ...] = ()  # none: all batches
    status_filter: str = DEFAULT_STATUS_FILTER
    request_timeout: float = DEFAULT_REQUEST_TIMEOUT  # seconds, each step
    time_limit: float = DEFAULT_TIME_LIMIT  # seconds, one export in all
    size_limit: float = DEFAULT_SIZE_LIMIT  # MB, one export

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the `EXPORT_*` variables; an empty one counts as not set.

        Raises:
            SettingError: a variable has a value that cannot be used.
        """
        api_base, _ = split_credentials(environ.get("EXPORT_API_BASE") or DEFAULT_API_BASE)
        return cls(
            api_base=parse_api_base(api_base, "EXPORT_API_BASE"),
            batch_keys=split_batch_keys(environ.get("EXPORT_BATCH_KEY", "")),
            status_filter=parse_status_filter(
                environ.get("EXPORT_STATUS_FILTER") or DEFAULT_STATUS_FILTER,
                "EXPORT_STATUS_FILTER",
            ),
            request_timeout=parse_timeout(
                environ.get("EXPORT_REQUEST_TIMEOUT") or DEFAULT_REQUEST_TIMEOUT,
                "EXPORT_REQUEST_TIMEOUT",
            ),
            time_limit=parse_timeout(
                environ.get("EXPORT_TIME_LIMIT") or DEFAULT_TIME_LIMIT, "EXPORT_TIME_LIMIT"
            ),
            size_limit=parse_size(
                environ.get("EXPORT_SIZE_LIMIT") or DEFAULT_SIZE_LIMIT, "EXPORT_SIZE_LIMIT"
            ),
        )


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Take `user:password@` out of a URL: (the URL without it, (user, password) or None)."""
    scheme, separator, rest = url.strip().partition("://")
    authority, slash, path = rest.partition("/")
    userinfo, at, host = authority.rpartition("@")
    if not (separator and at):
        return url, None
    user, _, password = userinfo.partition(":")
    return f"{scheme}://{host}{slash}{path}", (unquote(user), unquote(password))


def parse_api_base(value: str, name: str) -> str:
    """Return a base URL without its trailing slash.

    Raises:
        SettingError: no http(s) URL, or one with credentials, a query or a fragment.
    """
    value = value.strip()
    if split_credentials(value)[1]:
        raise SettingError(
            f"{name} holds credentials: give them in the environment alone "
            "(EXPORT_API_TOKEN, or EXPORT_API_BASE with user:password@)."
        )
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"[\s\x00-\x1f]", value):
        shown = value.rpartition("@")[2].partition("?")[0]  # what is left out may be a secret
        raise SettingError(
            f"{name} is {show(shown)}: it must be a whole URL that starts with http:// or "
            f"https://, for example {DEFAULT_API_BASE}."
        )
    if parts.query or parts.fragment:
        raise SettingError(
            f"{name} must end with the path: leave out what follows '?' or '#' "
            "(a token goes into EXPORT_API_TOKEN)."
        )
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))


def parse_status_filter(value: str, name: str) -> str:
    """Return a status filter that the API knows, or raise SettingError."""
    if value not in STATUS_FILTERS:
        raise SettingError(f"{name} is {show(value)}: it must be 'complete' or 'all'.")
    return value


def parse_timeout(value: str | float, name: str) -> float:
    """Return a timeout in seconds, or raise SettingError."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds <= MAX_REQUEST_TIMEOUT):
        raise SettingError(
            f"{name} is {show(str(value))}: it must be a number of seconds above 0 (at most "
            f"{MAX_REQUEST_TIMEOUT:g}), for example 60."
        )
    return seconds


def parse_size(value: str | float, name: str) -> float:
    """Return a size in MB, or raise SettingError."""
    try:
        size = float(value)
    except ValueError:
        size = math.nan
    if not (0 < size < math.inf):
        raise SettingError(
            f"{name} is {show(str(value))}: it must be a number of MB above 0, for example 10000."
        )
    return size


def split_batch_keys(value: str) -> tuple[str, ...]:
    """Split a comma-separated list of batch keys, each named once."""
    return tuple(dict.fromkeys(key for part in value.split(",") if (key := part.strip())))


def show(text: str, limit: int = 120) -> str:
    """Quote text from outside for a message: one line, no control characters, not too long."""
    shown = repr(text) if text.isprintable() else ascii(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def plain(text: str, limit: int = 60) -> str:
    """Return text from outside as `show` does, without the quotes where it can do without."""
    shown = show(text, len(text) * 10 + 2)[1:-1] or "''"
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def export_name(batch_key: str) -> str:
    """Return the file-name form of a batch key; different keys have different names.

    Everything outside `A-Za-z0-9._-`, and a leading `.` or `-`, is percent-encoded. A name too
    long for a file, or one that ends in many repeats of one string (Snakemake takes a wildcard
    like that for an endless loop), is cut and marked with `~` and a digest of the key.
    """
    name = "".join(
        char if re.fullmatch(r"[A-Za-z0-9._-]", char) else _percent_encode(char)
        for char in batch_key
    )
    if name[:1] in (".", "-"):
        name = _percent_encode(name[0]) + name[1:]
    if len(name) > 150 or any(
        re.search(r"(.+)\1{14}$", f"{name}_{filter_}") for filter_ in STATUS_FILTERS
    ):
        digest = hashlib.sha256(batch_key.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{name[:80]}~{digest[:32]}"
    return name


def _percent_encode(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def export_file_name(batch_key: str, status_filter: str) -> str:
    """Return the name of the file that holds a batch's export."""
    return f"{export_name(batch_key)}_{status_filter}_tracks.json"


def nearest_keys(batch_key: str, known: Iterable[str]) -> str:
    """Return a sentence that names the known keys most like `batch_key`."""
    nearest = difflib.get_close_matches(batch_key, list(known), n=3, cutoff=0.5)
    if not nearest:
        return "No key of the batch list is like it."
    return f"Nearest: {', '.join(show(key) for key in nearest)}."


def empty_payload(batch_key: str) -> bytes:
    """Return the payload of a batch in which nothing matches the filter: valid, with no tracks."""
    now = datetime.now(UTC).isoformat()
    payload = {
        "info": {"batch_key": batch_key, "exported_at": now, "tracks": []},
        "images": [],
        "annotations": [],
        "categories": [],
        "tracks": [],
    }
    return json.dumps(payload, separators=(",", ":")).encode()


@contextlib.contextmanager
def replacing(target: Path, staging: Path | None = None) -> Iterator[Path]:
    """Give a new file's path to write to; put it in `target`'s place when the block succeeds.

    The new file lies in `staging` (the target's folder by default; it must be on the same file
    system). It replaces the target only whole and on disk; when the block fails it is removed and
    the target stays as it was.
    """
    folder = staging or target.parent
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{target.name[:180]}.{secrets.token_hex(4)}.part"
    try:
        yield part
        _flush(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def storage_error(error: OSError, target: Path) -> ExportError:
    """Say in one line why a file could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space and run again; what was exported before is untouched."
        return ExportError(f"No space left to write {target}: {advice}")
    return ExportError(f"Cannot write {target}: {error.strerror or error}.")


def check_whole(file: IO[bytes]) -> None:
    """Check that an open file holds one whole JSON object or array, in bounded memory.

    Transports can end a body early without saying so (a close-delimited response, a gzip stream
    cut inside a complete body): only the JSON's own brackets tell.

    Raises:
        TruncatedBodyError: the file is empty, or ends before its JSON does.
        ApiError: it is not JSON at all.
    """
    file.seek(0)
    head = file.read(4096).lstrip()
    if not head:
        raise TruncatedBodyError("the body is empty.")
    if head[:1] not in b"{[":
        raise not_json(head)
    file.seek(0)
    open_brackets = bytearray()
    in_string = ended = False
    rest = b""
    while chunk := file.read(CHUNK_SIZE):
        data = rest + chunk
        # An escape may straddle two chunks: keep an unpaired backslash for the next.
        rest = b"\\" if (len(data) - len(data.rstrip(b"\\"))) % 2 else b""
        data = data[: len(data) - len(rest)]
        if b"\\" not in data:  # nothing but structure counts: several times as fast
            data = data.translate(None, _NO_STRUCTURE)
        for match in _STRUCTURE.finditer(data):
            token = match[0]
            if token == b'"':
                in_string = not in_string
            elif in_string or len(token) > 1:
                continue
            elif ended:
                raise ApiError("there is more than one JSON value in the body.")
            elif token in b"{[":
                open_brackets += b"}" if token == b"{" else b"]"
            elif not open_brackets or open_brackets.pop() != token[0]:
                raise ApiError("the body is malformed JSON (brackets do not match).")
            else:
                ended = not open_brackets
    if not ended:
        raise TruncatedBodyError(f"the body was cut short after {file.tell():,} bytes.")


_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.DOTALL | re.IGNORECASE)
_STRUCTURE = re.compile(rb'\\.|["{}\[\]]', re.DOTALL)
_NO_STRUCTURE = bytes(set(range(256)) - set(b'"{}[]'))


def check_payload(path: Path, batch_key: str) -> None:
    """Check a downloaded export: whole, and (up to `FULL_PARSE_LIMIT`) what was asked for.

    Raises:
        TruncatedBodyError: the file ends before its JSON does.
        ApiError: not JSON, not an export, or another batch's.
    """
    with path.open("rb") as file:
        check_whole(file)
    if path.stat().st_size > FULL_PARSE_LIMIT:
        return
    try:
        payload = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise ApiError(f"the body is malformed JSON ({error}).") from None
    except RecursionError:
        raise ApiError("the body is nested too deeply.") from None
    if not isinstance(payload, dict) or not all(part in payload for part in PAYLOAD_PARTS):
        raise ApiError(f"the body is JSON, but lacks one of {', '.join(PAYLOAD_PARTS)}.")
    info = payload["info"]
    if not isinstance(info, dict) or "batch_key" not in info:
        raise ApiError("the payload does not say of which batch it is.")
    if info["batch_key"] != batch_key:
        raise ApiError(f"the payload is of another batch, {show(str(info['batch_key']))}.")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def not_json(head: bytes) -> ApiError:
    """Return the error for a body, of which this is the start, that is no JSON at all."""
    if head.lstrip()[:1] != b"<":
        return ApiError(f"the body is not JSON: it starts with {show(_decode(head[:40]))}.")
    title = _TITLE.search(head)
    named = f" titled {show(_decode(title[1]))}" if title else ""
    return ApiError(
        f"an HTML page{named} came instead of JSON, probably a login page or another service: "
        "check EXPORT_API_BASE, and set EXPORT_API_TOKEN if a proxy guards the backend."
    )


def _one_line(text: str) -> str:
    """Return text from outside as one short line without control characters."""
    text = "".join(char for char in " ".join(text.split()) if char.isprintable())
    return text if len(text) <= 200 else f"{text[:199]}…"


def _without(secret: str, text: str) -> str:
    """Take a secret out of a text, and what a shortened text has left of its start."""
    for length in range(len(secret), min(len(secret), 8) - 1, -1):
        text = text.replace(secret[:length], "***")
    return text


def _decode(data: bytes) -> str:
    return " ".join(data.decode("utf-8", "replace").split())


@dataclasses.dataclass(frozen=True)
class Download:
    """What came of one export: the file's size and digest, and how many tries it took."""

    size: int  # bytes
    sha256: str
    attempts: int
    empty: str = ""  # the API's own words when nothing matches the filter


@dataclasses.dataclass(frozen=True)
class _Answer:
    """A response: its status, what it says of its error, its body, and the number of this try."""

    status: int
    detail: str
    body: Iterator[bytes]
    attempt: int


class _TimeLimitReachedError(ApiError):
    """An answer took more time in all than it has."""


class _Authorization(AuthBase):
    """Sets the Authorization header itself.

    Without an auth object, requests looks into `.netrc` and lets it override the header.
    """

    def __init__(self, token: str, credentials: tuple[str, str] | None) -> None:
        self._token = token
        # As bytes: requests would encode text as Latin-1, which not every password has.
        user, password = (os.fsencode(part) for part in credentials or ("", ""))
        self._basic = HTTPBasicAuth(user, password) if credentials else None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        elif self._basic:
            self._basic(request)
        return request


class _Session(requests.Session):
    """Takes nothing on trust from a redirect."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks["response"].append(_bound_redirect)

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Leave credentials behind on the way to another host; requests would look in `.netrc`."""
        headers, sent = prepared_request.headers, response.request.url
        target = prepared_request.url or ""
        if self.should_strip_auth(sent or "", target):  # type: ignore[no-untyped-call]
            headers.pop("Authorization", None)


def _bound_redirect(response: requests.Response, **_: object) -> None:
    """Refuse a redirect with a large body, which requests would read into memory."""
    if (
        response.is_redirect
        and len(response.raw.read(MAX_ERROR_BODY, decode_content=True)) == MAX_ERROR_BODY
    ):
        raise ApiError("a redirect with a body without end came, which no backend sends.")


class Client:
    """The backend's HTTP API: batch list, track listings, exports.

    One keep-alive session; safe to use from several threads. Connection errors, the statuses in
    `RETRIED_STATUSES` and bodies cut short are tried again, `TRIES` times in all; nothing else is.
    """

    def __init__(
        self,
        api_base: str,
        timeout: float,
        environ: Mapping[str, str],
        *,
        time_limit: float = DEFAULT_TIME_LIMIT,
        size_limit: float = DEFAULT_SIZE_LIMIT,
    ) -> None:
        """Make a client; it connects when it is first asked for something.

        Args:
            api_base: The base URL, without credentials.
            timeout: Seconds to wait at each step of a request.
            environ: Where secrets are read (EXPORT_API_TOKEN, credentials in EXPORT_API_BASE).
            time_limit: Seconds that an answer may take in all, new tries included.
            size_limit: MB that an export may have.
        """
        self.api_base = api_base
        self._timeout = timeout
        self._time_limit = time_limit
        self._size_limit = size_limit
        token = environ.get("EXPORT_API_TOKEN", "").strip()
        if not token.isascii() or not token.isprintable():
            raise SettingError("EXPORT_API_TOKEN holds characters that no HTTP header can carry.")
        base, credentials = split_credentials(environ.get("EXPORT_API_BASE", ""))
        if credentials and parse_api_base(base, "EXPORT_API_BASE") != api_base:
            credentials = None  # they belong to another backend
        self._secrets = [secret for secret in (token, *(credentials or ())[1:]) if secret]
        if credentials:
            self._secrets.append(base64.b64encode(os.fsencode(":".join(credentials))).decode())
        self._session = _Session()
        self._session.auth = _Authorization(token, credentials)
        self._session.headers["Accept"] = "application/json"
        # Proxies and .netrc are for other hosts: a tunnel's end on this machine needs neither.
        self._session.trust_env = not is_loopback(urlsplit(api_base).hostname or "")
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=MAX_CONNECTIONS)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    @classmethod
    def of(cls, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Client:
        """Return a client with the settings of a `Settings`, given as a dict."""
        return cls(
            settings["api_base"],
            settings["request_timeout"],
            environ,
            time_limit=settings["time_limit"],
            size_limit=settings["size_limit"],
        )

    def batches(self) -> list[dict[str, Any]]:
        """Return the batch list: one dict a batch, newest first, as the API gives it.

        Raises:
            ApiError: no usable answer.
        """
        try:
            return self._get_list("/batches")
        except RouteMissingError as error:
            raise ApiError(
                f"{error} Check the path of EXPORT_API_BASE ({self.api_base}); "
                f"it usually ends like {DEFAULT_API_BASE}."
            ) from None

    def tracks(self, batch_key: str) -> list[dict[str, Any]]:
        """Return a batch's track listing: one dict a track, as the API gives it.

        Raises:
            RouteMissingError: the deployment does not serve track listings.
            ApiError: no usable answer.
        """
        return self._get_list(f"{batch_path(batch_key)}/tracks")

    def download(
        self, batch_key: str, status_filter: str, path: Path, check: Callable[[Path], object]
    ) -> Download:
        """Stream one batch's export to a file, byte for byte; memory use does not grow with it.

        A batch in which nothing matches the filter gives an empty payload.

        Args:
            batch_key: The batch to export.
            status_filter: `complete` or `all`.
            path: The file to write; left as it is when this fails.
            check: Called with the file; raises TruncatedBodyError or ApiError if it is no export.

        Raises:
            ApiError: no usable answer, or the check failed.
            OSError: the file could not be written.
        """

        def receive(answer: _Answer) -> Download:
            if answer.status == 404 and answer.detail in EMPTY_DETAILS:
                size, sha256 = _write(path, [empty_payload(batch_key)])
                return Download(size, sha256, answer.attempt, answer.detail)
            _require_ok(answer)
            size, sha256 = _write(path, answer.body)
            with ThreadPoolExecutor(1) as pool:  # to check takes as long as to write to disk
                flushed = pool.submit(_flush, path)
                check(path)
                flushed.result()
            return Download(size, sha256, answer.attempt)

        route = f"{batch_path(batch_key)}/tracks/export"
        limit = int(self._size_limit * 1e6)
        return self._get(route, {"status_filter": status_filter}, limit, receive)

    def _get_list(self, route: str) -> list[dict[str, Any]]:
        def receive(answer: _Answer) -> list[dict[str, Any]]:
            _require_ok(answer)
            return _parse_list(b"".join(answer.body))

        return self._get(route, {}, MAX_LIST_BODY, receive)

    def _get(
        self,
        route: str,
        params: Mapping[str, str],
        limit: int,
        receive: Callable[[_Answer], Received],
    ) -> Received:
        """GET a route and hand the answer to `receive`; the one layer that tries again.

        A body of more than `limit` bytes is refused as it comes.
        """
        url = f"{self.api_base}{route}"
        deadline = time.monotonic() + self._time_limit

        def ask(attempt: int, pause: float) -> tuple[Received | None, float]:
            """Return what was received, or None and how long to pause before the next try."""
            with self._session.get(
                url, params=params, timeout=self._timeout, stream=True
            ) as response:
                if response.status_code in RETRIED_STATUSES and attempt < TRIES:
                    return None, _retry_after(response, pause)
                detail = "" if response.ok else _error_detail(response)
                body = _bounded(response.iter_content(CHUNK_SIZE), limit, deadline)
                return receive(_Answer(response.status_code, detail, body, attempt)), 0.0

        for attempt in range(1, TRIES + 1):
            pause = 2.0 ** (attempt - 1) * random.uniform(1, 1.25)  # noqa: S311
            try:
                received, pause = _until(deadline, functools.partial(ask, attempt, pause))
                if received is not None:
                    return received
            # requests lets a ValueError through when a redirect's Location is no URL.
            except (ApiError, requests.RequestException, Urllib3Error, ValueError) as error:
                failure = self._explain(route, error)
                again = isinstance(failure, (TruncatedBodyError, UnreachableError))
                if attempt == TRIES or not again or time.monotonic() + pause > deadline:
                    raise failure from None
            if time.monotonic() + pause > deadline:
                raise self._explain(route, _TimeLimitReachedError())
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _explain(self, route: str, error: Exception) -> ApiError:
        """Turn what went wrong with a request into one line that says what to do."""
        kind: type[ApiError] = ApiError
        seconds = f"{self._timeout:g} s"
        if isinstance(error, _TimeLimitReachedError):
            said = (
                f"not finished after {self._time_limit:g} s, which is all the time that it has. "
                "The backend may be busy: run again later, or raise EXPORT_TIME_LIMIT."
            )
        elif isinstance(error, ApiError):
            kind, said = type(error), str(error)
            if kind is TruncatedBodyError:
                said += f" Tried {TRIES} times; run again, or see the backend's log."
        elif isinstance(error, requests.exceptions.ChunkedEncodingError):
            kind = TruncatedBodyError
            said = f"the body was cut short in {TRIES} tries; run again, or see the backend's log."
        elif isinstance(error, requests.exceptions.SSLError):
            said = f"no secure connection to {self.api_base} ({_reason(error)})."
        elif isinstance(error, requests.exceptions.ReadTimeout):
            said = (
                f"no answer within {seconds}. The backend may be busy: run again later, or raise "
                "EXPORT_REQUEST_TIMEOUT."
            )
        elif isinstance(error, ReadTimeoutError) or isinstance(
            next(iter(error.args), None), ReadTimeoutError
        ):
            kind = TruncatedBodyError
            said = (
                f"the body stopped for {seconds}, in {TRIES} tries. The backend may be busy: run "
                "again later, or raise EXPORT_REQUEST_TIMEOUT."
            )
        elif isinstance(error, requests.ConnectionError):
            kind = UnreachableError
            said = f"cannot reach the backend at {self.api_base} ({_reason(error)}). "
            said += OPEN_A_TUNNEL
        else:
            said = f"no usable answer from {self.api_base} ({_reason(error)})."
        said = f"GET {plain(route, 200)}: {said}"
        # A server may quote what it was sent, and URLs of its own.
        for secret in self._secrets:
            said = _without(secret, said)
        return kind(re.sub(r"://[^/\s]*@", "://***@", said))


def batch_path(batch_key: str) -> str:
    """Return the API path of a batch.

    Raises:
        ApiError: a key that no URL path can carry: HTTP clients and servers drop an empty
            segment and resolve `.` and `..`; a lone surrogate has no UTF-8 form.
    """
    try:
        segment = quote(batch_key, safe="")
    except UnicodeEncodeError:
        segment = ""
    if segment in ("", ".", ".."):
        raise ApiError(
            f"the batch key {show(batch_key)} cannot be part of a URL, so the API cannot export "
            "it: rename the batch in the backend."
        )
    return f"/batches/{segment}"


def batches_by_key(batches: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a batch list's entries by their batch key, in order.

    An entry without a key gets a made-up one: it then fails as a batch of its own, and the
    others go on.
    """
    by_key: dict[str, dict[str, Any]] = {}
    for number, batch in enumerate(batches):
        key = batch.get("batch_key")
        by_key.setdefault(key if isinstance(key, str) else f"<entry {number} has no key>", batch)
    return by_key


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _write(path: Path, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Write a body; return its size and SHA-256.

    Raises:
        TruncatedBodyError: the body is not UTF-8, and was cut short.
        ApiError: the body is not UTF-8.
    """
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()

    def look_at(chunk: bytes) -> None:
        digest.update(chunk)
        # Most of a payload is ASCII, which is several times as fast to tell as to decode.
        if decoder.getstate()[0] or not chunk.isascii():
            decoder.decode(chunk)

    size = 0
    fault: BaseException | None = None
    with path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        looked = pool.submit(look_at, b"")
        for chunk in chunks:
            file.write(chunk)
            fault = fault or looked.exception()
            looked = pool.submit(look_at, chunk)  # while the next one comes
            size += len(chunk)
        fault = fault or looked.exception()
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        fault = fault or error
    if isinstance(fault, UnicodeDecodeError):
        with path.open("rb") as written:
            check_whole(written)  # a cut may split a character
        raise ApiError(f"the body is malformed JSON ({fault.reason} in its UTF-8).")
    if fault:
        raise fault
    return size, digest.hexdigest()


def _flush(path: Path) -> None:
    """Have a file written to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _until(deadline: float, call: Callable[[], Received]) -> Received:
    """Return what `call` returns, or give it up at a time of the monotonic clock.

    A socket's timeout bounds each wait, not their sum: a server that sends its headers or its body
    a byte at a time would hold a request for ever. What is given up ends with the process, or when
    its body goes on.
    """
    outcome: Future[Received] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if not outcome.done():
        raise _TimeLimitReachedError
    return outcome.result()


def _bounded(chunks: Iterable[bytes], limit: int, deadline: float) -> Iterator[bytes]:
    """Pass on a body's chunks, up to so many bytes and a time of the monotonic clock."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            advice = "no list has so much" if limit == MAX_LIST_BODY else RAISE_SIZE_LIMIT
            raise ApiError(f"the body is larger than {limit / 1e6:,.0f} MB: {advice}.")
        if time.monotonic() > deadline:
            raise _TimeLimitReachedError
        yield chunk


def _parse_list(body: bytes) -> list[dict[str, Any]]:
    try:
        # Decoded first: of bytes, json takes UTF-16 and byte order marks as well.
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except ValueError:
        check_whole(io.BytesIO(body))
        raise ApiError("the body is malformed JSON.") from None
    except RecursionError:
        raise ApiError("the body is nested too deeply.") from None
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ApiError("the body is JSON, but not the list of objects that the API gives.")
    return value


def _require_ok(answer: _Answer) -> None:
    """Raise an ApiError that names the cause unless the answer is a 200."""
    status, detail = answer.status, answer.detail
    said = f"{status}: {detail}" if detail else str(status)
    if status == 200:
        return
    if status in (401, 403):
        raise ApiError(
            f"the backend refuses access ({said}): set EXPORT_API_TOKEN to a token that is valid "
            "now and may read this backend."
        )
    if status == 404 and detail == "Batch not found":
        raise ApiError(
            f"the backend has no such batch ({said}): check the key, and that EXPORT_API_BASE is "
            "the right cluster."
        )
    if status == 404:
        raise RouteMissingError(f"the backend does not know this path ({said}).")
    if status == 429:
        raise ApiError(f"the backend has too much to do ({said}): run again later.")
    if status >= 500:
        raise ApiError(f"server error {said}. See the backend's log, then run again.")
    raise ApiError(f"unexpected answer {said}.")


def _error_detail(response: requests.Response) -> str:
    """Return what an error response says of itself, as one short line."""
    try:
        body = response.raw.read(MAX_ERROR_BODY, decode_content=True)
    except (Urllib3Error, OSError):
        return ""
    try:
        detail = json.loads(body)["detail"]
        if isinstance(detail, list):  # FastAPI's validation errors
            detail = "; ".join(str(entry["msg"]) for entry in detail)
        text = "" if detail is None else str(detail)
    except (ValueError, KeyError, TypeError, RecursionError):
        title = _TITLE.search(body)
        text = _decode(title[1] if title else body)
    return _one_line(text)


def _retry_after(response: requests.Response, otherwise: float) -> float:
    value = response.headers.get("Retry-After")
    if value is None:
        return otherwise
    try:
        return min(Retry().parse_retry_after(value), MAX_RETRY_AFTER)
    except (InvalidHeader, ValueError, OverflowError):
        return otherwise


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a connection failure, without URLs."""
    inner: object = error
    while isinstance(inner, BaseException):
        error = inner
        inner = getattr(error, "reason", None) or (error.args[-1] if error.args else None)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = text.rpartition("Failed to establish a new connection: ")[2]
    return _one_line(text) or type(error).__name__


def export_batch(client: Client, batch_key: str, status_filter: str, folder: Path) -> str:
    """Export one batch into a folder, atomically; return what came of it, as one line.

    Raises:
        ExportError: nothing was exported; an earlier export is as it was.
    """
    target = folder / export_file_name(batch_key, status_filter)
    try:
        with replacing(target) as part:
            download = client.download(
                batch_key, status_filter, part, lambda path: check_payload(path, batch_key)
            )
    except OSError as error:
        raise storage_error(error, target) from None
    if download.empty:
        return f"skipped ({download.empty}): empty payload in {target.name}"
    return f"{download.size:,} bytes in {target.name}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the environment asks for into the current folder; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
        client = Client.of(dataclasses.asdict(settings), os.environ)
    except SettingError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    try:
        listed = batches_by_key(client.batches())
    except ExportError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    exported = skipped = failed = 0
    for batch_key in settings.batch_keys or tuple(listed):
        shown = plain(batch_key)
        try:
            if batch_key not in listed:
                nearest = nearest_keys(batch_key, listed)
                raise ExportError(f"the backend's batch list has no such key. {nearest}")
            came = export_batch(client, batch_key, settings.status_filter, Path())
        except ExportError as error:
            failed += 1
            print(f"{shown}: FAILED: {error}", file=sys.stderr, flush=True)
            continue
        skipped += came.startswith("skipped")
        exported += not came.startswith("skipped")
        print(f"{shown}: {came}", flush=True)
    print(f"{exported} exported, {skipped} skipped (no matching tracks), {failed} failed.")
    return 1 if failed else 0


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a key that the terminal cannot show
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted; the files written so far are whole.")
