"""Deaths in a row: a group whose workers die with no item done between them is aborted at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.config.units import format_duration

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import AbortSettings

TOGETHER: Final = 2.0  # seconds: deaths so soon after one that counts are the same trouble


class Crashes:
    """The deaths of each group since its last done item. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.deaths: dict[str, list[tuple[float, str | None]]] = {}

    def died(self, now: float, group: str, charged: str | None, settings: AbortSettings) -> str | None:
        """Count a worker's death.

        Of deaths within TOGETHER of one that counts, and of those charged to one item, only the first counts.

        Args:
            now: monotonic seconds.
            group: the worker's.
            charged: the key of the item that is charged for it.
            settings: the group's.

        Returns:
            Why the group is to be aborted, or None.
        """
        deaths = [death for death in self.deaths.get(group, ()) if now < death[0] + settings.crash_window]
        same = any(now < time + TOGETHER or (charged is not None and charged == item) for time, item in deaths)
        if not same:
            deaths.append((now, charged))
        self.deaths[group] = deaths
        if same or len(deaths) < settings.consecutive_crashes:
            return None
        span = format_duration(settings.crash_window)
        bounds = f"consecutive_crashes is {settings.consecutive_crashes}"
        return f"{len(deaths)} deaths within {span} with no item done between them, {bounds}"

    def forget(self, group: str) -> None:
        """An item of the group is done, or it gets another chance: its streak is over."""
        self.deaths.pop(group, None)
