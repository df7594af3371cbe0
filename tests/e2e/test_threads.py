"""Plain functions as handlers, under a daemon."""

import pytest

pytestmark = pytest.mark.slow

SCRAPER = """
import threading, time

async def scrape(worker):
    await worker.process(["long", "source"], handle, concurrency=2, browser=False)

def handle(item):
    assert threading.current_thread() is not threading.main_thread()
    item.attach("note.txt", item.key)
    if item.key == "source":
        item.offer([{"key": "found", "data": 7}])
    if item.key == "long" and item.attempt == 1:
        item.progress("as long as it takes", done=1, total=3)
        while not item.cancelled:
            time.sleep(0.01)
    return [item.key, item.data]
"""


def test_plain_handlers_work_in_threads_tell_their_progress_and_end_when_cancelled(daemons, tmp_path):
    (tmp_path / "threads.py").write_text(SCRAPER)
    group = {"entrypoint": "threads:scrape", "directory": str(tmp_path), "item_timeout": "3s"}
    retry = {"default": {"base_delay": 0.05, "max_delay": 0.1, "max_attempts": 3}}
    daemon = daemons({"workers": {"g": group}, "retry": retry})
    daemon.start("--once")

    def told():
        doing = (daemon.worker("g-0") or {}).get("doing") or []
        return next((one for one in doing if one["key"] == "long" and one["message"]), None)

    one = daemon.wait(told, "the progress of an item")
    assert (one["message"], one["done"], one["total"]) == ("as long as it takes", 1, 3)
    assert daemon.exit_code() == 0, daemon.log()
    results = {key: row.result for key, row in daemon.results("g").items()}
    assert set(results) == {"long", "source", "found"}
    (retried,) = daemon.events("item_finished", outcome="retry")
    assert (retried["data"]["key"], retried["data"]["failure"]["signature"]) == ("long", "item-timeout")
    assert len(daemon.events("worker_started")) == 1
    assert daemon.log().count("no evidence is kept here") == 1
