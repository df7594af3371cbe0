"""Handlers in threads, progress and evidence, over a queue in memory."""

from __future__ import annotations

import asyncio
import functools
import threading
import time

import pytest

from scraper_worker import PermanentError, SetupError, UsageError, run
from scraper_worker.items.evidence import Attachments, EvidenceFolder
from scraper_worker.items.threads import is_plain
from scraper_worker.protocol import Evidence, Goodbye, ItemCancel, ItemDone, ItemFailed, ItemProgress, ItemsOffer


def scrape(handler, keys, **options):
    async def function(worker):
        await worker.process(keys, handler, **{"browser": False, **options})

    return function


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


# ---- plain functions


class Plain:
    def __call__(self, item):
        return item

    def method(self, item):
        return item


class NotPlain:
    async def __call__(self, item):
        return item

    async def method(self, item):
        return item


def test_what_is_a_plain_function():
    def plain(item):
        return item

    async def not_plain(item):
        return item

    for handler in (plain, functools.partial(plain, 1), Plain().method, Plain(), print):
        assert is_plain(handler)
    for handler in (not_plain, functools.partial(not_plain, 1), NotPlain().method, NotPlain()):
        assert not is_plain(handler)


async def test_plain_handlers_work_side_by_side_in_threads(alone_link):
    both, threads = threading.Barrier(2, timeout=30), set()

    def handle(item):
        threads.add(threading.current_thread())
        if item.key in "ab":
            both.wait()
            item.offer([{"key": f"of {item.key}", "data": [1]}])
        item.progress("half", done=1, total=2)
        assert not item.cancelled
        if item.key == "of a":
            raise PermanentError("gone", status=404)
        return [item.key, item.data, item.attempt]

    await run(scrape(handle, ["a", "b"], concurrency=2), alone_link)
    done = {message.key: bytes(message.result) for message in alone_link.of(ItemDone)}
    assert done == {"a": b'["a",null,1]', "b": b'["b",null,1]', "of b": b'["of b",[1],1]'}
    (failed,) = alone_link.of(ItemFailed)
    assert (failed.key, failed.failure.signature) == ("of a", "http-404")
    assert "in handle" in failed.failure.traceback
    assert threading.main_thread() not in threads
    assert {message.key for message in alone_link.of(ItemProgress)} == {"a", "b", "of a", "of b"}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(1), GeneratorExit()])
async def test_whatever_a_thread_raises_is_its_item_s_failure(alone_link, error):
    def handle(item):
        if item.key == "a":
            raise error

    await run(scrape(handle, ["a", "b"]), alone_link)
    assert [message.key for message in alone_link.of(ItemFailed)] == ["a"] * 3
    assert [message.key for message in alone_link.of(ItemDone)] == ["b"]


async def test_a_thread_ends_at_a_cancel_by_looking(alone_link):
    begun, seen = threading.Event(), []

    def handle(item):
        if item.key == "b" or item.attempt > 1:
            return
        begun.set()
        while not item.cancelled:
            time.sleep(0.005)
        seen.append(item.key)

    async def function(worker):
        processing = asyncio.get_running_loop().create_task(worker.process(["a", "b"], handle, browser=False))
        await until(begun.is_set)
        (claim,) = alone_link._claims
        worker.cancel(ItemCancel("a", claim, "item_timeout of 1 s", 10.0))
        await processing

    await run(function, alone_link)
    assert seen == ["a"]
    (failed,) = alone_link.of(ItemFailed)
    assert (failed.key, failed.failure.signature) == ("a", "item-timeout")
    assert sorted(message.key for message in alone_link.of(ItemDone)) == ["a", "b"]


async def test_a_thread_that_never_looks_does_not_keep_a_worker_that_ends(alone_link):
    begun, go = threading.Event(), threading.Event()

    def handle(item):
        begun.set()
        go.wait(60)

    async def function(worker):
        processing = asyncio.get_running_loop().create_task(worker.process(["a"], handle, browser=False))
        await until(begun.is_set)
        processing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await processing

    async with asyncio.timeout(30):
        await run(function, alone_link)
    go.set()


async def test_a_plain_handler_with_a_browser_is_a_wrong_set_up(alone_link):
    def handle(item):
        return None

    with pytest.raises(SetupError, match="browser=False"):
        await run(scrape(handle, ["a"], browser=True), alone_link)


async def test_what_has_no_place_in_a_thread_says_so(alone_link):
    async def more():
        yield "x"

    def handle(item):
        if item.key == "page":
            return item.page
        item.offer(more())
        return None

    await run(scrape(handle, ["page", "offer"]), alone_link)
    failures = {message.key: message.failure for message in alone_link.of(ItemFailed)}
    assert {failure.kind for failure in failures.values()} == {"permanent"}
    assert "async function" in failures["page"].message
    assert "not an async one" in failures["offer"].message


# ---- progress


async def test_progress_is_told_at_once_and_then_the_latest_now_and_then(alone_link):
    async def handle(item):
        for number in range(50):
            item.progress("\ud83d" * 2000, done=number)
            await item.progress("at it", done=number, total=50)
        await until(lambda: alone_link.of(ItemProgress)[-1].done == 49)

    await run(scrape(handle, ["a"]), alone_link)
    notes = alone_link.of(ItemProgress)
    assert len(notes) < 20
    assert (notes[-1].message, notes[-1].total) == ("at it", 50)


# ---- evidence


class Kept:
    """A link whose welcome names a folder for evidence."""

    def __init__(self, link, folder):
        self.link = link
        opened = link.open

        async def open_(listener, tasks):
            introduced = listener.introduced

            def with_folder(welcome, *, again):
                import msgspec

                place = None if folder is None else Evidence(str(folder), trace=False)
                introduced(msgspec.structs.replace(welcome, evidence=place), again=again)

            listener.introduced = with_folder
            return await opened(listener, tasks)

        link.open = open_


@pytest.mark.parametrize("threaded", [True, False])
async def test_a_failure_names_what_was_attached_and_a_done_item_keeps_nothing(alone_link, tmp_path, threaded):
    Kept(alone_link, tmp_path)

    def work(item):
        for number in range(20):
            item.attach("page.html", f"<p>{number}")
        item.attach("page.html", b"<p>newer")
        item.attach("note-1", bytearray(b"x"))
        if item.key != "good":
            raise PermanentError("bad")

    async def handle(item):
        work(item)

    await run(scrape(work if threaded else handle, ["bad", "good", "worse"]), alone_link)
    failed = {message.key: message.failure.evidence for message in alone_link.of(ItemFailed)}
    assert failed["bad"] == ("page.html", "note-1")
    assert failed["worse"] not in ((), failed["bad"])
    names = {name for names in failed.values() for name in names}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "page.html").read_bytes() == b"<p>newer"
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a" * 101, "ä", "a\n", "a b"])
async def test_a_name_that_no_file_of_evidence_has_is_the_handler_s_fault(alone_link, tmp_path, name):
    Kept(alone_link, tmp_path)

    async def handle(item):
        await item.attach(name, b"x")

    await run(scrape(handle, ["a"]), alone_link)
    (failed,) = alone_link.of(ItemFailed)
    assert (failed.failure.kind, list(tmp_path.iterdir())) == ("permanent", [])
    assert "evidence is named" in failed.failure.message


async def test_without_a_folder_it_is_dropped_with_one_warning(alone_link, caplog):
    async def handle(item):
        await item.attach("a", b"x")
        raise PermanentError("bad")

    await run(scrape(handle, ["a", "b"]), alone_link)
    assert [message.failure.evidence for message in alone_link.of(ItemFailed)] == [(), ()]
    assert len([record for record in caplog.records if "no evidence is kept" in record.getMessage()]) == 1


async def test_a_disk_that_takes_no_evidence_fails_nothing(alone_link, tmp_path, caplog):
    Kept(alone_link, tmp_path / "not there")

    async def handle(item):
        await item.attach("a", b"x")

    await run(scrape(handle, ["a"]), alone_link)
    assert [message.key for message in alone_link.of(ItemDone)] == ["a"]
    assert "could not be kept as evidence" in caplog.text


def test_long_names_get_a_number_and_stay_within_the_limit(tmp_path):
    folder = EvidenceFolder()
    folder.path = tmp_path
    for claim in (1, 2, 2):
        Attachments(folder, claim).add("a" * 96 + ".png", b"x")
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [100, 100]
    with pytest.raises(UsageError, match="bytes or text"):
        Attachments(folder, 3).add("a", 5)


# ---- a source that was offered before


@pytest.mark.parametrize(("offer", "calls"), [("once", 0), ("always", 1)])
async def test_a_source_that_was_offered_to_its_end_is_not_drawn_again(alone_link, offer, calls):
    opened = alone_link.open

    async def open_(listener, tasks):
        introduced = listener.introduced
        alone_link._offer(["left"])

        def offered(welcome, *, again):
            import msgspec

            introduced(msgspec.structs.replace(welcome, offered=True), again=again)

        listener.introduced = offered
        return await opened(listener, tasks)

    alone_link.open = open_
    drawn = []

    def keys():
        drawn.append(1)
        yield "new"

    async def handle(item):
        return None

    await run(scrape(handle, keys(), offer=offer), alone_link)
    assert len(drawn) == calls
    assert [message.key for message in alone_link.of(ItemDone)] == ["left", "new"][: 1 + calls]
    assert bool(alone_link.of(ItemsOffer)) == bool(calls)
    assert alone_link.of(Goodbye) == [Goodbye("complete")]
