"""A short version of tests/crash_rounds.py; `make crash` runs the long one."""

import os
import signal
import threading
from pathlib import Path

import pytest
from run_report import handle_in_thread

from tests.crash_rounds import report, rounds


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_crash_rounds(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    figures = rounds(folder, seed, count=3)
    with capsys.disabled():
        print(f"\ncrash rounds, seed {seed}:\n{report(figures)}")
    assert figures["rounds"] == 3
    assert figures["checked"] > 0


def test_a_signal_while_a_lock_is_held() -> None:
    lock, handled = threading.Lock(), threading.Event()

    def handler(*_: object) -> None:
        if lock.acquire(timeout=30):
            handled.set()

    before = signal.signal(signal.SIGTERM, handler)
    try:
        handle_in_thread(signal.SIGTERM)
        with lock:
            os.kill(os.getpid(), signal.SIGTERM)
        assert handled.wait(30)
    finally:
        signal.signal(signal.SIGTERM, before)
