"""Where the SDK's own log goes. The root logger is the scraper's: it is left alone."""

from __future__ import annotations

import logging
from typing import Final

NAME: Final = "scraper_worker"
FORMAT: Final = f"{NAME}: %(levelname)s: %(message)s"  # the supervisor's log takes the level from there


def log_to_stderr() -> None:
    """Have the SDK's logger write to stderr by a handler of its own, level info and above.

    Nothing of it reaches the root logger, so that `logging.basicConfig` in a scraper works as it would without the
    SDK, and prints the scraper's own records alone. Whoever wants more or less sets the level of the logger
    `scraper_worker`.
    """
    logger = logging.getLogger(NAME)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
