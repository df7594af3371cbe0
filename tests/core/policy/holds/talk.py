"""The hold policy in few words: votes of new items, probes, and what was decided."""

from itertools import count

from scraper_supervisor.core.config.settings import AbortSettings
from scraper_supervisor.core.policy.holds.policy import HoldPolicy
from scraper_supervisor.core.policy.holds.scopes import EVERYTHING, ScopeName

MS = 0.001
SETTINGS = AbortSettings()
GROUP = ScopeName("group", "g", "g")
TARGET = ScopeName("target", "a", "g")
OTHER = ScopeName("target", "b", "g")
HOST = ScopeName("target", "a", None)
numbers = count()


def policy(settings=SETTINGS, **groups):
    return HoldPolicy(settings, {"g": settings, **groups})


def feed(one, outcomes, *, start=0.0, gap=0.0, group="g", target="a"):
    """One vote for a new item each `gap` seconds, `x` failed and `.` done; what was decided."""
    for number, outcome in enumerate(outcomes):
        one.vote(start + number * gap, group, f"i{next(numbers)}", failed=outcome == "x", target=target)
    return one.evaluate(start + max(0, len(outcomes) - 1) * gap)


def told(one, now=0.0, status=429, retry_after=None, *, group="g", host="a", start=True):
    """A failure with a status that may hold the host; what was decided."""
    return one.told(now, group, host, status, retry_after, start=start)


def brief(rulings):
    return [(ruling.action, ruling.name) for ruling in rulings]


def probe(one, now, fate, *, seconds=0.0, group="g", target="a"):
    """A probe that takes so long; what was decided."""
    assert one.gate(now, group, target) == "probe"
    number = one.begin_probe(now, group, target, f"i{next(numbers)}")
    if fate not in ("back", "death"):
        failed, infrastructure = fate != "done", fate == "infrastructure"
        one.vote(now + seconds, group, f"i{next(numbers)}", failed=failed, target=target, infrastructure=infrastructure)
    one.end_probe(now + seconds, number, "failed" if fate == "death" else fate)
    return one.evaluate(now + seconds)


def held(settings=SETTINGS, now=0.0):
    """A policy that holds target a of group g since `now`."""
    one = policy(settings)
    assert brief(feed(one, "x" * 14, start=now)) == [("held", TARGET)]
    return one


__all__ = ["EVERYTHING", "GROUP", "HOST", "MS", "SETTINGS", "TARGET", "brief", "feed", "held", "policy", "probe"]
