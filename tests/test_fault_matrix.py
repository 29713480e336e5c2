"""Every fault on every response path: one readable line, nothing lost, and the others exported.

The causes that are told, and how often is tried again, are tested elsewhere (test_client,
test_faults); here it is that nothing slips through, in whole runs.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.conftest import Workflow
from tests.fault_server import (
    Exchange,
    Fault,
    FaultServer,
    bomb,
    close,
    cut,
    drip,
    drip_head,
    endless,
    gzipped,
    login_page,
    mutated,
    other_batch,
    payload,
    raw,
    redirect,
    reset,
    status,
)
from tests.invariants import Invariants

TOKEN = "m4tr1x-t0k3n-0123456789"
FLEET = 50
MB = 1 << 20


def stall(exchange: Exchange) -> None:
    """The start of the answer, and then silence."""
    answer = exchange.answer
    exchange.send(answer.head(Content_Length=len(answer.body)) + answer.body[:20])
    exchange.server.closing.wait(20)


def silence(exchange: Exchange) -> None:
    exchange.server.closing.wait(20)


def retry_at_a_date(exchange: Exchange) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    status(503, {"detail": "Please wait"}, Retry_After=soon)(exchange)


def quote_the_token(exchange: Exchange) -> None:
    """An error that repeats what it was sent."""
    sent = f"{exchange.request.headers.get('authorization')} at http://me:hunter2@host/"
    status(403, {"detail": sent})(exchange)


def too_many_tracks(export: Any) -> None:
    export["tracks"] += [
        {"track_tag": f"extra_{n}", "pending_annotations": 1, "manually_completed": False}
        for n in range(1000)
    ]


FAULTS: dict[str, Fault] = {
    "refuse": close(),
    "reset": reset(),
    "reset in the body": reset(50),
    "stall": stall,
    "silence": silence,
    "drip": drip(1, 0.2),
    "drip in the headers": drip_head(0.2),
    "cut by length": cut(50),
    "cut by chunks": cut(50, "chunked"),
    "cut by close": cut(50, "close"),
    "cut gzip": gzipped(60),
    "cut headers": raw(b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "429": status(429, {"detail": "Slow down"}, Retry_After="1"),
    "503 and a date": retry_at_a_date,
    "400": status(400, b"\x1b[31mred\r\n\x00"),
    "401": status(401, {"detail": "No token"}),
    "403": quote_the_token,
    "500": status(500, "Internal Server Error"),
    "204": status(204),
    "redirect elsewhere": redirect("http://127.0.0.1:1"),
    "redirect to itself": redirect(),
    "redirect without end": endless(b" " * MB, 302, Location="/x"),
    "login page": login_page(),
    "bomb": bomb(100 * MB),
    "endless": endless(b" " * MB),
    "NaN": payload(b'[{"a":NaN}]'),
    "nested": payload(b'{"info":' + b"[" * 200_000),
    "no UTF-8": payload(b'[{"batch_key":"\xff\xfe"}]'),
    "BOM": payload(b"\xef\xbb\xbf[]"),
    "error in a 200": payload(b'{"detail":"Something went wrong"}'),
    "another shape": payload(b"[1,2]"),
    "empty": payload(b""),
}
EXPORT_FAULTS: dict[str, Fault] = {
    "another batch": other_batch("guns"),
    "too many tracks": mutated(too_many_tracks),
    "no info": mutated(lambda export: export.pop("info") and None),
}
ENVIRON = {
    "EXPORT_API_TOKEN": TOKEN,
    "EXPORT_REQUEST_TIMEOUT": "1",
    "EXPORT_TIME_LIMIT": "4",
    "EXPORT_SIZE_LIMIT": "10",
}


@pytest.fixture
def fleet(workflow: Workflow, server: FaultServer) -> Iterator[Invariants]:
    """A batch for each fault, and sound ones."""
    server.batches.clear()
    for name in FAULTS | EXPORT_FAULTS:
        server.add(name)
    for number in range(FLEET - len(server.batches)):
        server.add(f"sound_{number}")
    workflow.environ |= ENVIRON
    yield Invariants(workflow, [TOKEN, "hunter2"])


def told(said: str, start: str) -> str:
    """Return the one line that tells a cause."""
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith(start)]
    assert len(lines) == 1, (start, lines)
    assert lines[0].isprintable()
    assert TOKEN not in said and "hunter2" not in said
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tracks", "export"])
def test_each_fault_fails_its_batch_alone(
    workflow: Workflow, server: FaultServer, fleet: Invariants, kind: str
) -> None:
    faults = FAULTS | EXPORT_FAULTS if kind == "export" else FAULTS
    for name, fault in faults.items():
        server.fail(kind, fault, batch=name)
    said = workflow.run("--cores", "8", "--resources", "api_connections=8", expect=1)
    fleet.hold()
    summary = said[said.index("Exports from") :]
    for name in faults:
        assert re.match(rf"{name}: GET /batches/", told(summary, f"{name}: ")), name
        assert not workflow.path(name).exists()
    assert f"failed{len(faults):>10}" in summary
    workflow.assert_as_served(*(key for key in server.batches if key not in faults))
    server.heal()
    workflow.run()
    assert workflow.exported() == sorted(faults)
    fleet.hold_after_a_clean_run()
    print(f"{len(faults)} faults on {kind}: each told in one line, nothing lost")


@pytest.mark.slow
def test_each_fault_of_the_batch_list_costs_nothing(
    workflow: Workflow, server: FaultServer, fleet: Invariants
) -> None:
    for name in [name for name in server.batches if not name.startswith("sound_1")]:
        server.remove(name)
    workflow.run()
    before = workflow.results()
    for name, fault in FAULTS.items():
        server.heal()
        server.fail("batches", fault)
        said = workflow.run(expect=1, EXPORT_TIME_LIMIT="1.5")
        assert told(said, "Nothing was exported: GET /batches"), name
        assert workflow.results() == before, name
    server.heal()
    workflow.run()
    assert workflow.exported() == []
    fleet.hold_after_a_clean_run()
    print(f"{len(FAULTS)} faults on batches: each told in one line, nothing lost")


@pytest.mark.parametrize("kind", ["tracks", "export"])
def test_a_fault_in_one_of_fifty(workflow: Workflow, server: FaultServer, kind: str) -> None:
    server.batches.clear()
    for number in range(FLEET):
        server.add(f"batch_{number}")
    server.fail(kind, status(500, "boom"), batch="batch_7")
    said = workflow.run(expect=1)
    path = "/tracks" if kind == "tracks" else "/tracks/export"
    assert f"batch_7: GET /batches/batch_7{path}: server error 500: boom" in said
    assert len(list(workflow.path("x").parent.glob("*_tracks.json"))) == FLEET - 1
    Invariants(workflow).hold()


def test_a_key_that_is_there_twice_counts_as_its_last(
    workflow: Workflow, server: FaultServer
) -> None:
    """As in every common reader: what was checked is what is read."""
    server.batches.clear()
    server.add("twice")
    body = server.export_of("twice").body
    decoy = b'{"tracks":[{"track_tag":"x","pending_annotations":9}],' + body[1:]
    server.fail("export", payload(decoy))
    workflow.run()
    assert workflow.published("twice") == decoy
    assert workflow.receipt("twice")["tracks"] == len(json.loads(decoy)["tracks"]) == 1
    assert json.loads(decoy)["tracks"][0]["track_tag"] == "patch_000"
