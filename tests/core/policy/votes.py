"""Votes for an abort window, and what it decides."""

from scraper_supervisor.core.config.settings import AbortSettings

MS = 0.001
SETTINGS = AbortSettings()


def feed(window, outcomes, *, start=0.0, gap=0.25, group="matches", first=0):
    """One vote for a new item each `gap` seconds, `x` failed and `.` done; decisions, and the time of the last vote."""
    decided, now = [], start
    for number, outcome in enumerate(outcomes):
        now = start + number * gap
        window.vote(now, group, f"item-{first + number}", failed=outcome == "x")
        decided += window.evaluate(now)
    return decided, now


def actions(decided, scope="group"):
    return [decision.action for decision in decided if decision.scope == scope]
