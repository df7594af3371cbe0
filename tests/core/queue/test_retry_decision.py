"""What becomes of an item whose attempt failed."""

import pytest
from msgspec import Raw
from msgspec.structs import replace

from scraper_supervisor.core.config.settings import RetrySettings
from scraper_supervisor.core.queue.item import Item
from scraper_supervisor.core.queue.retry_decision import FREE_BLOCKED, FREE_INFRASTRUCTURE, decide_retry, reclassify
from scraper_worker.protocol import Failure

SETTINGS = RetrySettings(jitter="none", max_attempts=3)
ITEM = Item(1, "x", None, Raw(b"null"), 0, 1.0)


def failure(kind="transient", **changes):
    return replace(Failure(kind, "network", "timed-out", "the page timed out"), **changes)


@pytest.mark.parametrize(
    ("before", "what", "after"),
    [
        pytest.param((0, 0, 0), failure(), ("retry", 1.0, 1, 0, 0), id="first"),
        pytest.param((1, 0, 0), failure(), ("retry", 2.0, 2, 0, 0), id="second waits longer"),
        pytest.param((2, 0, 0), failure(), ("final", None, 3, 0, 0), id="the last"),
        pytest.param((0, 0, 0), failure("permanent"), ("final", None, 1, 0, 0), id="permanent"),
        pytest.param((2, 0, 0), failure("infrastructure"), ("retry", 4.0, 2, 1, 0), id="the browser costs nothing"),
        pytest.param((0, 3, 0), failure("infrastructure"), ("retry", 1.0, 1, 3, 0), id="three times"),
        pytest.param((2, 3, 0), failure("infrastructure"), ("final", None, 3, 3, 0), id="and then it does"),
        pytest.param(
            (2, 0, 0), failure("blocked", retry_after=9.0), ("retry", 9.0, 2, 0, 1), id="a hold-off costs nothing"
        ),
        pytest.param((0, 0, 0), failure("blocked"), ("retry", 1.0, 1, 0, 0), id="without a time it costs"),
        pytest.param((0, 0, 20), failure("blocked", retry_after=9.0), ("retry", 9.0, 1, 0, 20), id="twenty times"),
        pytest.param((0, 0, 0), failure(retry_after=300.0), ("retry", 300.0, 1, 0, 0), id="Retry-After first"),
        pytest.param((0, 0, 0), failure(retry_after=9e9), ("retry", 3600.0, 1, 0, 0), id="up to an hour"),
    ],
)
def test_rulings(before, what, after):
    item = replace(ITEM, attempts=before[0], infrastructure=before[1], blocked=before[2])
    ruling = decide_retry(item, what, SETTINGS, 0.5)
    assert (ruling.action, ruling.delay, ruling.attempts, ruling.infrastructure, ruling.blocked) == after
    assert ruling.reason


def test_the_free_failures_are_those_of_the_contract():
    assert (FREE_INFRASTRUCTURE, FREE_BLOCKED) == (3, 20)


@pytest.mark.parametrize(
    ("settings", "what", "kind"),
    [
        (RetrySettings(permanent_patterns=("timed.out",)), failure(), "permanent"),
        (RetrySettings(transient_patterns=("^timed-out$",)), failure("permanent"), "permanent"),
        (RetrySettings(transient_patterns=("timed-out",)), failure("permanent"), "transient"),
        (RetrySettings(permanent_status=(404,)), failure(status=404), "permanent"),
        (RetrySettings(retryable_status=(404,), permanent_patterns=("page",)), failure(status=404), "transient"),
        (RetrySettings(permanent_patterns=("page",), transient_patterns=("page",)), failure(), "permanent"),
        (RetrySettings(), failure("blocked", status=429), "blocked"),
    ],
)
def test_the_operators_patterns_and_statuses_come_first(settings, what, kind):
    assert reclassify(what, settings).kind == kind
