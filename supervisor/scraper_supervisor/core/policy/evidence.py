"""How many failures of a window are too many: the figures behind the abort policy, and nothing else."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import AbortSettings

MOST_VOTES: Final = 905  # the widest window, unless min_items asks for more
FALSE_ALARM: Final = Fraction(1, 10**9)  # how likely a healthy scope may reach c(n), for each window looked at
LUCKY_SLICE: Final = Fraction(1, 500)  # how likely a scope failing at failure_limit may look that healthy


@lru_cache(maxsize=512)
def bound(n: int, rate: float, chance: Fraction = FALSE_ALARM) -> int:
    """The smallest count of failures that `n` items failing at `rate` reach with at most `chance`; n + 1 if none is."""
    if n > MOST_VOTES:  # Hoeffding's bound: a little above the exact one, which takes too long for so many
        return math.ceil(n * rate + math.sqrt(n * math.log(1 / chance) / 2))
    exact = Fraction(str(rate)).limit_denominator(10**6)
    good = exact.denominator - exact.numerator
    limit = chance * exact.denominator**n
    ways = 0
    for count in range(n, -1, -1):
        ways += math.comb(n, count) * exact.numerator**count * good ** (n - count)
        if ways > limit:
            return count + 1
    return 0


def windows(settings: AbortSettings) -> tuple[tuple[int, int], ...]:
    """The rule's windows as (n, failures needed), both rising; those that no failures can fill are left out."""
    limit = Fraction(str(settings.failure_limit))
    if settings.rule == "rate":
        return ((settings.min_items, math.ceil(limit * settings.min_items)),)
    sizes = [settings.min_items]
    while (size := round(settings.min_items * 2 ** (len(sizes) / 2))) <= MOST_VOTES:
        sizes.append(size)
    needs = ((n, max(math.ceil(limit * n), bound(n, settings.normal_rate))) for n in dict.fromkeys(sizes))
    return tuple((n, need) for n, need in needs if need <= n)
