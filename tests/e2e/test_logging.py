"""What a scraper logs, as the daemon's log shows it."""

import json

import pytest

pytestmark = pytest.mark.slow

SCRAPER = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(levelname)s %(message)s")
log = logging.getLogger("shop")

async def scrape(worker):
    await worker.process(["a"], one, browser=False)

async def one(item):
    log.info("page %s", item.key)
    log.debug("nobody wants this at level info")
    print("plain words")
    try:
        raise ValueError("no price")
    except ValueError:
        log.exception("a look at %s", item.key)
    log.warning("half of it")
    await item.offer(["x\\ny"])
"""


def test_levels_of_a_scraper_s_own_logging_survive_and_a_traceback_is_one_record(daemons, tmp_path):
    (tmp_path / "shop.py").write_text(SCRAPER)
    daemon = daemons({"workers": {"g": {"entrypoint": "shop:scrape", "directory": str(tmp_path)}}})
    daemon.start("--once")
    assert daemon.exit_code() == 0, daemon.log()
    log = (daemon.folder / "log").read_text().splitlines()
    lines = [json.loads(line) for line in log if line.startswith("{")]  # behind them stands the summary
    told = [(line["level"], line["event"]) for line in lines if line.get("stream")]
    levels = {text.split("shop ")[-1].split("\n")[0]: level for level, text in told}
    assert levels["INFO page a"] == "info"
    assert levels["WARNING half of it"] == "warning"
    assert levels["ERROR a look at a"] == "error"
    assert levels["plain words"] == "info"
    assert not any("nobody wants this" in text for _, text in told)
    (trace,) = [text for _, text in told if "Traceback" in text]
    assert trace.startswith("2")
    assert trace.endswith("ValueError: no price")
    (ours,) = [pair for pair in told if "was not queued" in pair[1]]  # the SDK's own, in its own form
    assert ours[0] == "warning"
    assert ours[1].startswith("scraper_worker: WARNING: ")
