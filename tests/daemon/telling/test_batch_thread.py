from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from scraper_supervisor.daemon.telling import batch_thread
from scraper_supervisor.daemon.telling.batch_thread import BatchThread

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_line_kept_by_the_writer_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_thread, "RETRY_EVERY", 0.001)
    tries: list[list[bytes]] = []

    def write(batch: list[bytes]) -> bool:
        tries.append(batch)
        return len(tries) > 3

    thread = BatchThread("test", 10, write)
    assert thread.put(b"x")
    until(lambda: not thread._lines)
    assert thread.close() == 0
    assert not thread.put(b"y")
    assert tries == [[b"x"]] * 4


def test_of_many_lines_at_once_those_with_no_room_are_dropped() -> None:
    written: list[bytes] = []
    going = threading.Event()

    def write(batch: list[bytes]) -> bool:
        assert going.wait(60)
        written.extend(batch)
        return True

    thread = BatchThread("test", 3, write, gather=0.0)
    thread.put_all([b"1", b"2"])
    thread.put_all([b"3", b"4", b"5"])
    assert thread.take_dropped() == 2
    going.set()
    assert thread.drained(60)
    assert thread.close() == 0
    thread.put_all([b"6"])
    assert thread.take_dropped() == 1
    assert written == [b"1", b"2", b"3"]
