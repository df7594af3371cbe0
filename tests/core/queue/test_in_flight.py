"""Claims: who holds an item, what the same call gets a second time, and what a broken connection changes."""

import pytest
from tests.core.playbook import ANY, BLIP, Play, Some, writes

from scraper_supervisor.core.events import Due, HangUp, Persist, Said, Spawn
from scraper_supervisor.core.ops.item_ops import AddItems, Conclude, FindConclusion
from scraper_worker.protocol import (
    NOT_CLAIMED,
    STORAGE_UNAVAILABLE,
    BadEntry,
    Claim,
    DoneAnswer,
    End,
    FailedAnswer,
    Failure,
    Goodbye,
    Granted,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemRelease,
    ItemsOffer,
    Nothing,
    Offer,
    Offered,
    Refused,
)

# ---- offers ----------------------------------------------------------------------------------------------------------


def test_an_offer_is_answered_when_durable_and_counts_what_is_new():
    play = Play("known")
    a = play.up()
    play.hold()
    offer = a(ItemsOffer(["known", "new", Offer("https://x.example/1", priority=3)]))
    play >> offer << writes(AddItems)
    play.silence()
    play >> play.durable() << a.gets(Offered(2, 1))
    play.silence()
    assert play.row("https://x.example/1").target == "x.example"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("", "1 to 4096 bytes"),
        ("a\nb", "control characters"),
        ("x" * 4097, "this one has 4097"),
        (Offer("\x00"), "control characters"),
        (BadEntry("what the SDK said", "<object>"), "what the SDK said"),
    ],
)
def test_one_bad_entry_is_left_out_and_told(entry, reason):
    play = Play()
    a = play.up()
    answer = Some()
    play >> a(ItemsOffer(["good", entry, "more"])) << a.gets(answer)
    assert (answer.value.added, answer.value.known, [one.index for one in answer.value.refused]) == (2, 0, [1])
    assert reason in answer.value.refused[0].reason
    (told,) = [one for one in play.log if one.event == "failure_pattern_detected"]
    assert told.data.failure.signature == "offer-refused"
    assert [play.gives(a).key for _ in range(2)] == ["good", "more"]


def test_a_bad_offer_of_an_item_does_not_fail_it():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    refused = [Refused(1, "a key must not contain control characters")]
    play >> a(ItemDone("x", x.claim, offers=["good", "bad\n", "x"])) << a.gets(DoneAnswer(1, False, refused))
    play.gives(a, "good")


def test_only_the_first_ten_that_are_left_out_are_named():
    play = Play()
    a = play.up()
    answer = Some()
    play >> a(ItemsOffer([""] * 30)) << a.gets(answer)
    assert (answer.value.added, len(answer.value.refused)) == (0, 10)


def test_a_key_may_have_4096_bytes():
    play = Play()
    a = play.up()
    play >> a(ItemsOffer(["é" * 2048])) << a.gets(Offered(1, 0))


# ---- handing out -----------------------------------------------------------------------------------------------------


def test_priority_comes_first_then_the_order_of_offer():
    play = Play()
    a = play.up()
    play >> a(ItemsOffer(["one", "two", Offer("urgent", priority=5)])) << a.gets(ANY)
    assert [play.gives(a).key for _ in range(3)] == ["urgent", "one", "two"]


def test_item_next_waits_and_an_offer_answers_it():
    play = Play(count=2)
    a, _ = play.up("g-0"), play.up("g-1")
    play >> a(ItemNext())
    waiting = a.call
    play.silence()
    play >> a(ItemsOffer(["x"])) << a.gets(Offered(1, 0)) << a.gets(Granted("x", 1, None, ANY, 1), waiting)


def test_several_calls_may_be_open_and_each_gets_an_item():
    play = Play(count=2)
    a, _ = play.up("g-0"), play.up("g-1")
    play >> a(ItemNext())
    play >> a(ItemNext())
    first, second = Some(), Some()
    play >> a(ItemsOffer(["x", "y"])) << a.gets(ANY) << a.gets(first, a.call - 2) << a.gets(second, a.call - 1)
    assert [first.value.key, second.value.key] == ["x", "y"]


@pytest.mark.parametrize("wait", [0.0, 2.5])
def test_a_wait_ends_with_empty_to_the_millisecond(wait):
    play = Play()
    a = play.up()
    play >> a(ItemsOffer(["x"])) << a.gets(ANY)
    play.gives(a)
    b = a(ItemNext(wait))
    if wait:
        play >> b
        play.silence().deadline(-0.001) >> Due()
        play.silence().at(wait) >> Due() << a.gets(End("empty"))
    else:
        play >> b << a.gets(End("empty"))


def test_an_item_next_that_is_a_notification_takes_nothing():
    play = Play("x")
    a = play.up()
    play >> a.notes(ItemNext())
    assert play.gives(a, "x").claim == 1


# ---- ends of claims --------------------------------------------------------------------------------------------------


def test_done_is_answered_when_durable_and_not_before():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play.silence()
    assert play.row("x").state == "open"
    play >> play.durable() << a.gets(DoneAnswer(1, False))
    assert play.row("x").state == "done"


def test_the_same_done_before_and_after_it_is_durable_gets_the_same_answer():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> a(ItemDone("x", x.claim))
    play.silence()
    play >> play.durable() << a.gets(DoneAnswer(1, False), a.call - 1) << a.gets(DoneAnswer(1, False))
    play.flow() >> a(ItemDone("x", x.claim)) << a.gets(DoneAnswer(1, False))
    assert play.fleet.state.workers["g-0"].done == 1


def test_the_same_failed_again_gets_the_recorded_answer_and_charges_once():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(answer := Some())
    assert answer.value == FailedAnswer("retry", 1, 1.0, ANY)
    play >> a(ItemFailed("x", BLIP, x.claim))
    again = play.seen.pop()
    assert b'"action":"retry"' in bytes(again.result), "as it was written down"
    assert play.row("x").attempts == 1


def test_without_a_claim_the_callers_open_claim_of_that_key_is_meant():
    play = Play("x")
    a = play.up()
    play.gives(a)
    play >> a(ItemDone("x")) << a.gets(DoneAnswer(1, False))
    play >> a(ItemDone("x")) << a.gets(DoneAnswer(1, True)), "done before: a duplicate, whoever did it"


def test_a_key_done_by_whomever_is_a_duplicate_for_all_others():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim)) << a.gets(DoneAnswer(1, False))
    play >> b(ItemDone("x", 99)) << b.gets(DoneAnswer(1, True))


@pytest.mark.parametrize("message", [ItemDone("x", 1), ItemFailed("x", BLIP, 1), ItemRelease("x", 1)])
def test_anothers_claim_is_refused_and_stands(message):
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    assert play.gives(a).claim == 1
    play >> b(message) << b.refused(NOT_CLAIMED)
    play >> a(ItemDone("x", 1)) << a.gets(DoneAnswer(1, False))


@pytest.mark.parametrize("message", [ItemDone("y", 1), ItemDone("nowhere"), ItemFailed("x", BLIP), ItemRelease("y")])
def test_what_nobody_claimed_is_refused(message):
    play = Play("x", "y")
    a = play.up()
    play >> a(message) << a.refused(NOT_CLAIMED)


def test_released_costs_nothing_may_be_repeated_and_comes_again_under_a_new_claim():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemRelease("x", x.claim)) << a.gets(Nothing())
    play >> a(ItemRelease("x", x.claim)) << a.gets(Nothing())
    play >> a(ItemNext()) << a.gets(Granted("x", x.claim + 1, None, ANY, 1))


def test_a_released_claim_cannot_be_concluded():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemRelease("x", x.claim)) << a.gets(Nothing())
    play >> a(ItemDone("x", x.claim)) << a.refused(NOT_CLAIMED)


def test_offers_that_come_with_a_done_are_handed_out_after_it():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemDone("x", x.claim, offers=["child"])) << a.gets(DoneAnswer(1, False))
    assert play.gives(a).key == "child"


def test_a_failure_beyond_the_last_attempt_is_final():
    play = Play("x")
    a = play.up()
    for attempt, delay in ((1, 1.0), (2, 2.0)):
        x = play.gives(a)
        assert x.attempt == attempt
        play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(FailedAnswer("retry", attempt, delay, ANY))
        play.at(play.now + delay)
    x = play.gives(a)
    play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(FailedAnswer("final", 3, None, ANY))
    assert play.row("x").state == "failed"
    assert play.published("retry_exhausted") == ["retry_exhausted"]


def test_a_retry_is_handed_out_when_it_is_due_and_not_a_millisecond_before():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play >> a(ItemFailed("x", BLIP, x.claim)) << a.gets(FailedAnswer("retry", 1, 1.0, ANY))
    play >> a(ItemNext())
    play.silence().at(0.999) >> Due()
    play.silence().deadline() >> Due() << a.gets(Granted("x", x.claim + 1, None, ANY, 2))
    assert play.now == 1.0


def test_a_failure_that_is_permanent_is_final_at_once():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    gone = Failure("permanent", "application", "gone", "404")
    play >> a(ItemFailed("x", gone, x.claim)) << a.gets(FailedAnswer("final", 1, None, ANY))


# ---- reconnecting ----------------------------------------------------------------------------------------------------


def test_a_closed_connection_ends_no_claim():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a)
    play.leaves(a).silence()
    play >> b(ItemNext())
    play.silence()
    again = play.back(a, Claim("x", x.claim))
    welcome = play.seen.pop(0).result
    assert [(held.key, held.claim, held.attempt) for held in welcome.in_flight] == [("x", x.claim, 1)]
    play >> again(ItemDone("x", x.claim))
    assert play.seen.pop(0) == again.gets(DoneAnswer(1, False))


def test_what_a_returning_worker_does_not_name_goes_back_at_no_cost():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    play.gives(a)
    play >> b(ItemNext())
    play.leaves(a)
    again = play.back(a)
    play << again.gets(ANY) << b.gets(Granted("x", 2, None, ANY, 1))


def test_a_second_hello_replaces_the_first_connection_and_closes_it():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    again = play.back(a, Claim("x", x.claim))
    play << HangUp(a.conn) << again.gets(ANY)
    play.leaves(a).silence()
    assert play.state() == "running"
    play >> again(ItemDone("x", x.claim)) << again.gets(DoneAnswer(1, False))


def test_a_claim_given_back_by_mistake_is_taken_up_again_where_nobody_owns_it():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    forgetful = play.back(a)
    play.ignoring(HangUp) << forgetful.gets(ANY)
    play.back(a, Claim("x", x.claim))
    play.ignoring(HangUp)
    assert [held.claim for held in play.seen.pop(0).result.in_flight] == [x.claim]


def test_a_failure_whose_answer_was_lost_is_not_charged_again():
    """The item is pending again with no owner, but its claim is over: what was recorded is the answer."""
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    play >> a(ItemFailed("x", BLIP, x.claim)) << writes(Conclude)
    play.leaves(a)
    play >> play.durable() << a.gets(ANY)
    play.at(5.0).flow()
    again = play.back(a, Claim("x", x.claim))
    assert play.seen.pop(0).result.in_flight == []
    play >> again(ItemFailed("x", BLIP, x.claim))
    assert b'"attempt":1' in bytes(play.seen.pop(0).result)
    assert play.row("x").attempts == 1


def test_a_done_on_its_way_to_the_disk_survives_the_connection():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play.leaves(a)
    again = a.__class__(a.name, a.incarnation, a.pid, a.token, play.number())
    play >> again.hello(Claim("x", x.claim)) << ANY
    conclude, load = play.held
    play.held = [load]
    play >> play.durable() << again.gets(ANY)
    play >> again(ItemDone("x", x.claim))
    play.silence()
    play.held = [conclude]
    play >> play.durable() << a.gets(DoneAnswer(1, False)) << again.gets(DoneAnswer(1, False))


# ---- storage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["offer", "done", "failed"])
def test_a_disk_that_refuses_is_told_and_the_repeated_call_succeeds(kind):
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    message = {"offer": ItemsOffer(["y"]), "done": ItemDone("x", x.claim), "failed": ItemFailed("x", BLIP, x.claim)}[
        kind
    ]
    play.hold()
    play >> a(message) << ANY
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE, {"errno": 28, "retry_after": 1.0})
    assert play.row("x").state == "open"
    play.at(1.0) >> Due() << ANY
    play >> play.durable()
    play >> a(message) << ANY
    play >> play.durable() << a.gets(ANY)
    assert play.published("storage_degraded", "storage_recovered") == ["storage_degraded", "storage_recovered"]
    assert len({one.correlation_id for one in play.log if one.event.startswith("storage")}) == 1


def test_while_the_disk_refuses_item_next_waits_and_release_succeeds():
    play = Play("x", "y")
    a = play.up()
    x = play.gives(a)
    play.hold()
    play >> a(ItemsOffer(["z"])) << writes(AddItems)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE)
    play >> a(ItemNext())
    waiting = a.call
    play.silence()
    play >> a(ItemRelease("x", x.claim)) << a.gets(Nothing())
    play.at(1.0) >> Due() << ANY
    play >> play.durable() << a.gets(Granted("x", ANY, None, ANY, 1), waiting)


def test_an_item_of_a_worker_that_died_before_its_done_could_be_written_goes_back():
    """Nobody is left to repeat the call: without this the item would be in nobody's hands for ever."""
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    x = play.gives(a)
    play.hold()
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play.dies(a).ignoring(Spawn, HangUp)
    play >> b(ItemNext())
    play.silence()
    play >> play.lost() << ANY
    play.at(1.0) >> Due() << ANY
    play >> play.durable() << b.gets(Granted("x", x.claim + 1, None, ANY, 1))


# ---- the last word ---------------------------------------------------------------------------------------------------


def test_goodbye_is_answered_last():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.hold()
    play >> a(ItemDone("x", x.claim)) << writes(Conclude)
    play >> a(Goodbye("drained"))
    play.silence()
    done = play.durable()
    play >> done << a.gets(DoneAnswer(1, False), a.call - 1)
    play.ignoring(Persist) << a.gets(Nothing())


def test_goodbye_gives_back_what_is_still_claimed():
    play = Play("x", count=2)
    a, b = play.up("g-0"), play.up("g-1")
    play.gives(a)
    play >> b(ItemNext())
    play >> a(Goodbye("drained")) << ANY << ANY
    assert play.fleet.state.groups["g"].queue.claims() == [("x", "g-1", 2)]


def test_a_stale_connection_says_nothing_to_anyone():
    play = Play("x")
    play.up()
    play >> Said(999, None, ItemDone("x", 1))
    play.silence()
    assert play.row("x").state == "open"


def test_unknown_calls_are_looked_up_once_each():
    play = Play("x")
    a = play.up()
    play.hold()
    play >> a(ItemDone("x", 7)) << writes(FindConclusion)
    play >> play.durable() << a.refused(NOT_CLAIMED)
