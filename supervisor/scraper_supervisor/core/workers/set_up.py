"""When the end of a process says that its set-up is wrong, which no restart mends; and how that is told."""

from __future__ import annotations

from typing import Final

EX_CONFIG: Final = 78  # with which a worker says that its own set-up is wrong, as sysexits.h has it
OLDEST: Final = "3.11"  # the interpreters that the SDK runs on begin with this one

_NO_SDK: Final = ("No module named scraper_worker", "(ModuleNotFoundError: No module named 'scraper_worker')")
_PREFIX: Final = "scraper_worker: "  # before whatever the SDK says of itself


def wrong_set_up(python: str, code: int | None, last_line: str | None, name: str, *, introduced: bool) -> str | None:
    """Why no restart of this worker can go better, in a sentence; None if one may.

    Args:
        python: its interpreter, for people; "" for a command, of which only exit code 78 tells.
        code: its exit code.
        last_line: the last that it wrote to stderr.
        name: the worker's.
        introduced: it has said hello, so that its SDK works.
    """
    if code == EX_CONFIG:
        if last_line is None or not last_line.strip():
            return f"exited with code {EX_CONFIG}: its own set-up is wrong, which no restart mends; see its log"
        return without_prefix(last_line, name)
    return None if introduced or not python else wrong_interpreter(python, code, last_line)


def wrong_interpreter(python: str, code: int | None, last_line: str | None) -> str | None:
    """Why an interpreter cannot run the SDK, by what Python itself says where the SDK could not; None if it can."""
    line = (last_line or "").strip()
    if code == 1 and line.endswith(_NO_SDK):
        remedy = f"install it there ({python} -m pip install scraper-supervisor), or name another interpreter: python"
        return f"{python} has no SDK, the package scraper_worker: {remedy}"
    if code == 1 and line.endswith("No module named scraper_worker.check"):
        return f"{python} has an SDK that is too old: update scraper-supervisor there"
    if code == 1 and line.startswith(("ModuleNotFoundError: ", "ImportError: ")):  # the SDK tells of others itself
        return f"{python} has an SDK that can't be imported, install it anew: {line}"
    if code == 2 and line.startswith("Try ") and "-h" in line:  # it does not know the option -P
        return f"{python} is older than Python {OLDEST}, the oldest that the SDK runs on"
    return None


def without_prefix(line: str, name: str = "") -> str:
    """What the SDK says of itself, without who says it."""
    return line.strip().removeprefix(_PREFIX).removeprefix(f"{name}: ")
