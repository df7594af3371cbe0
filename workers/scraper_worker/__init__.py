"""The SDK of a scraper that runs under scraper-supervisor.

    async def scrape(worker):
        await worker.process(match_ids, scrape_match, concurrency=4)

Names are resolved when they are first used, so that importing this package, as the supervisor does for the modules it
shares with workers, loads neither asyncio nor Playwright.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scraper_worker.browsers.browser import raise_for_status
    from scraper_worker.errors import (
        BlockedError,
        BrowserUnavailable,
        CallError,
        InfrastructureError,
        ItemError,
        LoginFailed,
        PermanentError,
        Refused,
        SessionExpired,
        SetupError,
        StateMismatch,
        SupervisorLost,
        TransientError,
        UsageError,
        WorkerError,
    )
    from scraper_worker.failures.classify import classify
    from scraper_worker.item import Item, ThreadItem
    from scraper_worker.protocol import Failure
    from scraper_worker.retry import RetryPolicy
    from scraper_worker.runner import run
    from scraper_worker.steps import retry
    from scraper_worker.worker import Worker

__all__ = [
    "BlockedError",
    "BrowserUnavailable",
    "CallError",
    "Failure",
    "InfrastructureError",
    "Item",
    "ItemError",
    "LoginFailed",
    "PermanentError",
    "Refused",
    "RetryPolicy",
    "SessionExpired",
    "SetupError",
    "StateMismatch",
    "SupervisorLost",
    "ThreadItem",
    "TransientError",
    "UsageError",
    "Worker",
    "WorkerError",
    "classify",
    "raise_for_status",
    "retry",
    "run",
]

_ELSEWHERE = {
    "Failure": "protocol",
    "Item": "item",
    "RetryPolicy": "retry",
    "ThreadItem": "item",
    "Worker": "worker",
    "classify": "failures.classify",
    "raise_for_status": "browsers.browser",
    "retry": "steps",
    "run": "runner",
}


class _Package(types.ModuleType):
    """Keeps the function `retry` from being hidden by the module of the same name.

    Importing a submodule sets it as an attribute of its package, and whoever came first would win.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _ELSEWHERE and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_ELSEWHERE.get(name, 'errors')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return __all__
