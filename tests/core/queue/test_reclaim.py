"""A ledger that others may share: claims after our own death, leases that are lost, news that nobody asked for."""

from msgspec import Raw
from tests.core.playbook import ANY, BLIP, Play, Some, writes

from scraper_supervisor.core.events import ItemsChanged, LeasesLost, Persisted, StoreTold, Tell
from scraper_supervisor.core.ops.item_ops import AddItems, Conclude, ConfirmClaims, LeaseLost, NewItem
from scraper_supervisor.core.ops.run_ops import CompleteRun, LoadRun, OpenRun
from scraper_worker.protocol import (
    NOT_CLAIMED,
    STORAGE_UNAVAILABLE,
    Claim,
    DoneAnswer,
    End,
    Held,
    ItemCancel,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemRelease,
    Nothing,
)

NULL = Raw(b"null")


def after_our_death(play, **group):
    """Another supervisor over the same ledger, whose worker has been introduced and whose connection is closed."""
    again = Play(store=play.store, **group)
    a = again.up()
    again.leaves(a)
    return again, a


def held(play, puppet, *claims):
    """The worker comes back with these claims; what it is told that it holds."""
    back = play.back(puppet, *claims)
    welcome = Some()
    play << back.gets(welcome)
    return back, welcome.value.in_flight


def test_a_claim_is_taken_up_again_after_the_supervisors_own_death():
    first = Play("x", "y")
    x = first.gives(first.up(), "x")
    play, a = after_our_death(first)
    back, mine = held(play, a, Claim("x", x.claim))
    assert mine == [Held("x", x.claim, 1)]
    assert play.gives(back).key == "y", "x is in hand"
    play >> back(ItemDone("x", x.claim)) << back.gets(DoneAnswer(1, False))
    assert play.row("x").state == "done"


def test_one_that_waits_for_a_retry_too():
    first = Play("x", "y")
    a = first.up()
    x = first.gives(a, "x")
    first >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(ANY)
    first.at(5.0)
    again = first.gives(a, "x")
    play, b = after_our_death(first)
    back, mine = held(play, b, Claim("x", again.claim))
    assert mine == [Held("x", again.claim, 2)]
    play >> back(ItemDone("x", again.claim)) << back.gets(DoneAnswer(1, False))


def test_what_was_recorded_or_never_given_is_not_taken_up():
    first = Play("x", "y", "z")
    a = first.up()
    x, y = first.gives(a, "x"), first.gives(a, "y")
    first >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    first >> a(ItemFailed("y", BLIP, y.claim)) << a.gets(ANY)
    play, b = after_our_death(first)
    named = [Claim("x", x.claim), Claim("y", y.claim), Claim("z", 10**9), Claim("unknown", x.claim)]
    back, mine = held(play, b, *named)
    assert mine == []
    play >> back(ItemDone("x", x.claim)) << back.gets(DoneAnswer(1, False)), "the recorded answer"
    play >> back(ItemDone("z", 10**9)) << back.refused(NOT_CLAIMED)


def test_the_later_of_two_claims_of_one_item_counts():
    first = Play("x", count=2)
    a, b = first.up("g-0"), first.up("g-1")
    early = first.gives(a, "x")
    first.leaves(a)
    first.back(a)
    first.ignoring(object)  # it came back without it
    late = first.gives(b, "x")
    assert late.claim > early.claim
    for order in (("g-0", "g-1"), ("g-1", "g-0")):
        play = Play(store=first.store, count=2)
        puppets = {name: play.up(name) for name in ("g-0", "g-1")}
        for puppet in puppets.values():
            play.leaves(puppet)
        claims = {"g-0": early.claim, "g-1": late.claim}
        found = {name: held(play, puppets[name], Claim("x", claims[name])) for name in order}
        assert found["g-1"][1] == [Held("x", late.claim, 1)]
        back = found["g-0"][0]
        play >> back(ItemDone("x", early.claim)) << back.refused(NOT_CLAIMED)


def test_in_an_incarnations_very_first_hello_in_flight_is_ignored():
    first = Play("x")
    x = first.gives(first.up(), "x")
    play = Play(store=first.store)
    a = play.spawned()
    play.hold()
    play >> a.hello(Claim("x", x.claim)) << ANY
    welcome = Some()
    play >> play.durable() << a.gets(welcome)
    assert welcome.value.in_flight == []


def test_a_ledger_that_cannot_confirm_answers_as_one_that_cannot_read():
    first = Play("x")
    x = first.gives(first.up(), "x")
    play, a = after_our_death(first)
    play.hold()
    back = play.back(a, Claim("x", x.claim))
    play.ignoring(object)
    play >> play.durable() << writes(ConfirmClaims)
    play >> play.lost() << back.refused(STORAGE_UNAVAILABLE)


def test_a_released_claim_is_taken_up_by_its_own_worker_alone():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a, "x")
    play.leaves(a)
    a = play.back(a)
    play.ignoring(object)
    play.leaves(b)
    _, mine = held(play, b, Claim("x", x.claim))
    assert mine == []
    play.leaves(a)
    _, mine = held(play, a, Claim("x", x.claim))
    assert mine == [Held("x", x.claim, 1)]


def test_a_released_claim_is_not_taken_up_once_another_has_had_the_item():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a, "x")
    play.leaves(a)
    a = play.back(a)
    play.ignoring(object)
    other = play.gives(b, "x")
    play >> b(ItemRelease("x", other.claim)) << b.gets(Nothing())
    play >> a(ItemRelease("x", x.claim)) << a.gets(Nothing()), "a repeated call gets its answer again"
    play.leaves(a)
    _, mine = held(play, a, Claim("x", x.claim))
    assert mine == [], "it was another's since"
    play.leaves(b)
    _, mine = held(play, b, Claim("x", other.claim))
    assert mine == [Held("x", other.claim, 1)]


def test_a_released_claim_is_not_taken_up_by_a_later_incarnation():
    play = Play("x")
    a = play.up()
    x = play.gives(a, "x")
    play >> a(ItemRelease("x", x.claim)) << a.gets(Nothing())
    play.dies(a)
    again = play.up()
    play.ignoring(object).leaves(again)
    _, mine = held(play, again, Claim("x", x.claim))
    assert mine == []


def test_an_end_that_comes_too_late_is_refused_and_the_run_read_again():
    play = Play("x", "y")
    a = play.up()
    x = play.gives(a, "x")
    play.hold()
    done = Some()
    play >> a(ItemDone("x", x.claim)) << done
    assert isinstance(done.value.op, Conclude)
    play.held.clear()
    play.store.newest("g").row("x").state = "done"  # by another supervisor
    play >> Persisted(done.value.op, LeaseLost()) << a.refused(NOT_CLAIMED)
    play << writes(LoadRun)
    play >> play.durable()
    assert play.fleet.state.groups["g"].queue.open_items == 1
    play.ignoring(object).flow()
    assert play.gives(a).key == "y"


def test_lost_leases_are_dropped_and_their_workers_told():
    play = Play("x", "y")
    a = play.up()
    x, y = play.gives(a), play.gives(a)
    play >> StoreTold(LeasesLost("g", (x.claim, 999))) << Tell(a.conn, ItemCancel("x", x.claim, "lease", ANY))
    play.silence() >> a(ItemDone("x", x.claim)) << a.refused(NOT_CLAIMED)
    play >> a(ItemDone("y", y.claim)) << a.gets(DoneAnswer(1, False))
    again = play.gives(a)
    assert again.key == "x", "nobody else has it: it is open still"
    assert again.claim > x.claim
    play >> StoreTold(LeasesLost("no-such-group", (1,)))
    play.silence()


def test_news_of_items_has_the_run_read_again():
    play = Play(on_complete="wait")
    a = play.up()
    play >> a(ItemNext())
    waiting = a.call
    run = play.store.newest("g")
    play.store.perform(AddItems(0, "g", run.run_id, (NewItem("theirs", None, NULL, 0),)), 0.0)
    granted = Some()
    play >> StoreTold(ItemsChanged("g")) << a.gets(granted, waiting)
    assert granted.value.key == "theirs"


def test_a_run_is_complete_only_if_the_ledger_says_so():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(ANY)
    run = play.store.newest("g")
    play.store.perform(AddItems(0, "g", run.run_id, (NewItem("theirs", None, NULL, 0),)), 0.0)
    play.hold()
    play >> a(ItemNext()) << writes(CompleteRun)
    waiting = a.call
    play >> play.durable()
    granted = Some()
    play.ignoring(object).flow() << a.gets(granted, waiting)
    assert granted.value.key == "theirs"
    assert play.store.newest("g").state == "running"
    play >> a(ItemDone("theirs", granted.value.claim)) << a.gets(ANY)
    play >> a(ItemNext()) << a.gets(End("complete"))
    assert play.store.perform(OpenRun(0, "g", "continue", 5), 0.0).state == "completed"
