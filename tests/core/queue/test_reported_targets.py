"""Whose host an item talks to: its own, else what its last attempt reported, else what all attempts of the run did."""

from msgspec import Raw
from tests.core.playbook import ANY, BLIP, Play

from scraper_supervisor.core.config.settings import TargetSettings
from scraper_supervisor.core.events import ItemsChanged, StoreTold
from scraper_supervisor.core.ops.item_ops import NewItem
from scraper_worker.protocol import DoneAnswer, ItemDone, ItemFailed, ItemNext, ItemsOffer, Offer, Offered


def fails(play, puppet, granted, target=None):
    """The attempt fails, and is due again."""
    play >> puppet(ItemFailed(granted.key, BLIP, granted.claim, target=target)) << puppet.gets(ANY)
    play.until(play.now + 60.0)


def done(play, puppet, granted, target=None):
    play >> puppet(ItemDone(granted.key, granted.claim, target=target)) << puppet.gets(DoneAnswer(ANY, False))


def test_the_last_attempts_host_counts_and_the_first_one_does_not_stick():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    assert x.target is None
    fails(play, a, x, "first.test")
    x = play.gives(a)
    assert (x.target, play.row("x").target) == ("first.test", "first.test")
    fails(play, a, x, "second.test")
    x = play.gives(a)
    assert (x.target, play.row("x").target) == ("second.test", "second.test")
    fails(play, a, x)
    play.fleet.state.groups["g"].queue.read_again()
    play >> StoreTold(ItemsChanged("g"))
    assert play.store.newest("g").row("x").given is False


def test_it_is_the_same_after_the_item_was_in_the_ledger_alone():
    first = Play("x", retry="default")
    a = first.up()
    fails(first, a, first.gives(a), "first.test")
    play = Play(store=first.store)
    a = play.up()
    play.until(play.now + 60.0)
    x = play.gives(a)
    assert x.target == "first.test"
    fails(play, a, x, "second.test")
    assert play.gives(a).target == "second.test"


def test_what_was_given_or_is_in_the_key_stays():
    play = Play("https://key.test:8443/x")
    a = play.up()
    play >> a(ItemsOffer([Offer("y", "given.test"), "https://KEY.test/z"])) << a.gets(Offered(2, 0))
    targets = {}
    for one in [play.gives(a) for _ in range(3)]:
        fails(play, a, one, "redirected.test")
    for _ in range(3):
        one = play.gives(a)
        targets[one.key] = one.target
        done(play, a, one)
    assert targets == {"https://key.test:8443/x": ANY, "y": "given.test", "https://KEY.test/z": "key.test"}


def item(key, target=None):
    return NewItem(key, target, Raw(b"null"), 0)


def test_where_all_attempts_reported_one_host_that_is_the_others_host_too():
    play = Play("x", "y", "z")
    a = play.up()
    x = play.gives(a)
    done(play, a, x, "one.test")
    y = play.gives(a)
    assert (x.target, y.target) == (None, "one.test")
    assert play.row("z").target is None, "it is assumed, and nobody said so"
    done(play, a, y, "two.test")
    assert play.gives(a).target is None, "there are several hosts"


def test_what_all_attempts_reported_outlives_the_supervisor():
    first = Play("x", "y")
    a = first.up()
    done(first, a, first.gives(a), "one.test")
    play = Play(store=first.store)
    assert play.gives(play.up()).target == "one.test"


def test_limits_hold_for_the_host_that_is_assumed_together_with_the_items_of_that_host():
    play = Play(
        item("x"),
        item("y"),
        item("own", "one.test"),
        item("z"),
        settings={"targets": {"one.test": TargetSettings(max_in_flight=1)}},
    )
    a = play.up()
    x, y = play.gives(a), play.gives(a)  # nobody knows yet where they go
    done(play, a, x, "one.test")
    play >> a(ItemNext())
    waiting = a.call
    play.silence()  # y is in flight, there where the next two go
    done_y = a(ItemDone("y", y.claim, target="one.test"))
    play >> done_y << a.gets(DoneAnswer(ANY, False))
    granted = play.seen.pop(0)
    assert granted.call == waiting
    assert granted.result.key == "own"
    play >> a(ItemNext())
    waiting = a.call
    play.silence() >> a(ItemDone("own", granted.result.claim)) << a.gets(DoneAnswer(ANY, False))
    granted = play.seen.pop(0)
    assert (granted.call, granted.result.key, granted.result.target) == (waiting, "z", "one.test")
    play >> a(ItemDone("z", granted.result.claim, target="other.test")) << a.gets(DoneAnswer(ANY, False))
    assert not play.fleet.state.targets._known
