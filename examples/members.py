"""A scraper that logs in: its session is kept over restarts, and made anew when the site ends it.

The site is any that answers 401 to strangers: set SITE, MEMBER and PASSWORD in the group's `env` or `env_file`, and the
selectors below to those of its login page.
"""

import os

from scraper_worker import PermanentError, SessionExpired, raise_for_status

SITE = os.environ.get("SITE", "https://members.example")


async def scrape(worker):
    async def log_in(page):
        await page.goto(f"{SITE}/login")
        await page.fill("#user", os.environ["MEMBER"])  # with several workers, tell accounts apart by worker.index
        await page.fill("#password", os.environ["PASSWORD"])
        await page.click("#go")
        if await page.locator(".refused").count():
            raise PermanentError("the site refuses our credentials")

    await worker.process([f"{SITE}/page/{number}" for number in range(1, 101)], read, concurrency=2, login=log_in)


async def read(item):
    response = await item.page.goto(item.key)
    if response.status == 401:
        raise SessionExpired
    raise_for_status(response, allow=[404])  # a page that is not there is a result, too
    return None if response.status == 404 else await item.page.inner_text("h1")
