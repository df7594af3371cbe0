"""Starting a Chromium under Playwright, knowing its processes, and ending them when nothing else does.

The PIDs come by public ways only: the browser's from CDP, the driver's from /proc. Deaths are seen by pidfd, since
a dead driver leaves `is_connected()` true and fires no event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scraper_worker.browsers.executable import choose, is_headless
from scraper_worker.browsers.options import check_names, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping

    from playwright.async_api import Browser, Playwright

log = logging.getLogger("scraper_worker")

ENV_SANDBOX: Final = "SCRAPER_WORKER_SANDBOX"
ARGUMENTS: Final = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)

START_TIMEOUT: Final = 30.0  # seconds for the driver and for the browser, each
CALL_TIMEOUT: Final = 15.0  # seconds for a Playwright call that has no timeout of its own
STOP_TIMEOUT: Final = 5.0  # seconds for the driver to end
SOCKET_LINK: Final = "SingletonSocket"  # in a profile
SOCKET_FOLDER: Final = "org.chromium."
LOST_TIMEOUT: Final = 0.5  # seconds to be told what a dead driver leaves open
REMOVE_TRIES: Final = 10
REMOVE_PAUSE: Final = 0.1  # seconds between two tries to remove a folder


class Watch:
    """Calls back once when a process has ended; also tells whether it lives, safe from reuse of its PID."""

    def __init__(self, pid: int, ended: Callable[[], None]) -> None:
        self.pid = pid
        self._ended = ended
        self._fd = -1
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(ended)
            return
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._fd >= 0

    def kill(self, *, group: bool = False) -> None:
        """End the process at once, or the whole group that it is in, where that is not ours."""
        if self._fd < 0:
            return
        # Each may end between the look and the blow.
        with contextlib.suppress(ProcessLookupError):
            if group and (found := os.getpgid(self.pid)) != os.getpgrp():  # a script may lead it
                os.killpg(found, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        self.close()
        self._ended()


class Running:
    """A browser, its driver and their processes.

    Args:
        driver: Playwright, started.
        browser: the browser, launched.
        pid: the browser's main process, which leads its own group.
        driver_pid: the node process in between, if it was found.
        folder: for the temporary files of both, removed when they have ended.
        blank: whether a page that stays open makes others cheaper.
        died: called once when either process has ended.
    """

    def __init__(
        self,
        driver: Playwright,
        browser: Browser,
        pid: int,
        driver_pid: int | None,
        *,
        folder: Path,
        blank: bool,
        died: Callable[[str], None],
    ) -> None:
        self.browser = browser
        self.driver_pid = driver_pid
        self.blank = blank
        self._folder = folder
        self._driver = driver
        self._died: Callable[[str], None] | None = died
        self.main = Watch(pid, lambda: self._end("browser-died"))
        self.node = Watch(driver_pid, lambda: self._end("driver-died")) if driver_pid is not None else None
        browser.on("disconnected", lambda _: self._end("browser-died"))

    def _end(self, what: str) -> None:
        died, self._died = self._died, None
        if died is not None:
            died(what)

    def kill(self) -> None:
        """End the browser with all its processes; the driver sees it and lives."""
        self.main.kill(group=True)

    async def stop(self, seconds: float) -> None:
        """Close browser and driver, by force what is not gone after `seconds`; remove their files. Never raises."""
        self._died = None
        led = self.node is None or self.node.alive
        if led and self.main.alive:
            try:
                async with asyncio.timeout(seconds):
                    await self.browser.close()
            except Exception as error:  # noqa: BLE001 - whatever a dying driver raises, the answer is the same
                log.debug("closing the browser: %r", error)
        self.main.kill(group=True)
        if not led:  # the driver would have removed them
            await remove(self._folder)
        await _stop_driver(self._driver, self.node, STOP_TIMEOUT if led else LOST_TIMEOUT)
        self.main.close()
        if self.node is not None:
            self.node.close()
        await remove(self._folder)


async def remove(folder: Path) -> None:
    """Remove what a driver and its browser leave, once nobody writes there. Never raises; a worker's end does it, too.

    Args:
        folder: of the driver's temporary files, the browser's profile among them.
    """
    for _ in range(REMOVE_TRIES):
        try:
            await asyncio.to_thread(_remove, folder)
        except FileNotFoundError:
            return
        except OSError as error:  # a process in its last moment writes yet
            log.debug("removing %s: %r", folder, error)
            await asyncio.sleep(REMOVE_PAUSE)
        else:
            return
    log.warning("%s could not be removed", folder)


def _remove(folder: Path) -> None:
    for link in folder.glob(f"*/{SOCKET_LINK}"):  # the socket itself is where a browser looks for temporary files
        socket = Path(os.readlink(link))
        if socket.parent.name.startswith(SOCKET_FOLDER):
            shutil.rmtree(socket.parent, ignore_errors=True)
    shutil.rmtree(folder)


async def _stop_driver(driver: Playwright, node: Watch | None, seconds: float = STOP_TIMEOUT) -> None:
    try:
        async with asyncio.timeout(seconds):
            await driver.stop()
    except Exception as error:  # noqa: BLE001 - as above
        log.debug("stopping the driver: %r", error)
        if node is not None:
            node.kill()


async def launch(options: Mapping[str, Any], died: Callable[[str], None]) -> Running:
    """Start a driver and a browser.

    Args:
        options: for Playwright's `launch`, on top of ours.
        died: called with "browser-died" or "driver-died" when that happens unasked.

    Raises:
        BrowserUnusable: what failed can't be mended by trying again.
        Exception: what Playwright raises, for anything else.
    """
    before = set(_children())
    with _without_own_folder():
        from playwright.async_api import Browser, async_playwright  # only who wants a browser pays for it
    folder = Path(tempfile.mkdtemp(prefix="browser-", dir=os.environ.get("TMPDIR")))
    try:
        with _temporary_files_in(folder):
            async with asyncio.timeout(START_TIMEOUT):
                driver = await async_playwright().start()
    except BaseException:
        await remove(folder)
        raise
    node = next((pid for pid in _children() if pid not in before and _is_driver(pid)), None)
    try:
        chromium = driver.chromium
        check_names("launch", options, chromium.launch, ("context", Browser.new_context))
        browser = await chromium.launch(**_launch_options(chromium.executable_path, options))
        pid, shell = await _within(_ask(browser))
    except BaseException as error:
        watch = Watch(node, lambda: None) if node is not None else None
        await _stop_driver(driver, watch)
        if watch is not None:
            watch.close()
        await remove(folder)
        refused = refusal("no browser can be started", error)
        if refused is not None and refused is not error:
            raise refused from error
        raise
    blank = is_headless(options) and not shell
    return Running(driver, browser, pid, node, folder=folder, blank=blank, died=died)


async def _ask(browser: Browser) -> tuple[int, bool]:
    """The PID of the browser's main process, and whether it is the shell: the name of a file need not tell."""
    session = await browser.new_browser_cdp_session()
    processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
    product: str = (await session.send("Browser.getVersion"))["product"]
    await session.detach()
    main = next(int(process["id"]) for process in processes if process["type"] == "browser")
    return main, product.startswith("HeadlessChrome/")


async def _within(call: Awaitable[Any], seconds: float = CALL_TIMEOUT) -> Any:
    async with asyncio.timeout(seconds):
        return await call


def _launch_options(own: str, options: Mapping[str, Any]) -> dict[str, Any]:
    sandbox = os.geteuid() != 0 and os.environ.get(ENV_SANDBOX) != "0"
    arguments = options.get("args") or ()
    merged: dict[str, Any] = {
        "timeout": 1000 * START_TIMEOUT,
        "chromium_sandbox": sandbox,
        # A terminal's Ctrl-C reaches the driver, too, and would close the browser under the item in hand.
        "handle_sigint": False,
        # The driver's temporary files lie one folder deeper, and the path of a browser's socket may have no more bytes.
        "env": dict(os.environ),
        **options,
        "args": [*ARGUMENTS, *arguments] if isinstance(arguments, list | tuple) else arguments,
    }
    executable = choose(own, options)
    if executable is not None:
        merged["executable_path"] = executable
    return merged


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Generator[None]:
    """What is started inside has its temporary files there; a driver that is killed can't remove them."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


@contextlib.contextmanager
def _without_own_folder() -> Generator[None]:
    """A scraper's own `queue.py` must not break what Playwright imports."""
    here = str(Path.cwd())
    kept = sys.path.copy()
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]
    try:
        yield
    finally:
        sys.path[:] = kept


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def _is_driver(pid: int) -> bool:
    try:
        return b"run-driver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
