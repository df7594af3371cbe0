"""Classification: the catalogue of what really happens, row by row."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scraper_worker.errors import BlockedError, InfrastructureError, PermanentError, TransientError
from scraper_worker.failures.classify import (
    MAX_MESSAGE,
    MAX_SIGNATURE,
    Facts,
    classify,
    classify_facts,
    failure_of,
    normalise,
)
from scraper_worker.failures.http_answers import kind_of_status, parse_retry_after, retry_after_of

PLAYWRIGHT = "playwright._impl._errors"


def of_playwright(message: str, name: str = "Error", **more: object):
    return classify_facts(
        Facts(name=name, module=PLAYWRIGHT, message=message, mro=(name, "Error", "Exception"), **more)
    )


@pytest.mark.parametrize(
    ("message", "name", "kind", "category", "signature"),
    [
        ("Page.goto: Timeout 30000ms exceeded.", "TimeoutError", "transient", "network", "TimeoutError: Page.goto"),
        ("Page.click: Timeout 5ms exceeded.", "TimeoutError", "transient", "external", "TimeoutError: Page.click"),
        (
            "Page.goto: net::ERR_CONNECTION_RESET at http://a/",
            "Error",
            "transient",
            "network",
            "net::ERR_CONNECTION_RESET",
        ),
        ("Page.goto: net::ERR_NAME_NOT_RESOLVED at x", "Error", "transient", "network", "net::ERR_NAME_NOT_RESOLVED"),
        ("Page.goto: net::ERR_ABORTED at x", "Error", "transient", "network", "net::ERR_ABORTED"),
        ("net::ERR_INTERNET_DISCONNECTED", "Error", "infrastructure", "network", "net::ERR_INTERNET_DISCONNECTED"),
        ("net::ERR_PROXY_CONNECTION_FAILED", "Error", "infrastructure", "network", "net::ERR_PROXY_CONNECTION_FAILED"),
        (
            "net::ERR_TUNNEL_CONNECTION_FAILED",
            "Error",
            "infrastructure",
            "network",
            "net::ERR_TUNNEL_CONNECTION_FAILED",
        ),
        ("net::ERR_TOO_MANY_REDIRECTS", "Error", "permanent", "network", "net::ERR_TOO_MANY_REDIRECTS"),
        ("net::ERR_CERT_DATE_INVALID", "Error", "permanent", "network", "net::ERR_CERT_DATE_INVALID"),
        ("net::ERR_SSL_PROTOCOL_ERROR", "Error", "transient", "network", "net::ERR_SSL_PROTOCOL_ERROR"),
        ("Page.goto: Page crashed", "Error", "infrastructure", "browser", "page-crashed"),
        ("Page.evaluate: Target crashed", "Error", "infrastructure", "browser", "page-crashed"),
        ("Navigation failed because page crashed!", "Error", "infrastructure", "browser", "page-crashed"),
        ("whatever close(reason=) said", "TargetClosedError", "infrastructure", "browser", "TargetClosedError"),
        ("Executable doesn't exist at /x", "Error", "infrastructure", "system", "browser-unusable"),
        ("Failed to launch the browser process", "Error", "infrastructure", "system", "browser-launch"),
        ("Failed to create a ProcessSingleton", "Error", "infrastructure", "system", "browser-launch"),
        ("is interrupted by another navigation to x", "Error", "transient", "browser", "navigation-interrupted"),
        ("Execution context was destroyed, most likely", "Error", "transient", "browser", "context-destroyed"),
        ("Frame was detached", "Error", "transient", "browser", "frame-detached"),
        ("Page.goto: Download is starting", "Error", "permanent", "application", "download"),
        ("Cannot navigate to invalid URL", "Error", "permanent", "application", "invalid-url"),
        ("strict mode violation: locator(x)", "Error", "permanent", "application", "strict-mode-violation"),
        (
            "Page.evaluate: ReferenceError: nope is not defined\n    at eval",
            "Error",
            "permanent",
            "application",
            "Error: Page.evaluate: ReferenceError: nope is not defined",
        ),
    ],
)
def test_what_playwright_says(message, name, kind, category, signature):
    found = of_playwright(message, name)
    assert (found.kind, found.category, found.signature) == (kind, category, signature)


def test_the_driver_s_end_is_a_builtin_exception():
    found = classify(Exception("Page.goto: Connection closed while reading from the driver"))
    assert (found.kind, found.category, found.signature) == ("infrastructure", "browser", "driver-died")


@pytest.mark.parametrize(
    ("status", "retry_after", "kind"),
    [
        *[(status, None, "transient") for status in (408, 425, 500, 501, 502, 503, 504, 522, 524, 599)],
        *[(status, None, "blocked") for status in (401, 403, 429)],
        (503, 5.0, "blocked"),
        (503, 0.0, "blocked"),
        (500, 5.0, "transient"),
        *[(status, None, "permanent") for status in (400, 404, 410, 451)],
    ],
)
def test_http_statuses(status, retry_after, kind):
    assert kind_of_status(status, retry_after) == kind
    found = of_playwright("net::ERR_HTTP_RESPONSE_CODE_FAILURE", status=status, retry_after=retry_after)
    assert (found.kind, found.signature, found.status) == (kind, f"http-{status}", status)


def test_the_document_s_status_explains_what_the_handler_could_not_find():
    for error in (ValueError("no score"), AttributeError("'NoneType' object has no attribute 'text'")):
        found = classify(error, status=429, retry_after=7.0)
        assert (found.kind, found.status, found.retry_after) == ("blocked", 429, 7.0)
    assert classify(ValueError("no score"), status=200).kind == "transient"
    assert of_playwright("Target crashed", status=500).kind == "infrastructure"


@pytest.mark.parametrize(
    ("error", "kind", "category"),
    [
        (ValueError("x"), "transient", "application"),
        (KeyError("x"), "transient", "application"),
        (AssertionError(), "transient", "application"),
        (RuntimeError("x"), "transient", "application"),
        (NameError("x"), "permanent", "application"),
        (UnboundLocalError("x"), "permanent", "application"),
        (AttributeError("x"), "permanent", "application"),
        (TypeError("x"), "permanent", "application"),
        (SyntaxError("x"), "permanent", "application"),
        (ModuleNotFoundError("x"), "permanent", "application"),
        (TimeoutError(), "transient", "network"),
        (ConnectionResetError(104, "reset"), "transient", "network"),
        (OSError(24, "too many open files"), "transient", "system"),
        (MemoryError(), "transient", "system"),
    ],
)
def test_other_exceptions(error, kind, category):
    found = classify(error)
    assert (found.kind, found.category) == (kind, category)
    assert found.message


def test_a_user_s_word_counts():
    assert classify(TransientError("later")).kind == "transient"
    assert classify(PermanentError("gone", status=500)).kind == "permanent"
    assert classify(InfrastructureError("down")).kind == "infrastructure"
    found = classify(BlockedError("challenge", retry_after=30, signature="captcha 17"), status=200)
    assert (found.kind, found.signature, found.retry_after, found.status) == ("blocked", "captcha N", 30, None)
    assert classify(BlockedError(status=429), status=503).status == 429
    assert classify(BlockedError()).signature == "BlockedError"


def test_http_clients_errors_bring_their_status():
    class Response:
        status_code = 429
        headers = {"Retry-After": "12"}  # noqa: RUF012 - stands for a library's object

    class HTTPStatusError(Exception):
        response = Response()

    found = classify(HTTPStatusError("nope"))
    assert (found.kind, found.signature, found.retry_after) == ("blocked", "http-429", 12.0)


@pytest.mark.parametrize("stop", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(1)])
def test_orders_to_stop_are_raised_again(stop):
    with pytest.raises(type(stop)):
        classify(stop)


def test_like_failures_have_one_signature():
    one = classify(ValueError("match 17 at https://a.example/x?y=1 has 'no score' (id deadbeef01)"))
    two = classify(ValueError("match 4,711 at https://b.example/ has 'half a score' (id 0badf00d99)"))
    assert one.signature == two.signature == "ValueError: match N at URL has '…' (id HEX)"


@given(st.text(), st.text(max_size=40), st.sampled_from([PLAYWRIGHT, "builtins"]))
def test_any_text_gives_a_bounded_failure(message, name, module):
    found = classify_facts(Facts(name=name, module=module, message=message, mro=(name, "Exception")))
    assert len(found.signature) <= MAX_SIGNATURE
    assert len(found.message) <= MAX_MESSAGE
    assert "\n" not in normalise(message)
    assert not any(character.isdecimal() for character in normalise(message))


def test_a_browser_log_is_cut_off():
    assert of_playwright("Page.goto: it broke\nBrowser logs:\n" + "x" * 9000).message == "Page.goto: it broke"


NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("9" * 5000, 31_536_000.0),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
        ("Sun Nov  6 08:50:37 1994", 60.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("Sun, 06 Xxx 1994 08:50:37 GMT", None),
        ("Sun, 36 Nov 1994 08:50:37 GMT", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value, seconds):
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("headers", "now", "seconds"),
    [
        ({"retry-after": "7"}, None, 7.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:37 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"}, None, 60.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:37 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"}, NOW + 999.0, 60.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:37 GMT"}, NOW, 60.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:37 GMT", "date": "yesterday"}, None, None),
        ({"date": "Sun, 06 Nov 1994 08:49:37 GMT"}, NOW, None),
    ],
)
def test_a_date_is_counted_from_the_answer_s_own(headers, now, seconds):
    assert retry_after_of(headers, now) == seconds


@given(st.text())
def test_any_retry_after_is_a_number_or_none(value):
    found = parse_retry_after(value, NOW)
    assert found is None or 0 <= found <= 31_536_000


# ---- strangers' exceptions -------------------------------------------------------------------------------------------


class Unreadable(Exception):
    """Its text and its attributes raise."""

    def __str__(self):
        raise RuntimeError("no text")

    @property
    def response(self):
        raise RuntimeError("no response")


class Nowhere(Exception):
    """Its module is no name."""

    __module__ = None


@pytest.mark.parametrize(
    ("error", "kind", "signature"),
    [
        (Unreadable(), "transient", "Unreadable"),
        (Nowhere("x"), "transient", "Nowhere: x"),
        (PermanentError("cut \ud83d"), "permanent", "PermanentError: cut \ufffd"),
        (PermanentError("x", status="404"), "permanent", "PermanentError: x"),
        (PermanentError("x", status=10**30), "permanent", "PermanentError: x"),
        (PermanentError("x", signature=404), "permanent", "N"),
        (BlockedError("x", retry_after="5"), "blocked", "BlockedError: x"),
        (BlockedError("x", retry_after=float("nan")), "blocked", "BlockedError: x"),
        (BlockedError("x", retry_after=10**400), "blocked", "BlockedError: x"),
        (SystemExit(3), "transient", "SystemExit: N"),
        (KeyboardInterrupt(), "transient", "KeyboardInterrupt"),
        (GeneratorExit(), "transient", "GeneratorExit"),
        (asyncio.CancelledError(), "transient", "CancelledError"),
        (BaseExceptionGroup("g", [SystemExit(1), PermanentError("x")]), "permanent", "PermanentError: x"),
        (BaseExceptionGroup("g", [SystemExit(1)]), "transient", "BaseExceptionGroup: g (N sub-exception)"),
    ],
)
def test_whatever_a_handler_raises_has_a_failure_that_can_be_sent(error, kind, signature):
    found = failure_of(error)
    assert (found.kind, found.signature) == (kind, signature)
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


@pytest.mark.parametrize(
    ("leaves", "kind", "signature"),
    [
        ([PermanentError("gone", status=404)], "permanent", "http-404"),
        ([BlockedError("slow", status=429, retry_after=2)], "blocked", "http-429"),
        ([ValueError("x"), PermanentError("never")], "permanent", "PermanentError: never"),
        ([ValueError("x"), InfrastructureError("y"), BlockedError("z")], "blocked", "BlockedError: z"),
        ([ExceptionGroup("inner", [ValueError("x"), NameError("y")])], "permanent", "NameError: y"),
        ([ValueError("first"), KeyError("second")], "transient", "ValueError: first"),
    ],
)
def test_of_an_exception_group_the_deciding_leaf_counts(leaves, kind, signature):
    found = classify(ExceptionGroup("unhandled errors in a TaskGroup", leaves))
    assert (found.kind, found.signature) == (kind, signature)


def test_a_group_s_retry_after_is_that_of_its_leaf():
    assert classify(ExceptionGroup("g", [BlockedError("x", retry_after=2)])).retry_after == 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("asyncio.run() cannot be called from a running event loop"),
        RuntimeError("This event loop is already running"),
        RuntimeError("Cannot run the event loop while another loop is running"),
        Exception("It looks like you are using Playwright Sync API inside the asyncio loop.\nPlease use the Async API"),
    ],
)
def test_what_blocks_the_loop_is_the_handler_s_fault_and_the_remedy_is_named(error):
    found = classify(error, status=503)
    assert (found.kind, found.category, found.signature) == ("permanent", "application", "blocking-call")
    assert "asyncio.to_thread" in found.message


def test_what_is_about_none_may_be_there_the_next_time():
    assert classify(AttributeError("'NoneType' object has no attribute 'text'")).kind == "transient"
    assert classify(TypeError("'NoneType' object is not subscriptable")).kind == "transient"
    assert classify(AttributeError("'Page' object has no attribute 'gooto'")).kind == "permanent"
