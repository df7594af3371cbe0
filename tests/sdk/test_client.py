"""The connection, against a scripted supervisor on a real socket."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from scraper_worker import CallError, Refused, SupervisorLost, UsageError
from scraper_worker.connection.client import Client
from scraper_worker.protocol import (
    BrowserStopped,
    CheckpointSave,
    End,
    Failure,
    Granted,
    ItemDone,
    ItemFailed,
    Offered,
    Raw,
)

GRANT = {"key": "a", "claim": 7, "target": None, "data": {"n": 1}, "attempt": 2}
HELD = {"key": "a", "claim": 7, "attempt": 2}


class Listener:
    def __init__(self):
        self.events = asyncio.Queue()
        self.go = asyncio.Event()

    def introduced(self, _, *, again):
        self.events.put_nowait(("introduced", again))

    def dropped(self, claim):
        self.events.put_nowait(("dropped", claim))

    def drain(self, order):
        self.events.put_nowait(("drain", order.reason))

    def cancel(self, order):
        self.events.put_nowait(("cancel", order.claim))

    async def recycle(self, _):
        await self.go.wait()

    def pages(self):
        return {"b1": 3}

    async def expect(self, event):
        async with asyncio.timeout(60):
            while await self.events.get() != event:
                pass


@asynccontextmanager
async def connected(fake, **options):
    """A client that has been welcomed, its supervisor's side, its listener and its tasks."""
    client = Client(fake.path, "g-0", "secret", **options)
    listener = Listener()
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(client.open(listener, tasks))
        peer = await fake.accept()
        hello = await peer.welcome()
        await opening
        yield client, peer, listener, tasks, hello
        await client.close()


async def test_hello_then_heartbeats(fake):
    async with connected(fake) as (_, peer, _, _, hello):
        assert hello["worker"] == "g-0"
        assert hello["token"] == "secret"
        assert hello["protocol"] == 1
        assert hello["client"].startswith("scraper-worker/")
        assert "in_flight" not in hello.params
        for _ in range(3):
            beat = await peer.expect("heartbeat")
            assert beat["pages"] == {"b1": 3}
            assert beat.params.get("lag_ms", 0.0) >= 0


async def test_lag_of_the_event_loop_is_reported(fake):
    import time

    async with connected(fake) as (_, peer, _, _, _):
        await peer.expect("heartbeat")
        time.sleep(0.1)
        while (await peer.expect("heartbeat")).params.get("lag_ms", 0.0) < 50:
            pass


async def test_calls_are_answered_in_any_order(fake):
    async with connected(fake) as (client, peer, _, tasks, _):
        offering = tasks.create_task(client.offer(["a", "b"], more=True))
        pulling = tasks.create_task(client.next())
        offer, pull = await peer.expect("items.offer"), await peer.expect("item.next")
        assert offer.params == {"items": ["a", "b"], "more": True}
        peer.answer(pull, GRANT)
        peer.answer(offer, {"added": 1, "known": 1})
        granted = await pulling
        assert (granted.key, granted.claim, granted.attempt) == ("a", 7, 2)
        assert await offering == Offered(1, 1)


async def test_an_error_is_raised_with_its_data(fake):
    async with connected(fake) as (client, peer, _, tasks, _):
        offering = tasks.create_task(catch(client.offer([""], more=False)))
        peer.refuse(await peer.expect("items.offer"), -32005, "bad key", {"path": "items[0]"})
        error = await offering
        assert isinstance(error, CallError)
        assert (error.code, error.data, str(error)) == (-32005, {"path": "items[0]"}, "bad key (-32005)")


async def catch(call):
    try:
        return await call
    except Exception as error:  # noqa: BLE001 - handed to the test
        return error


async def test_without_storage_the_same_call_is_repeated(fake):
    async with connected(fake) as (client, peer, _, tasks, _):
        done = tasks.create_task(client.done(ItemDone("a", 7, 1.0, None, Raw(b'{"x":1}'))))
        first = await peer.expect("item.done")
        peer.refuse(first, -32001, "disk full", {"errno": 28, "retry_after": 0.01})
        again = await peer.expect("item.done")
        assert again.params == first.params
        peer.answer(again, {"seq": 1, "duplicate": False})
        assert (await done).seq == 1


async def test_after_a_break_claims_are_named_and_unanswered_calls_sent_again(fake):
    async with connected(fake) as (client, peer, listener, tasks, _):
        pulling = tasks.create_task(client.next())
        peer.answer(await peer.expect("item.next"), GRANT)
        await pulling
        done = tasks.create_task(client.done(ItemDone("a", 7)))
        waiting = tasks.create_task(client.next())
        first = await peer.expect("item.done")
        await peer.expect("item.next")
        peer.close()
        client.notify(BrowserStopped("b1", "crash"))
        peer = await fake.accept()
        hello = await peer.welcome([HELD])
        assert hello["in_flight"] == [{"key": "a", "claim": 7}]
        again = await peer.expect("item.done")
        assert again.params == first.params
        peer.answer(again, {"seq": 5, "duplicate": True})
        assert (await done).duplicate
        peer.answer(await peer.expect("item.next"), {"end": "complete"})
        assert await waiting == End("complete")
        await listener.expect(("introduced", True))


async def test_a_browser_s_end_while_disconnected_is_told_later(fake):
    async with connected(fake) as (client, peer, _, _, _):
        peer.close()
        await peer.expect_end()
        while client._writer is not None:
            await asyncio.sleep(0)
        client.notify(BrowserStopped("b1", "crash"))
        peer = await fake.accept()
        await peer.welcome()
        assert (await peer.expect("browser.stopped")).params == {"browser": "b1", "reason": "crash"}


async def test_with_empty_hands_a_reconnect_names_none(fake):
    async with connected(fake) as (_, peer, _, _, _):
        peer.close()
        peer = await fake.accept()
        assert (await peer.welcome())["in_flight"] == []


async def test_claims_that_are_no_longer_ours_are_dropped_and_strange_ones_released(fake):
    async with connected(fake) as (client, peer, listener, tasks, _):
        pulling = tasks.create_task(client.next())
        peer.answer(await peer.expect("item.next"), GRANT)
        await pulling
        peer.close()
        peer = await fake.accept()
        await peer.welcome([{"key": "z", "claim": 9, "attempt": 1}])
        await listener.expect(("dropped", 7))
        released = await peer.expect("item.release")
        assert (released["key"], released["claim"]) == ("z", 9)
        peer.answer(released, {})


async def test_an_outcome_on_its_way_survives_the_loss_of_its_claim(fake):
    async with connected(fake) as (client, peer, _, tasks, _):
        pulling = tasks.create_task(client.next())
        peer.answer(await peer.expect("item.next"), GRANT)
        await pulling
        failure = Failure("transient", "network", "s", "m")
        failed = tasks.create_task(catch(client.failed(ItemFailed("a", failure, 7))))
        await peer.expect("item.failed")
        peer.close()
        peer = await fake.accept()
        await peer.welcome([])
        peer.refuse(await peer.expect("item.failed"), -32007)
        assert (await failed).code == -32007
        assert client._calls.held == {}


async def test_a_claim_granted_to_nobody_is_released(fake):
    async with connected(fake) as (client, peer, _, tasks, _):
        pulling = tasks.create_task(client.next())
        pull = await peer.expect("item.next")
        pulling.cancel()
        await asyncio.wait([pulling])
        peer.answer(pull, GRANT)
        released = await peer.expect("item.release")
        assert (released["key"], released["claim"]) == ("a", 7)
        peer.answer(released, {})


async def test_at_most_256_calls_are_open_and_waits_leave_room(fake):
    async with connected(fake) as (client, peer, _, tasks, _):
        pulls = [tasks.create_task(client.next()) for _ in range(300)]
        for _ in range(128):
            await peer.expect("item.next")
        offers = [tasks.create_task(client.offer([str(number)], more=False)) for number in range(200)]
        said = [await peer.expect("items.offer") for _ in range(128)]
        assert len(client._calls._open) == 256
        for number in range(200):
            peer.answer(said[number], {"added": 1, "known": 0})
            if number < 72:
                said.append(await peer.expect("items.offer"))
        await asyncio.wait(offers)
        for pull in pulls:
            pull.cancel()


async def test_refused_credentials_end_the_worker(fake):
    client = Client(fake.path, "g-0", "wrong")

    async def live():
        async with asyncio.TaskGroup() as tasks:
            await client.open(Listener(), tasks)

    async with asyncio.TaskGroup() as tasks:
        living = tasks.create_task(catch(live()))
        peer = await fake.accept()
        peer.refuse(await peer.expect("hello"), -32003, "wrong token")
    (error,) = living.result().exceptions
    assert isinstance(error, Refused)
    assert "wrong token" in str(error)


async def test_without_a_supervisor_the_worker_ends(tmp_path):
    client = Client(str(tmp_path / "nobody.sock"), "g-0", "t", lost_after=0.1)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            await client.open(Listener(), tasks)
    assert caught.group_contains(SupervisorLost, match="no supervisor at")


@pytest.mark.slow
async def test_a_supervisor_that_waits_for_its_disk_is_not_lost(fake):
    """However long it takes: the state that it cannot read now is not to be forgotten."""
    client = Client(fake.path, "g-0", "t", lost_after=1.2)
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(client.open(Listener(), tasks))
        for _ in range(5):  # the pauses between them add up to 1.5 s
            peer = await fake.accept()
            peer.refuse(await peer.expect("hello"), -32001, "storage unavailable", {"errno": 5, "retry_after": 1.0})
        await (await fake.accept()).welcome()
        await opening
        await client.close()


async def test_a_line_too_long_fails_its_call_alone(fake):
    async with connected(fake) as (client, peer, _, tasks, _):
        saving = tasks.create_task(catch(client.save(CheckpointSave("s/1", Raw(b'{"x":"' + b"y" * 5000 + b'"}')))))
        waiting = tasks.create_task(client.next())
        await peer.expect("checkpoint.save")
        peer.refuse(None, -32004, "a line is at most 1 byte")
        peer.close()
        assert (await saving).code == -32004
        peer = await fake.accept()
        await peer.welcome()
        peer.answer(await peer.expect("item.next"), {"end": "empty"})
        assert await waiting == End("empty")


async def test_orders_reach_the_listener(fake):
    async with connected(fake) as (_, peer, listener, _, _):
        peer.tell("item.cancel", {"key": "a", "claim": 7, "reason": "item_timeout", "deadline": 5})
        peer.tell("drain", {"reason": "stop", "deadline": 30})
        await listener.expect(("cancel", 7))
        await listener.expect(("drain", "stop"))
        peer.ask("browser.recycle", {"browser": "b1", "reason": "memory", "deadline": 20}, 41)
        peer.ask("what.is.this", {}, 42)
        peer.ask("browser.recycle", {"browser": 1}, 43)
        assert (await peer.expect_answer(42)).error.code == -32601
        assert (await peer.expect_answer(43)).error.code == -32005
        listener.go.set()
        assert bytes((await peer.expect_answer(41)).result) == b"{}"


async def test_goodbye_is_the_last_call(fake):
    async with connected(fake) as (client, peer, _, tasks, _):
        leaving = tasks.create_task(client.goodbye("complete"))
        said = await peer.expect("goodbye")
        assert said.params == {"reason": "complete"}
        peer.answer(said, {})
        await leaving
        with pytest.raises(UsageError, match="goodbye"):
            await client.next()


async def test_held_claims_are_given_back(fake):
    async with connected(fake) as (client, peer, _, tasks, _):
        pulling = tasks.create_task(client.next())
        peer.answer(await peer.expect("item.next"), GRANT)
        assert isinstance(await pulling, Granted)
        giving = tasks.create_task(client.give_back("the worker ends"))
        released = await peer.expect("item.release")
        assert released["reason"] == "the worker ends"
        peer.answer(released, {})
        await giving


@pytest.mark.parametrize("missing", ["SCRAPER_WORKER_NAME", "SCRAPER_WORKER_TOKEN"])
def test_the_environment_is_whole_or_absent(missing):
    whole = {"SCRAPER_WORKER_SOCKET": "/s", "SCRAPER_WORKER_NAME": "g-0", "SCRAPER_WORKER_TOKEN": "t"}
    assert Client.from_environment({}) is None
    assert isinstance(Client.from_environment(whole), Client)
    with pytest.raises(UsageError, match=missing):
        Client.from_environment({name: value for name, value in whole.items() if name != missing})
