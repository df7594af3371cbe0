"""What nobody outside is shown: passwords in URLs, and the secrets in the workers' environment.

A look at the encoded bytes comes first and is all that it costs where there is nothing to hide.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import msgspec

from scraper_worker.failures.classify import normalise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scraper_supervisor.core.config.settings import Settings

HIDDEN: Final = "***"
SHORTEST: Final = 8  # characters; a shorter value of the environment is no secret
NO_SECRETS: Final = ("_URL", "_PATH", "_DIR")  # how the names of variables end that hold none
_KEYS: Final = frozenset({"key", "keys", "charged"})  # fields that hold keys of items
_WHOLE: Final = frozenset({"last_failure", "reason", "idle_reason", "error", "doing"})  # of `status`: hold no names
_PASSWORD: Final = re.compile(r"(://[^\s/?#@:]*:)[^\s/?#]+@")  # up to the last @ of the authority, as browsers read it
_SHOWN: Final = re.compile(rf"(.*?){re.escape(HIDDEN)}.*#([0-9a-f]{{8}})", re.DOTALL)
_PASSWORD_BYTES: Final = re.compile(_PASSWORD.pattern.encode())


def secrets_of(settings: Settings) -> frozenset[str]:
    """The values of every group's `env` and `env_file` that must not be shown."""
    return frozenset(
        value
        for group in settings.groups.values()
        for environment in (group.file_env, group.env)
        for name, value in environment.items()
        if len(value) >= SHORTEST and not name.endswith(NO_SECRETS)
    )


class Redactor:
    """Hides passwords in URLs, and some secrets, in text and in JSON. Immutable, so that any thread may use it.

    To redact what is redacted already changes nothing.

    Args:
        secrets: what to hide wherever it occurs; none is empty.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.secrets = frozenset(secrets)
        in_signatures = {form for form in map(normalise, self.secrets) if len(form) >= SHORTEST}  # numbers left out
        hidden = self.secrets | in_signatures
        longest_first = sorted(hidden, key=lambda secret: (-len(secret), secret))  # one may hold another
        self._marks = tuple({mark for secret in longest_first for mark in _written(secret)})
        self._in_values = _any_of(longest_first)
        self._in_text = _any_of([mark.decode(errors="surrogatepass") for mark in sorted(self._marks, key=len)[::-1]])

    def suspects(self, data: bytes) -> bool:
        """True if something in these bytes, text or JSON, may have to be hidden. It costs a few passes over them."""
        if b"@" in data and _PASSWORD_BYTES.search(data) is not None:
            return True
        return any(mark in data for mark in self._marks)

    def json(self, data: bytes) -> bytes:
        """What JSON holds, with everything hidden, as JSON again."""
        return msgspec.json.encode(self.value(msgspec.json.decode(data)))

    def log_line(self, line: bytes) -> bytes:
        """A line of the log, JSON or not, with everything hidden."""
        try:
            document = msgspec.json.decode(line)
        except msgspec.DecodeError:
            document = None
        if not isinstance(document, dict):
            text = line.decode(errors="surrogateescape")
            return self._hide(text, self._in_text).encode(errors="surrogateescape")
        ours = {name: value for name, value in document.items() if name in ("time", "level")}
        return msgspec.json.encode(self.value(document) | ours) + b"\n"

    def text(self, text: str) -> str:
        """The text with everything hidden."""
        return self._hide(text, self._in_values)

    def key(self, key: str) -> str:
        """An item's key; one that had to be changed ends in `#` and 8 hex digits of its SHA-256, to be told apart."""
        shown = self.text(key)
        if shown == key:
            return key
        return f"{shown}#{digest_of(key)}"

    def value(self, value: Any, *, is_key: bool = False) -> Any:
        """What JSON holds, with everything hidden in each of its strings.

        Args:
            value: as decoded from JSON.
            is_key: its strings are keys of items.
        """
        if isinstance(value, str):
            return self.key(value) if is_key else self.text(value)
        if isinstance(value, list):
            return [self.value(one, is_key=is_key) for one in value]
        if isinstance(value, dict):
            return {self.text(name): self.value(one, is_key=name in _KEYS) for name, one in value.items()}
        return value

    def texts(self, value: Any) -> Any:
        """What JSON holds, with everything hidden in its texts; names, which others go by, stay as they are."""
        if isinstance(value, list):
            return [self.texts(one) for one in value]
        if isinstance(value, dict):
            return {name: self.value(one) if name in _WHOLE else self.texts(one) for name, one in value.items()}
        return value

    @staticmethod
    def _hide(text: str, secrets: re.Pattern[str] | None) -> str:
        if secrets is not None:
            text = secrets.sub(HIDDEN, text)
        return _PASSWORD.sub(rf"\g<1>{HIDDEN}@", text)


def digest_of(key: str) -> str:
    """What tells a key that is shown with something hidden from others that look the same."""
    return sha256(key.encode(errors="surrogatepass")).hexdigest()[:8]


def hidden_in(shown: str) -> tuple[str, str] | None:
    """What is known of a key that was shown so: its beginning and its digest; None if nothing is hidden in it."""
    found = _SHOWN.fullmatch(shown)
    return None if found is None else (found[1], found[2])


def _written(secret: str) -> Iterator[bytes]:
    """How a secret looks in text, in JSON and in the log on a terminal, which shows some values by `repr`."""
    for text in (secret, msgspec.json.encode(secret).decode()[1:-1], repr(secret)[1:-1]):
        yield text.encode(errors="surrogatepass")


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    pattern = "|".join(map(re.escape, texts))
    return re.compile(pattern) if pattern else None
