"""Which Chromium is started: of those that are there, the one that costs least for what is asked.

There are two kinds. The shell (`chromium-headless-shell`) can only be headless and needs a third of the CPU for a page;
the full one is the browser that people use, headless or not.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scraper_worker.errors import BrowserUnusable

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV_CHROMIUM: Final = "SCRAPER_WORKER_CHROMIUM"
FULL: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SHELL: Final = ("chromium-headless-shell", "chrome-headless-shell", "headless_shell")
# Playwright's `channel` names for the two kinds; any other channel is a browser that Playwright finds itself.
FULL_CHANNEL: Final = "chromium"
SHELL_CHANNEL: Final = "chromium-headless-shell"

# A script that only starts a program would stand between the driver and the browser, as its parent and the leader of
# its processes.
_WRAPPER: Final = re.compile(rb'#! ?/bin/(?:ba)?sh[^\n]*\n(?:\s|#[^\n]*\n)*(?:exec )?(/[^\s"$]+) "\$@"\s*')
_MAX_WRAPPER: Final = 256  # bytes; what is longer does more


def is_headless(options: Mapping[str, Any]) -> bool:
    """Whether options for `launch` ask for a browser without windows, as Playwright reads them."""
    headless = options.get("headless")
    return not options.get("devtools") if headless is None else bool(headless)


def choose(own: str, options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> str | None:
    """The browser to start, or None for Playwright's own choice.

    First what the options or `SCRAPER_WORKER_CHROMIUM` name. Else, headless, the shell: Playwright's, or one on PATH;
    and the full one where there is no shell, or `channel` is "chromium", or it has windows.

    Args:
        own: where Playwright would have installed its full browser.
        options: those for Playwright's `launch`.
        environment: looked up for `SCRAPER_WORKER_CHROMIUM` and PATH.

    Raises:
        BrowserUnusable: the environment names a browser that is not there, or there is only the other kind.
    """
    if options.get("executable_path"):
        return str(options["executable_path"])
    path = environment.get("PATH")
    named = environment.get(ENV_CHROMIUM)
    if named:
        found = shutil.which(named, path=path)
        if found is None:
            raise BrowserUnusable(f"{ENV_CHROMIUM} names {named}, which is no executable")
        return _unwrapped(found)
    channel = options.get("channel")
    if channel not in (None, FULL_CHANNEL, SHELL_CHANNEL):
        return None
    shell = _playwright_s_shell(own) or _on_path(SHELL, path)
    full = own if Path(own).exists() else _on_path(FULL, path)
    if channel == SHELL_CHANNEL:
        return shell
    if channel is None and is_headless(options):
        return shell or full
    if full is None and shell is not None:
        what = 'launch={"channel": "chromium"}' if channel else "a browser with windows"
        raise BrowserUnusable(f"{what} needs the full Chromium, and only {shell} is here: install chromium")
    return full


def _playwright_s_shell(own: str) -> str | None:
    """The shell that Playwright installed, of the revision of its full browser, which lies in a folder beside it."""
    folder = Path(own).parent.parent
    shells = folder.with_name(folder.name.replace("chromium-", "chromium_headless_shell-", 1))
    if shells == folder:
        return None
    return next((str(found) for name in SHELL for found in sorted(shells.glob(f"*/{name}"))), None)


def _on_path(names: tuple[str, ...], path: str | None) -> str | None:
    return next((_unwrapped(found) for name in names if (found := shutil.which(name, path=path))), None)


def _unwrapped(executable: str) -> str:
    """What a script starts if it does nothing else; Debian's `chromium-headless-shell` is one."""
    try:
        with Path(executable).open("rb") as file:
            script = file.read(_MAX_WRAPPER + 1)
    except OSError:
        return executable  # one that may be run and not read
    wrapper = _WRAPPER.fullmatch(script)
    if wrapper is None:
        return executable
    program = os.fsdecode(wrapper[1])
    return program if os.access(program, os.X_OK) else executable
