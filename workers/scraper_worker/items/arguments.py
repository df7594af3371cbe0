"""The arguments of `process`, looked at before anything begins."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from scraper_worker.errors import SetupError
from scraper_worker.items.threads import is_plain
from scraper_worker.offers import as_offer, key_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable

    from scraper_worker.offers import Entry


class ByHand(NamedTuple):
    """One item to be run by hand, in a browser that is seen if `headed`."""

    key: str
    headed: bool = False

    def entry(self, entries: Iterable[Entry] | AsyncIterable[Entry]) -> Entry:
        """The item as the source has it, with its data; the key alone where the source would have to be drawn."""
        if isinstance(entries, Collection):
            for one in entries:
                entry: Entry = one
                if key_of(as_offer(entry)) == self.key:
                    return entry
        return self.key


def check_arguments(handler: Callable[..., Any], concurrency: int, browser: bool, offer: str) -> None:
    """Refuse arguments that can't be meant.

    Raises:
        SetupError: naming what to write instead.
    """
    if not callable(handler):
        raise SetupError(f"process() takes a function as handler, not {type(handler).__name__}")
    if browser and is_plain(handler):
        name = getattr(handler, "__name__", type(handler).__name__)
        raise SetupError(
            f"{name} must be an async function: write `async def {name}(item)`, or call process(…, browser=False)"
            " to have a plain function run in a thread"
        )
    if offer not in ("once", "always"):
        raise SetupError(f'offer is "once" or "always", not {offer!r}')
    if concurrency < 1:
        raise SetupError(f"concurrency is 1 or more, not {concurrency}")


def check_session(login: Callable[..., Any] | None, keep_session: bool, browser: bool) -> None:
    """Refuse a login that can't be meant.

    Raises:
        SetupError: it is no async function, or there is no browser to log in with.
    """
    if login is not None and is_plain(login):
        raise SetupError(f"login= is an async function that is given a page, not {login!r:.80}")
    if (login is not None or keep_session) and not browser:
        raise SetupError("login= and keep_session= are about a browser's cookies: call process() without browser=False")
