"""`python -P -m scraper_worker.check MODULE:FUNCTION` says whether a worker could begin, without running its function.

What is wrong is one sentence on stderr, and exit code 78, as when a worker itself begins.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scraper_worker.errors import WorkerError
from scraper_worker.failures.classify import classify

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_SETUP: Final = 78
_OWN: Final = str(Path(__file__).parent)


def import_fault(entrypoint: str, error: BaseException) -> str | None:
    """Why a module could not be imported, in a sentence; None where another try may well be able to.

    A file that is not Python, a name that is not there, a package that is not installed: no restart mends these. A
    database that does not answer is another matter.
    """
    if isinstance(error, SystemExit):
        return f"{entrypoint} can't be imported: it ends the interpreter, sys.exit({error.code!r})"
    if not isinstance(error, Exception) or classify(error).kind != "permanent":
        return None
    where = _place(error)
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    line = next(iter(what.splitlines()), "")
    return f"{entrypoint} can't be imported: {where}{type(error).__name__}: {line}"


def _place(error: Exception) -> str:
    """The file and line that are to be looked at: of the scraper, not of what it calls."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}: "
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not _foreign(one.filename)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""


def _foreign(filename: str) -> bool:
    return filename.startswith((_OWN, "<", f"{sys.base_prefix}/lib")) or "site-packages" in filename


def main(arguments: Sequence[str]) -> int:
    """Look for the function that the argument names; the exit code."""
    from scraper_worker.__main__ import load  # it imports this module

    (entrypoint,) = arguments
    try:
        function = load(entrypoint)
    except WorkerError as error:
        return _say(str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        said = import_fault(entrypoint, error)
        return _say(said or f"{entrypoint} can't be imported now: {traceback.format_exception_only(error)[-1].strip()}")
    if not inspect.iscoroutinefunction(function) and inspect.isfunction(function):
        name = function.__name__
        return _say(f"{name} must be an async function: write `async def {name}(worker)`")
    return 0


def _say(text: str) -> int:
    sys.stderr.write(f"scraper_worker: {text}\n")
    return EXIT_SETUP


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
