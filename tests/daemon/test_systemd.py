from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest
import uvloop

from scraper_supervisor.daemon.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(60)
        yield made


def test_each_message_is_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    assert notifier.ready("2 workers\nrunning")
    assert manager.recv(999) == b"READY=1\nSTATUS=2 workers running"
    assert notifier.reloading()
    name, _, stamp = manager.recv(999).rpartition(b"=")
    assert name == b"RELOADING=1\nMONOTONIC_USEC"
    assert stamp.isdigit()
    assert notifier.status("x")
    assert manager.recv(999) == b"STATUS=x"
    assert not notifier.status("")
    assert notifier.stopping()
    assert manager.recv(999) == b"STOPPING=1"
    notifier.close()
    assert not notifier.ready()


def test_an_abstract_socket_is_reached() -> None:
    name = f"scraper-supervisor-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(f"\0{name}")
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        assert notifier.ready()
        assert made.recv(999) == b"READY=1"
        notifier.close()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_manager_nothing_is_sent(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    assert not notifier.ready()
    notifier.close()


def test_a_manager_that_is_gone_or_slow_does_no_harm(manager: socket.socket, tmp_path: Path) -> None:
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert not gone.ready()
    gone.close()
    slow = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    while slow.status("x" * 1000):  # until its queue is full: no call blocks
        pass
    slow.close()


def test_the_watchdog_is_fed_from_the_loop(manager: socket.socket) -> None:
    async def feed() -> None:
        environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "4000", "WATCHDOG_PID": str(os.getpid())}
        notifier = Notifier(environ)
        notifier.start_watchdog(asyncio.get_running_loop())
        for _ in range(3):
            assert await asyncio.to_thread(manager.recv, 999) == b"WATCHDOG=1"
        notifier.close()

    uvloop.run(feed())


@pytest.mark.parametrize(
    "watchdog", [{"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_PID": "1", "WATCHDOG_USEC": "9"}]
)
def test_a_watchdog_that_is_not_ours_is_not_fed(manager: socket.socket, watchdog: dict[str, str]) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), **watchdog})
    with asyncio.Runner() as runner:
        notifier.start_watchdog(runner.get_loop())
    notifier.status("end")
    assert manager.recv(999) == b"STATUS=end"
    notifier.close()
