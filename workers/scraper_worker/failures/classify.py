"""What an exception means for the item it ended: facts of the exception in, a `Failure` out.

Pure, and without Playwright: its errors are known by class name and module, since `TargetClosedError` had no public
name in most versions and its message may be any text. The table of messages was taken from real runs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from scraper_worker.errors import (
    BlockedError,
    BrowserUnavailable,
    InfrastructureError,
    ItemError,
    PermanentError,
    Refused,
    SessionExpired,
    SupervisorLost,
    TransientError,
)
from scraper_worker.failures.http_answers import MAX_RETRY_AFTER, kind_of_status, retry_after_of
from scraper_worker.portable import encodable
from scraper_worker.protocol import Category, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_SIGNATURE: Final = 120  # characters
MAX_MESSAGE: Final = 2000  # characters; Playwright appends whole browser logs

Verdict = tuple[Kind, Category]

# ---- signatures ------------------------------------------------------------------------------------------------------

_NORMAL: Final = (
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'`<>]*", re.IGNORECASE), "URL"),
    (re.compile(r"\"[^\"]*\"|(?<!\w)'[^']*'|`[^`]*`"), "'…'"),
    (re.compile(r"\b(?:0x[0-9a-f]+|(?=[0-9a-f-]*[0-9])[0-9a-f]{8,}(?:-[0-9a-f]{4,})*)\b", re.IGNORECASE), "HEX"),
    (re.compile(r"\d+(?:[.,]\d+)*"), "N"),
    (re.compile(r"\s+"), " "),
)


def normalise(text: str) -> str:
    """The first line of `text` without what differs from item to item: URLs, quoted text, hex, numbers."""
    line = next((line for line in text.splitlines() if line.strip()), "").strip()
    for pattern, name in _NORMAL:
        line = pattern.sub(name, line[: 4 * MAX_MESSAGE])
    return line.strip()


def _signature(text: str) -> str:
    text = encodable(text)
    return text if len(text) <= MAX_SIGNATURE else text[: MAX_SIGNATURE - 1].rstrip() + "…"


def _trim(message: str) -> str:
    """The message without Playwright's browser log, and no longer than an operator would read."""
    text = encodable(message.split("\nBrowser logs:", 1)[0].strip())
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


# ---- the facts and the tables ----------------------------------------------------------------------------------------


class Facts(Struct, frozen=True, kw_only=True):
    """What is known about an exception, without the exception.

    Args:
        name: its class.
        module: the class's module.
        message: its text.
        mro: names of the class and its bases, `object` left out.
        status: the HTTP status behind it, or of the document the item was on.
        retry_after: seconds that the target asked for.
    """

    name: str
    module: str
    message: str
    mro: tuple[str, ...] = ()
    status: int | None = None
    retry_after: float | None = None


_NET_PERMANENT: Final = re.compile(
    r"TOO_MANY_REDIRECTS|UNSAFE_|INVALID_|UNKNOWN_URL_SCHEME|DISALLOWED_URL_SCHEME|CERT_|BLOCKED_BY_|FILE_NOT_FOUND"
)
_NET_INFRASTRUCTURE: Final = re.compile(
    r"INTERNET_DISCONNECTED|PROXY_|TUNNEL_|NO_SUPPORTED_PROXIES|INSUFFICIENT_RESOURCES"
)
_NET: Final = re.compile(r"net::ERR_([A-Z0-9_]+)")
_API: Final = re.compile(r"^([A-Z]\w+\.\w+): ")
_LAUNCHES: Final = frozenset({"BrowserType.launch", "BrowserType.launch_persistent_context"})
_NAVIGATIONS: Final = frozenset(
    {"goto", "reload", "go_back", "go_forward", "set_content", "wait_for_url", "wait_for_load_state"}
)

# Tried in order on what Playwright says; the first that is found decides. The signature is None where the normalised
# message says more.
_MESSAGES: Final[tuple[tuple[re.Pattern[str], Kind, Category, str | None], ...]] = (
    (re.compile(r"Connection closed while reading from the driver"), "infrastructure", "browser", "driver-died"),
    (re.compile(r"(?:Page|Target) crashed|page crashed"), "infrastructure", "browser", "page-crashed"),
    (
        re.compile(r"[Ee]xecutable doesn't exist|missing dependencies|sandboxing failed"),
        "infrastructure",
        "system",
        "browser-unusable",
    ),
    (
        re.compile(r"Failed to launch|ProcessSingleton|BrowserType\.launch|mkdtemp"),
        "infrastructure",
        "system",
        "browser-launch",
    ),
    (re.compile(r"interrupted by another navigation"), "transient", "browser", "navigation-interrupted"),
    (re.compile(r"Execution context was destroyed"), "transient", "browser", "context-destroyed"),
    (re.compile(r"[Ff]rame was detached|Frame has been detached"), "transient", "browser", "frame-detached"),
    (re.compile(r"Download is starting"), "permanent", "application", "download"),
    (re.compile(r"Cannot navigate to invalid URL"), "permanent", "application", "invalid-url"),
    (re.compile(r"strict mode violation"), "permanent", "application", "strict-mode-violation"),
    (
        re.compile(r"\b(?:Reference|Syntax|Type|Range)Error\b|Unexpected token|Unknown engine|is not a valid selector"),
        "permanent",
        "application",
        None,
    ),
)

# Calls that only block: one thread can't wait in two loops.
_BLOCKING: Final = re.compile(
    r"cannot be called from a running event loop|event loop is already running"
    r"|Cannot run the event loop while another loop is running|Playwright Sync API inside the asyncio loop"
)
_TO_THREAD: Final = "a handler must not block the event loop it runs in: await it, or use `await asyncio.to_thread(f)`"

_PROGRAMMING: Final = frozenset(
    {"NameError", "AttributeError", "TypeError", "SyntaxError", "ImportError", "NotImplementedError", "UsageError"}
)
# About None they tell of something that the page did not have this time.
_MAY_BE_ABSENT: Final = frozenset({"AttributeError", "TypeError"})
_BY_CLASS: Final[tuple[tuple[frozenset[str], Verdict], ...]] = (
    (frozenset({"TimeoutError", "TimeoutException", "Timeout"}), ("transient", "network")),
    (
        frozenset(
            {
                "ConnectionError", "gaierror", "SSLError", "IncompleteReadError", "IncompleteRead", "HTTPException",
                "TransportError", "ClientError", "URLError", "RequestException",
            }
        ),
        ("transient", "network"),
    ),
    (frozenset({"MemoryError", "OSError"}), ("transient", "system")),
)  # fmt: skip


def classify_facts(facts: Facts) -> Failure:
    """The failure that the facts of an exception amount to.

    An infrastructure failure stays one whatever the document said; otherwise the status of the document that the item
    was on explains it best (a selector that never came, on a page that answered 429, is a block and no slow page).
    """
    if _BLOCKING.search(facts.message):
        message = f"{_TO_THREAD} ({facts.message.strip().splitlines()[0]})"
        return Failure("permanent", "application", "blocking-call", _trim(message))
    net = _NET.search(facts.message)
    playwright = facts.module.startswith("playwright.") or "TargetClosedError" in facts.mro or facts.name == "Exception"
    if playwright or net:
        kind, category, signature = _of_playwright(facts, net)
    else:
        kind, category = _of_class(facts)
        signature = f"{facts.name}: {normalise(facts.message)}".rstrip(": ")
    if facts.status is not None and facts.status >= 400 and kind != "infrastructure":
        kind, category = kind_of_status(facts.status, facts.retry_after), "external"
        signature = f"http-{facts.status}"
    return _failure(kind, category, signature, facts)


def _failure(kind: Kind, category: Category, signature: str, facts: Facts) -> Failure:
    message = _trim(facts.message) or facts.name
    return Failure(kind, category, _signature(signature), message, facts.status, facts.retry_after)


def _of_playwright(facts: Facts, net: re.Match[str] | None) -> tuple[Kind, Category, str]:
    api = _API.match(facts.message)
    if api is not None and api[1] in _LAUNCHES and "TargetClosedError" in (facts.name, *facts.mro):
        return "infrastructure", "system", "browser-launch"  # it ended before it was one
    if "TargetClosedError" in (facts.name, *facts.mro):  # by class: close(reason=...) makes its message any text
        if "Connection closed while reading from the driver" in facts.message:
            return "infrastructure", "browser", "driver-died"
        return "infrastructure", "browser", "TargetClosedError"
    if net:
        if _NET_INFRASTRUCTURE.match(net[1]):
            return "infrastructure", "network", net[0]
        return ("permanent" if _NET_PERMANENT.match(net[1]) else "transient"), "network", net[0]
    if facts.name == "TimeoutError":
        navigating = api is not None and api[1].split(".")[-1] in _NAVIGATIONS
        return (
            "transient",
            ("network" if navigating else "external"),
            f"TimeoutError: {api[1]}" if api else "TimeoutError",
        )
    for pattern, kind, category, signature in _MESSAGES:
        if pattern.search(facts.message):
            return kind, category, signature or f"{facts.name}: {normalise(facts.message)}"
    category = "browser" if facts.module.startswith("playwright.") else "application"
    return "transient", category, f"{facts.name}: {normalise(facts.message)}".rstrip(": ")


def _of_class(facts: Facts) -> Verdict:
    names = {facts.name, *facts.mro}
    if names & _PROGRAMMING and not (names & _MAY_BE_ABSENT and "NoneType" in facts.message):
        return "permanent", "application"
    for classes, verdict in _BY_CLASS:
        if names & classes:
            return verdict
    return "transient", "application"


_ITEM_ERRORS: Final[tuple[tuple[type[ItemError], Kind, Category], ...]] = (
    (TransientError, "transient", "application"),
    (PermanentError, "permanent", "application"),
    (SessionExpired, "permanent", "application"),
    (BlockedError, "blocked", "external"),
    (InfrastructureError, "infrastructure", "browser"),
)


def facts_of(error: BaseException) -> Facts:
    """An exception's facts; the status and Retry-After of httpx's, requests' and aiohttp's errors are found, too.

    An exception is a stranger's object: what its attributes or its text raise counts as not there.
    """
    cls = type(error)
    mro = tuple(base.__name__ for base in cls.__mro__ if base is not object)
    response = _attribute(error, "response")
    status = next((s for s in map(_status_in, (response, error)) if s is not None), None)
    headers = _attribute(response, "headers") or _attribute(error, "headers")
    retry_after = _retry_after_in(headers) if status is not None else None
    return Facts(
        name=cls.__name__, module=str(cls.__module__), message=_text(error), mro=mro, status=status,
        retry_after=retry_after,
    )  # fmt: skip


def _attribute(thing: object, name: str) -> Any:
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - a property may raise anything
        return None


def _text(error: BaseException) -> str:
    try:
        return encodable(str(error))
    except Exception:  # noqa: BLE001 - as above
        return ""


def _status_in(thing: object) -> int | None:
    for name in ("status_code", "status"):
        value = _attribute(thing, name)
        if isinstance(value, int) and 400 <= value <= 599:
            return int(value)
    return None


def _retry_after_in(headers: Mapping[str, Any] | None) -> float | None:
    get = _attribute(headers, "get")
    if not callable(get):
        return None
    found: dict[str, str] = {}
    for name in ("Retry-After", "Date"):
        try:
            value = get(name) or get(name.lower())
        except Exception:  # noqa: BLE001 - as above
            continue
        if isinstance(value, str):
            found[name.lower()] = value
    return retry_after_of(found)


# ---- whole exceptions ------------------------------------------------------------------------------------------------

_DECIDING: Final[dict[Kind, int]] = {"permanent": 0, "blocked": 1, "infrastructure": 2, "transient": 3}


def classify(error: BaseException, *, status: int | None = None, retry_after: float | None = None) -> Failure:
    """What `error` means for the item that it ended.

    In an exception group one leaf decides: a permanent one before a blocked one, before an infrastructure one, before
    a transient one; among equals the first.

    Args:
        error: the exception.
        status: HTTP status of the document that the item was on, where the exception itself names none.
        retry_after: seconds that this document's Retry-After asked for.

    Raises:
        BaseException: `error` itself, if it is no failure but an order to stop (CancelledError, KeyboardInterrupt,
            SystemExit).
    """
    failures = [_of_leaf(leaf, status, retry_after) for leaf in leaves(error) if isinstance(leaf, Exception)]
    if not failures:
        raise error
    return min(failures, key=lambda failure: _DECIDING[failure.kind])


def failure_of(error: BaseException, *, status: int | None = None, retry_after: float | None = None) -> Failure:
    """What any exception that came out of a handler means for its item. Raises nothing, whatever `error` is.

    An order to stop that nobody gave (SystemExit, KeyboardInterrupt, GeneratorExit, the CancelledError of a task that
    the handler awaited) is a failure like another here.
    """
    try:
        return classify(error, status=status, retry_after=retry_after)
    except BaseException as raised:  # noqa: BLE001 - the error itself, or what is wrong with it
        name = encodable(type(error).__name__)
        if raised is not error:
            message = f"{name}, of which nothing more can be told: reading it raised {type(raised).__name__}"
            return Failure("transient", "application", _signature(name), _trim(message))
    text = _text(error)
    if name == "CancelledError":
        return Failure("transient", "application", name, text or "something that the handler awaited was cancelled")
    signature = _signature(f"{name}: {normalise(text)}".rstrip(": "))
    return Failure("transient", "application", signature, _trim(f"the handler raised {name}: {text}".rstrip(": ")))


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, in any depth, or the exception that is none."""
    rest = [error]
    while rest:
        one = rest.pop()
        if isinstance(one, BaseExceptionGroup):
            rest += reversed(one.exceptions)
        else:
            yield one


def _of_leaf(error: Exception, status: int | None, retry_after: float | None) -> Failure:
    if isinstance(error, ItemError):
        return _of_item_error(error, status, retry_after)
    if isinstance(error, BrowserUnavailable | Refused | SupervisorLost):
        return Failure("infrastructure", "system", type(error).__name__, _trim(_text(error)) or type(error).__name__)
    facts = facts_of(error)
    if facts.status is None and status is not None and status >= 400:
        facts = msgspec.structs.replace(facts, status=status, retry_after=retry_after)
    return classify_facts(facts)


def _of_item_error(error: ItemError, status: int | None, retry_after: float | None) -> Failure:
    kind: Kind = "transient"
    category: Category = "application"
    for cls, its_kind, its_category in _ITEM_ERRORS:
        if isinstance(error, cls):
            kind, category = its_kind, its_category
    given = _http_status(error.status)
    own = given
    if own is None and status is not None and status >= 400:
        own = status
    if given is not None and category == "application":
        category = "external"
    asked = _seconds(error.retry_after)
    if error.signature is not None:
        signature = normalise(str(error.signature))
    elif isinstance(error, SessionExpired):
        signature = "session-expired"
    elif given is not None:
        signature = f"http-{given}"
    else:
        signature = f"{type(error).__name__}: {normalise(_text(error))}".removesuffix(f": {type(error).__name__}")
    message = _trim(_text(error)) or type(error).__name__
    return Failure(kind, category, _signature(signature), message, own, asked if asked is not None else retry_after)


def _http_status(value: object) -> int | None:
    """The status, if it is one: what users put there must not make the failure itself unspeakable."""
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 999 else None


def _seconds(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        return None
    return float(min(max(0, value), MAX_RETRY_AFTER))
