"""The rule that tells an outage from bad luck: how many failures among how many votes are an alarm.

Rule "evidence" looks at nested windows of the last n = 20, 28, 40, … 905 votes (ratio √2) and alarms when the failures
in one of them reach both ceil(failure_limit · n) and c(n), the smallest count that a healthy scope, failing at
`normal_rate`, reaches with a probability of at most 10⁻⁹. Votes that do not exist yet count as done, so 14 failures of
14 need no six more. Rule "rate" has one full window of `min_items`, and no c(n).
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from scraper_supervisor.core.policy.evidence import MOST_VOTES, bound

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import AbortSettings

SMALLEST: Final = 20  # votes in the narrowest window

Windows: TypeAlias = tuple[tuple[int, int], ...]  # (n, failures needed), both rising


@lru_cache(maxsize=64)
def alarm_windows(settings: AbortSettings) -> Windows:
    """The rule's windows; those narrower than `min_items`, and those that no failures can fill, are left out."""
    limit, least = Fraction(str(settings.failure_limit)), settings.min_items
    if settings.rule == "rate":
        return ((least, math.ceil(limit * least)),)
    sizes, step = [SMALLEST], 1
    while (size := round(SMALLEST * 2 ** (step / 2))) <= MOST_VOTES or sizes[-1] < least:
        sizes.append(size)
        step += 1
    needs = ((n, max(math.ceil(limit * n), bound(n, settings.normal_rate))) for n in sizes if n >= least)
    return tuple((n, need) for n, need in needs if need <= n)
