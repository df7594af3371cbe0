"""`python -P -m scraper_worker MODULE:FUNCTION` runs a worker's function; with `--key KEY`, one item of it by hand.

Spawned with -P, so that a scraper's own `json.py` breaks neither the SDK nor the standard library: the current folder
comes onto the path only after everything of ours is imported.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn

from scraper_worker import protocol
from scraper_worker.check import import_fault
from scraper_worker.connection.alone import Alone
from scraper_worker.connection.stack import tell_on_signal
from scraper_worker.errors import BrowserUnavailable, BrowserUnusable, LoginFailed, Refused, SetupError, SupervisorLost
from scraper_worker.item import trace
from scraper_worker.items.arguments import ByHand
from scraper_worker.logs import log_to_stderr
from scraper_worker.retry import RetryPolicy
from scraper_worker.runner import LEFT_TIMEOUT, run_process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

importlib.import_module("concurrent.futures.thread")  # asyncio does so late, and would find a scraper's own queue.py
USAGE: Final = "usage: python -P -m scraper_worker MODULE:FUNCTION [--key KEY [--headed]]"
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_SETUP: Final = 78  # the worker's own set-up is wrong: starting it again would not help
EXIT_INTERRUPTED: Final = 130


def main(arguments: Sequence[str]) -> int:
    """Run the function that the arguments name, and return the exit code."""
    parsed = _parse(arguments)
    if parsed is None:
        return _say(USAGE, EXIT_USAGE)
    log_to_stderr()
    entrypoint, by_hand = parsed
    if not all(entrypoint.partition(":")):
        return _say(f"{entrypoint!r} is not MODULE:FUNCTION; {USAGE}", EXIT_USAGE)
    tell_on_signal()
    try:
        if by_hand is None:
            run_process(load(entrypoint))
        else:
            name = entrypoint.rpartition(":")[2]
            alone = Alone(name, RetryPolicy(max_attempts=1), only=by_hand.key)
            run_process(load(entrypoint), alone, by_hand)
            return 0 if alone.all_done else EXIT_FAILED
    except (SetupError, BrowserUnusable) as error:
        return _say(f"{_name()}: {error}", EXIT_SETUP)
    except LoginFailed as error:
        return _say(f"{_name()}: {error}", EXIT_SETUP if error.permanent else EXIT_FAILED)
    except (Refused, SupervisorLost, BrowserUnavailable) as error:
        return _say(f"{_name()}: {error}", EXIT_FAILED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _say(f"{_name()}: interrupted", EXIT_INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything, and this is where it is told
        said = import_fault(entrypoint, error) if _came_of_import(error) else None
        if said is not None:
            return _say(f"{_name()}: {said}", EXIT_SETUP)
        line = traceback.format_exception_only(error)[0].strip()
        return _say(f"{_name()}: {entrypoint} raised {line}\n{trace(error)}".rstrip(), EXIT_FAILED)
    return 0


def _parse(arguments: Sequence[str]) -> tuple[str, ByHand | None] | None:
    """MODULE:FUNCTION and what is to be run by hand; None if these are other arguments."""
    words, key, headed = list(arguments), None, False
    rest = []
    while words:
        word = words.pop(0)
        if word == "--key" and words:
            key = words.pop(0)
        elif word.startswith("--key="):
            key = word.removeprefix("--key=")
        elif word == "--headed":
            headed = True
        elif word.startswith("-"):
            return None
        else:
            rest.append(word)
    if len(rest) != 1 or key == "" or (headed and key is None):
        return None
    return rest[0], None if key is None else ByHand(key, headed)


def _came_of_import(error: BaseException) -> bool:
    """True if the function could not even be looked up: the error passed through `load`."""
    return any(frame.f_code is load.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def load(entrypoint: str) -> Callable[[Any], Awaitable[Any]]:
    """The function that MODULE:FUNCTION names.

    Raises:
        SetupError: there is no such module, or no such function in it.
        Exception: what the module raises while it is imported.
    """
    module_name, _, function_name = entrypoint.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise
        raise SetupError(
            f"no module {error.name!r} for {entrypoint}: looked in {folder} and where Python looks"
        ) from None
    function: Any = module
    for part in function_name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        file = getattr(module, "__file__", None) or module_name
        raise SetupError(f"no function {function_name!r} in {file}")
    return function  # type: ignore[no-any-return]  # whatever the user named; run() checks that it is async


def _name() -> str:
    return os.environ.get(protocol.ENV_NAME, "worker")


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"scraper_worker: {text}\n")
    return code


def _exit() -> NoReturn:
    code = main(sys.argv[1:])
    deadline = time.monotonic() + LEFT_TIMEOUT
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():  # a handler's thread that never ends would keep the process for ever
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _exit()
