"""The smallest scraper: a result for each match page.

Try it on the demo's site: `python -m scraper_supervisor.console.demo.site --port 8000`, and in this folder
`scraper-supervisor run matches:scrape`. Without a supervisor: `python -m scraper_worker matches:scrape`.
"""

from scraper_worker import raise_for_status


async def scrape(worker):
    matches = [f"http://127.0.0.1:8000/match/{number}" for number in range(1, 301)]
    await worker.process(matches, scrape_match, concurrency=4)


async def scrape_match(item):
    raise_for_status(await item.page.goto(item.key))
    return {"score": await item.page.inner_text(".score")}
