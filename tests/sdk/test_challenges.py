"""Challenge pages: known by their marks, and never taken for an ordinary page of a protected site."""

from urllib.parse import quote

import pytest
from tests.sdk.wild import Wild

from scraper_worker import BlockedError, PermanentError, TransientError, raise_for_status, run
from scraper_worker.failures.challenges import LOOKED_AT, challenge_of, challenged, may_be_challenge
from scraper_worker.protocol import Failure, ItemDone, ItemFailed

TITLE = "<html><head><title>{}</title></head><body></body></html>"
PAGES = {
    "cloudflare": (TITLE.format("Just a moment..."), "<script>window._cf_chl_opt={cvId: '3'}</script>"),
    "datadome": ("<script src='https://geo.captcha-delivery.com/captcha/?x=1'></script>",),
    "human": ("<div id='px-captcha'></div>", TITLE.format("Access to this page has been denied.")),
    "imperva": ("Request unsuccessful. Incapsula incident ID: 1-2", "<iframe id='f' src='/_Incapsula_Resource?a=1'>"),
    "akamai": (
        "<div id='sec-if-cpt-container'></div>",
        TITLE.format("Access Denied") + "Reference #18.1 https://errors.edgesuite.net/18.1",
    ),
    "aws-waf": ("<script>window.gokuProps = {}</script>",),
    "kasada": ("<script>window.KPSDK={};</script>",),
    "google": ("<form action='index' method='post' id='captcha-form'>",),
    "ddos-guard": (TITLE.format("DDoS-Guard"),),
    "unknown": (
        TITLE.format("Please verify you are human"),
        TITLE.format("Robot Check"),
        TITLE.format("Pardon Our Interruption"),
        TITLE.format("Checking your browser before accessing x"),
    ),
}
ORDINARY = (
    "",
    TITLE.format("Just a moment in history"),
    "<script src='/cdn-cgi/challenge-platform/scripts/jsd/main.js'></script>",  # ordinary pages behind Cloudflare
    "<script src='https://js.datadome.co/tags.js'></script>",
    "<script src='https://www.google.com/recaptcha/api.js'></script><div class='g-recaptcha'></div>",
    "<p>How to verify you are human: an essay</p>",
    TITLE.format("Access Denied"),
    "<script src='/_Incapsula_Resource?SWJIYLWA=1'></script>",
)


@pytest.mark.parametrize(("who", "page"), [(who, page) for who, pages in PAGES.items() for page in pages])
def test_a_mark_tells_who_it_is(who, page):
    assert challenge_of({}, page) == who
    assert challenge_of({}, page.upper().replace("HTTPS", "https")) == who


@pytest.mark.parametrize("page", ORDINARY)
def test_an_ordinary_page_of_a_protected_site_is_none(page):
    assert challenge_of({"server": "cloudflare", "x-datadome": "protected"}, page) is None


def test_headers_tell_it_too():
    assert challenge_of({"cf-mitigated": "challenge"}) == "cloudflare"
    assert challenge_of({"x-amzn-waf-action": "captcha"}, "") == "aws-waf"


def test_only_the_beginning_of_a_page_is_looked_at():
    assert challenge_of({}, " " * LOOKED_AT + PAGES["google"][0]) is None


@pytest.mark.parametrize(
    ("error", "kind", "status", "may"),
    [
        (ValueError("no score"), "transient", None, True),
        (TransientError("HTTP 503", status=503), "transient", 503, True),
        (ValueError("no score"), "permanent", 405, True),
        (TransientError("later"), "transient", None, False),
        (PermanentError("gone"), "permanent", None, False),
        (NameError("x"), "permanent", None, False),
        (BlockedError("HTTP 403", status=403), "blocked", 403, False),
        (ValueError("no score"), "infrastructure", None, False),
    ],
)
def test_what_a_challenge_would_explain(error, kind, status, may):
    assert may_be_challenge(error, Failure(kind, "application", "x", "x", status)) is may


def test_the_failure_says_what_it_led_to():
    found = challenged(Failure("transient", "application", "ValueError: no score", "no score", 503, 7.0), "datadome")
    assert (found.kind, found.category, found.signature) == ("blocked", "external", "challenge-datadome")
    assert (found.status, found.retry_after) == (503, 7.0)
    assert found.message == "the page is a challenge (datadome); what it led to: no score"


@pytest.mark.browser
@pytest.mark.slow
async def test_a_real_page_is_looked_at_where_a_handler_failed(alone_link, monkeypatch):
    monkeypatch.setattr("scraper_worker.items.handling.CHALLENGE_TIMEOUT", 60.0)  # however busy the machine is
    body = quote(PAGES["cloudflare"][0])
    paths = {
        "challenge": f"/?body={body}",
        "status": f"/?status=503&body={body}",
        "header": f"/?header={quote('cf-mitigated: challenge')}",
        "ordinary": "/",
        "own": f"/?body={body}",
        "content": f"/?body={body}",
    }

    async def scrape(worker):
        await worker.process(list(paths), one, concurrency=len(paths))

    async def one(item):
        response = await item.page.goto(wild(paths[item.key]))
        if item.key == "content":
            return await item.page.title()
        if item.key == "own":
            raise PermanentError("gone")
        raise_for_status(response)
        raise ValueError("no score")

    async with Wild() as wild:
        await run(scrape, alone_link)
    found = {one.key: (one.failure.kind, one.failure.signature) for one in alone_link.of(ItemFailed)}
    assert found == {
        "challenge": ("blocked", "challenge-cloudflare"),
        "status": ("blocked", "challenge-cloudflare"),
        "header": ("blocked", "challenge-cloudflare"),
        "ordinary": ("transient", "ValueError: no score"),
        "own": ("permanent", "PermanentError: gone"),
    }
    assert [one.key for one in alone_link.of(ItemDone)] == ["content"]
