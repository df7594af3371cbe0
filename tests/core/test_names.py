from __future__ import annotations

from scraper_supervisor.core.formats.event_names import EVENTS, SEVERITIES


def test_the_names_are_the_contracts() -> None:
    assert len(EVENTS) == 33
    assert {"item_finished", "abort_executed", "worker_adopted"} <= EVENTS
    assert SEVERITIES[0] == "debug"
