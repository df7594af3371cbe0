"""The scraper that the demo runs against its own site: a worker like any user's, on the SDK alone.

The address of the site comes in DEMO_SITE_URL. Run as `scraper_supervisor.console.demo.scraper:scrape`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from scraper_worker import raise_for_status

if TYPE_CHECKING:
    from scraper_worker import Item, Worker

_PATIENCE: Final = 10_000  # milliseconds for a page to load; on this machine nothing but a hang takes as long
_SAVE_EVERY: Final = 10  # matches between two checkpoints


async def scrape(worker: Worker) -> None:
    """Begin with the first fixture list; it leads to the other lists, and each list to its matches.

    What the queue can't know is the worker's own state: here the goals counted so far, kept in a checkpoint. As it is
    saved now and then, a killed worker's tally goes on from its last checkpoint; the results themselves are exact.
    """
    site = os.environ["DEMO_SITE_URL"]
    tally = await worker.checkpoint.load() or {"matches": 0, "goals": 0}

    async def handle_and_count(item: Item) -> dict[str, object]:
        result = await handle(item)
        if "score" in result:
            tally["matches"] += 1
            tally["goals"] += sum(int(goals) for goals in re.findall(r"\d+", str(result["score"])))
            if tally["matches"] % _SAVE_EVERY == 0:
                await worker.checkpoint.save(tally)
        return result

    await worker.process([f"{site}/fixtures?page=1"], handle_and_count, concurrency=3)


async def handle(item: Item) -> dict[str, object]:
    """Scrape one page: a list's result is how many links it had, a match's the two teams and the score.

    Raises:
        ItemError: the site answered with an error status.
        playwright.async_api.Error: the page did not load.
    """
    raise_for_status(await item.page.goto(item.key, timeout=_PATIENCE))
    return await (_fixtures(item) if "/fixtures" in item.key else _match(item))


async def _fixtures(item: Item) -> dict[str, object]:
    links = item.page.locator("a.match, a.page")
    found: list[str] = await links.evaluate_all("links => links.map(link => link.href)")
    await item.offer(found)
    return {"links": len(found)}


async def _match(item: Item) -> dict[str, object]:
    return {name: await item.page.inner_text(f".{name}", timeout=_PATIENCE) for name in ("home", "away", "score")}
