"""Reloads that are asked for at once."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from scraper_supervisor.daemon import reload
from scraper_supervisor.daemon.systemd import Notifier

if TYPE_CHECKING:
    import pytest


class Standing:
    """A configuration in force, of which only the file is looked at; and whoever is told of it."""

    path = "supervisor.toml"
    error: str | None = None

    def publish(self, record: object) -> None:
        """Tell nobody."""


async def test_one_reload_answers_all_who_asked_before_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, read = threading.Event(), threading.Event(), []

    def load(path: str) -> None:
        read.append(path)
        begun.set()
        assert go.wait(60)
        raise OSError("gone")

    monkeypatch.setattr(reload, "load", load)
    unused: Any = None
    standing: Any = Standing()
    one = reload.Reload(standing, "b", unused, standing, unused, unused, unused, Notifier(), unused)
    try:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(one.run())
            assert await asyncio.to_thread(begun.wait, 60)
            rest = [tasks.create_task(one.run()) for _ in range(20)]
            await asyncio.sleep(0)  # each asks
            go.set()
        assert [task.result()[0] for task in (first, *rest)] == [False] * 21
        assert len(read) == 2, "the first, and one for all others"
    finally:
        one.close()
