"""Options for browser and context that a scraper gives, and what Playwright says of wrong ones.

A wrong option fails every launch alike, so it is told apart from a launch that merely failed: the first is the worker's
set-up, which only its author can mend.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scraper_worker.errors import BrowserUnavailable, BrowserUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scraper_worker.browsers.storage import Kept

MAX_TOLD: Final = 400  # characters
_LINES: Final = 3

# What a browser prints, or Playwright says, where no other try can do better.
_UNUSABLE: Final = (
    "xecutable doesn't exist",
    "missing dependencies",
    "error while loading shared libraries",
    "sandboxing failed",
    "No usable sandbox",
    "without having a XServer",
    "Missing X server",
)
# Errors that may be over in a moment: memory, processes, descriptors, disk.
_PASSING: Final = re.compile(r"\bE(?:AGAIN|NOMEM|MFILE|NFILE|NOSPC|DQUOT|IO|BUSY|INTR|ROFS|TXTBSY)\b")
# Playwright's errors that tell of a browser which came up, or of a driver, and not of what it was given.
_OF_A_LAUNCH: Final = ("TargetClosedError", "TimeoutError")
_NOISE: Final = re.compile(r"(?:Browser logs:|Call log:|<3 Playwright|=+$|(?:- )?<launch|To avoid the sandboxing)")
_PRINTED: Final = re.compile(r"^(?:- )?\[pid=\d+\]\[err\] ?(?:\[[^\]]*\] ?)?(.*)")
_CLOSED: Final = "Target page, context or browser has been closed"


def is_wrong(error: BaseException) -> bool:
    """Whether what Playwright raised tells of wrong options or of what is not installed, not of a failed launch."""
    if isinstance(error, TypeError | ValueError):
        return True
    text = str(error)
    if any(sign in text for sign in _UNUSABLE):
        return True
    kind = type(error)
    if not kind.__module__.startswith("playwright.") or kind.__name__ in _OF_A_LAUNCH or "Connection closed" in text:
        return False
    return _PASSING.search(text) is None and _CLOSED not in text


def telling(error: BaseException) -> str:
    """The first lines of an error that say something, as one line."""
    printed, said = [], []
    for raw in str(error).splitlines():
        line = raw.strip(" \t║╔╗╚╝═│")
        found = _PRINTED.match(line)
        if found is not None:
            printed.append(found[1])
        elif line and not _NOISE.match(line) and not line.startswith(("- [pid", "[pid")):
            said.append(line)
    if len(said) > 1 or printed:
        said = [line for line in said if not line.endswith(_CLOSED)]
    lines = [line for line in (*said, *printed) if line][:_LINES]
    text = "; ".join(lines) or repr(error)
    return text if len(text) <= MAX_TOLD else text[: MAX_TOLD - 1] + "…"


def refusal(what: str, error: BaseException) -> BrowserUnavailable | None:
    """What is to be raised for an error that no other try mends; None for any other."""
    if isinstance(error, BrowserUnavailable):
        return error
    return BrowserUnusable(f"{what}: {telling(error)}") if is_wrong(error) else None


def check_names(argument: str, options: Mapping[str, Any], function: Callable[..., Any], other: Any = None) -> None:
    """Refuse options that Playwright does not have.

    Args:
        argument: of `process`, for the message.
        options: what was given there.
        function: Playwright's, that they are for.
        other: the argument and function that a misplaced option may be for.

    Raises:
        BrowserUnusable: there is no such option.
    """
    known = set(inspect.signature(function).parameters)
    for name in options:
        if name in known:
            continue
        if other is not None and name in inspect.signature(other[1]).parameters:
            raise BrowserUnusable(f"{name!r} is an option of {other[0]}=, not of {argument}=")
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BrowserUnusable(f"{argument}= has no option {name!r}{hint}")


def take_storage(options: dict[str, Any], kept: Kept) -> None:
    """Take `storage_state` out of a context's options, into what is kept.

    Raises:
        BrowserUnusable: there is no such file, or it holds no storage state.
    """
    given = options.pop("storage_state", None)
    if given is None:
        return
    where = "the storage_state in context="
    try:
        if not isinstance(given, dict):
            where = f"the storage_state in context=, {given},"
            given = json.loads(Path(given).read_bytes())
        if not isinstance(given, dict):
            raise BrowserUnusable(f"{where} holds no JSON object")
        kept.load(given)
    except OSError as error:
        raise BrowserUnusable(f"{where} can't be read: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise BrowserUnusable(f"{where} is no storage state: {error}") from error
