"""Challenge pages: by which marks it is known that a site wants to see a human, and not what was asked for.

Such a page comes with any status, 200 included, so a handler only finds that what it looks for is missing. A mark is
something that the ordinary pages of a protected site do not have: many of these load a script of their protection, too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from scraper_worker.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scraper_worker.protocol import Failure

LOOKED_AT: Final = 131_072  # characters of a page in which marks are looked for


def _mark(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


HEADERS: Final[tuple[tuple[str, str, re.Pattern[str]], ...]] = (  # (who, header, its value)
    ("cloudflare", "cf-mitigated", _mark(r"challenge")),
    ("aws-waf", "x-amzn-waf-action", _mark(r"challenge|captcha")),
)
MARKS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (  # (who, what is in the page)
    ("cloudflare", _mark(r"<title>\s*(?:just a moment\.\.\.|attention required! \| cloudflare)|window\._cf_chl_opt")),
    ("datadome", _mark(r"https://(?:geo|ct)\.captcha-delivery\.com/(?:captcha|interstitial|c\.js|i\.js)")),
    ("human", _mark(r"id=[\"']px-captcha[\"']|<title>\s*access to this page has been denied")),
    ("imperva", _mark(r"Incapsula incident ID|<iframe[^>]{0,500}_Incapsula_Resource")),
    (
        "akamai",
        _mark(r"id=[\"']sec-if-cpt-container[\"']|<title>\s*access denied\s*</title>[\s\S]{0,2000}edgesuite\.net"),
    ),
    ("aws-waf", _mark(r"window\.gokuProps\s*=|window\.awsWafCookieDomainList[\s\S]{0,2000}AwsWafIntegration")),
    ("kasada", _mark(r"window\.KPSDK\s*=")),
    ("google", _mark(r"<form[^>]{0,500}id=[\"']captcha-form[\"']")),
    ("ddos-guard", _mark(r"<title>\s*ddos-guard")),
    (
        "unknown",
        _mark(
            r"<title>[^<]{0,100}(?:are you (?:a )?(?:human|robot)|verify(?:ing)? (?:that )?you are (?:a )?human"
            r"|robot check|pardon our interruption|checking your browser)"
        ),
    ),
)


def challenge_of(headers: Mapping[str, str], page: str | None = None) -> str | None:
    """Who challenges us, or None.

    Args:
        headers: of the document, with names in lower case.
        page: its HTML, where it is known.
    """
    for who, name, value in HEADERS:
        if value.search(headers.get(name, "")):
            return who
    text = (page or "")[:LOOKED_AT]
    return next((who for who, mark in MARKS if mark.search(text)), None)


def may_be_challenge(error: BaseException, failure: Failure) -> bool:
    """True if a challenge page would explain this failure; what a handler says of its own accord stands."""
    if isinstance(error, ItemError) and error.status is None:
        return False
    return failure.kind == "transient" or (failure.kind == "permanent" and failure.status is not None)


def challenged(failure: Failure, who: str) -> Failure:
    """The failure of an item whose page turned out to be a challenge."""
    message = f"the page is a challenge ({who}); what it led to: {failure.message}"
    explained = {"kind": "blocked", "category": "external", "signature": f"challenge-{who}", "message": message}
    return msgspec.structs.replace(failure, **explained)
