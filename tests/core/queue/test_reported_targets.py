"""Whose host an item talks to: its own, else what its last attempt reported, else what all attempts of the run did."""

from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw
from tests.core.playbook import ANY, BLIP, Play

from scraper_supervisor.core.config.settings import TargetSettings
from scraper_supervisor.core.events import ItemsChanged, Reply, StoreTold
from scraper_supervisor.core.ops.item_ops import NewItem
from scraper_worker.protocol import DoneAnswer, Granted, ItemDone, ItemFailed, ItemNext, ItemsOffer, Offer, Offered


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


ITEMS = st.lists(st.sampled_from([None, "one.test", "two.test"]), min_size=1, max_size=8)
STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([None, "one.test", "two.test"]), st.booleans()), max_size=30
)


@given(ITEMS, STEPS)
@example([None, None, "one.test"], [(0, "one.test", True), (1, "one.test", True), (0, "two.test", False)])
def test_whatever_attempts_report_limits_hold_and_nothing_starves(own, steps):
    play = Play(
        *(item(f"k{number}", target) for number, target in enumerate(own)),
        settings={"targets": {"*": TargetSettings(max_in_flight=1)}},
    )
    a = play.up()
    queue = play.fleet.state.groups["g"].queue
    hands: dict[int, str] = {}  # claim → key

    def take(granted):
        if isinstance(granted.result, Granted):
            hands[granted.result.claim] = granted.result.key
            named = [one.target for one in queue.in_hand("g-0", play.now) if one.claim == granted.result.claim]
            assert named == [granted.result.target]

    def end(index, target, well):
        claim, key = sorted(hands.items())[index % len(hands)]
        del hands[claim]
        word = ItemDone(key, claim, target=target) if well else ItemFailed(key, BLIP, claim, target=target)
        play >> a(word)

    def asked():
        while play.seen:
            command = play.seen.pop(0)
            if isinstance(command, Reply):
                take(command)

    for index, target, well in steps:
        play >> a(ItemNext(wait=0.0))
        asked()
        if hands:
            end(index, target, well)
            asked()
        play.until(play.now + 5.0)
        asked()
        for known in play.fleet.state.targets._known.values():
            there = [one for one in queue.in_hand("g-0", play.now) if one.target == known.name]
            assert known.in_flight == len(there)
    for _ in range(10 * len(own) + 10):  # every attempt of each, and what is in hand
        while hands:
            end(0, None, True)
            asked()
        play.until(play.now + 100.0) >> a(ItemNext(wait=0.0))
        asked()
        if queue.image is not None and not queue.unfinished:
            break
    assert not queue.unfinished
    assert not play.fleet.state.targets._known
