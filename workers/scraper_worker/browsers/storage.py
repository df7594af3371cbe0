"""What a browser's successor is to know: cookies, and the local storage and IndexedDB of the origins that were visited.

A value without a browser: `contents` and `load` speak the JSON that Playwright's `storage_state` has, so that it can be
saved, and be given by whoever has such a file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ORIGINS: Final = 1000
MAX_ORIGIN: Final = 256 * 1024  # characters of one origin's JSON
MAX_TOTAL: Final = 8 * 1024 * 1024  # characters of all of them


class Kept:
    """Cookies, and storage by origin, the least recently seen first."""

    def __init__(self) -> None:
        self.cookies: list[dict[str, Any]] = []
        self.revision = 0
        """Rises whenever cookies or storage are known to have changed, so that whoever saves them knows when."""
        self._origins: dict[str, dict[str, Any]] = {}
        self._sizes: dict[str, int] = {}
        self._marks: dict[str, str] = {}

    # ---- what is known

    @property
    def origins(self) -> list[str]:
        """Those with storage, the most recently seen first."""
        return list(reversed(self._origins))

    def storage(self, origin: str) -> dict[str, Any] | None:
        """An origin's storage as Playwright's `storage_state` has it; None if it has none."""
        return self._origins.get(origin)

    def mark(self, origin: str) -> str | None:
        """A mark of the storage that is known, by which an equal one is recognised."""
        return self._marks.get(origin)

    def near(self, host: str) -> list[str]:
        """The origins of a host, of those above it and of those below it."""
        found = []
        for origin in self.origins:
            other = urlsplit(origin).hostname or ""
            if other == host or other.endswith(f".{host}") or host.endswith(f".{other}"):
                found.append(origin)
        return found

    def contents(self) -> dict[str, Any]:
        """All of it as JSON: {"cookies": […], "origins": […]}."""
        return {"cookies": list(self.cookies), "origins": list(self._origins.values())}

    # ---- what comes to be known

    def load(self, state: Mapping[str, Any]) -> None:
        """Put this in the place of all that is known.

        Args:
            state: as `contents` gives it.

        Raises:
            ValueError: it is nothing of the kind; the message says what was expected where.
        """
        cookies, origins = state.get("cookies", []), state.get("origins", [])
        if not isinstance(cookies, list) or not all(isinstance(one, dict) and "name" in one for one in cookies):
            raise ValueError('"cookies" is to be a list of objects with name, value, domain and path')
        if not isinstance(origins, list) or not all(isinstance(one, dict) and _is_origin(one) for one in origins):
            raise ValueError('"origins" is to be a list of objects with origin (a URL) and localStorage (a list)')
        self._origins.clear()
        self._sizes.clear()
        self._marks.clear()
        self.cookies = list(cookies)
        self.revision += 1
        for one in origins:
            self.put(one["origin"], one, None)

    def set_cookies(self, cookies: list[dict[str, Any]]) -> None:
        """The cookies of now."""
        if cookies != self.cookies:
            self.cookies = cookies
            self.revision += 1

    def seen(self, origin: str) -> None:
        """An origin is in use: of too many, others go first."""
        if origin in self._origins:
            self._origins[origin] = self._origins.pop(origin)

    def put(self, origin: str, storage: dict[str, Any], mark: str | None) -> list[str]:
        """An origin's storage of now.

        Args:
            origin: whose it is.
            storage: as Playwright's `storage_state` has it.
            mark: recognises it.

        Returns:
            Origins whose storage is no longer kept, since there is too much of all.
        """
        known = origin in self._origins
        self.forget(origin)
        if storage.get("localStorage") or storage.get("indexedDB"):
            self._origins[origin] = storage
            self._sizes[origin] = len(json.dumps(storage))
            if mark is not None:
                self._marks[origin] = mark
        elif not known:
            return []
        self.revision += 1
        dropped = []
        while len(self._origins) > MAX_ORIGINS or sum(self._sizes.values()) > MAX_TOTAL:
            dropped.append(next(iter(self._origins)))
            self.forget(dropped[-1])
        return dropped

    def forget(self, origin: str) -> None:
        """Nothing is known of an origin's storage any more."""
        for known in (self._origins, self._sizes, self._marks):
            known.pop(origin, None)


def _is_origin(one: Mapping[str, Any]) -> bool:
    return origin_of(one.get("origin")) is not None and isinstance(one.get("localStorage", []), list)


def origin_of(url: object) -> str | None:
    """The origin of a URL whose pages can have storage; None of any other."""
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if port in (None, default) else f":{port}")
