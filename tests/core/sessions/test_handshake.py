"""Hello: who is let in, who is refused and how, and what is said before the answer."""

import pytest
from msgspec import Raw
from tests.core.playbook import ANY, Play, writes

from scraper_supervisor.core.events import (
    Answered,
    Asked,
    HangUp,
    Introduced,
    Persisted,
    Reply,
    Signal,
    Spawned,
    SpawnFailed,
    Tell,
)
from scraper_supervisor.core.ops.item_ops import AddItems
from scraper_supervisor.core.ops.state_ops import LoadState, SaveState, StateLoaded
from scraper_worker.protocol import (
    BAD_PARAMS,
    INVALID_REQUEST,
    NO_CHECKPOINT,
    NOT_INTRODUCED,
    REFUSED,
    STORAGE_UNAVAILABLE,
    CheckpointLoad,
    CheckpointSave,
    Claim,
    Drain,
    End,
    Goodbye,
    Heartbeat,
    Hello,
    ItemDone,
    ItemNext,
    ItemsOffer,
    Offered,
    Saved,
    Welcome,
)


def test_a_good_hello_is_answered_with_everything_the_worker_needs():
    play = Play("x", "y", count=2)
    a = play.spawned("g-1")
    play.ignoring(object)
    play >> a.hello()
    welcome = play.seen.pop(0).result
    assert isinstance(welcome, Welcome)
    assert (welcome.worker, welcome.group, welcome.index, welcome.count) == ("g-1", "g", 1, 2)
    assert (welcome.incarnation, welcome.run, welcome.heartbeat_interval) == (1, 1, 3.0)
    assert (welcome.checkpoint, welcome.items.pending, welcome.in_flight) == (None, 2, [])
    assert play.state("g-1") == "running"
    assert "worker_ready" in play.published()


def test_before_hello_a_request_is_refused_and_the_connection_stays_open():
    play = Play()
    a = play.spawned()
    play >> a(ItemNext()) << a.refused(NOT_INTRODUCED)
    play >> a.notes(Heartbeat())
    play.silence() >> a.hello() << a.gets(ANY)


def test_after_goodbye_too():
    play = Play()
    a = play.up()
    play >> a(Goodbye("complete")) << a.gets(ANY)
    play >> a(ItemsOffer(["x"])) << a.refused(NOT_INTRODUCED)


def test_another_protocol_is_told_which_there_are():
    play = Play()
    a = play.spawned()
    play >> a(Hello(2, "g-0", a.token)) << a.refused(BAD_PARAMS, {"path": "protocol", "supported": [1]})
    play >> a.hello() << a.gets(ANY)


@pytest.mark.parametrize("wrong", ["name", "token", "peer"])
def test_wrong_credentials_are_refused_and_the_connection_closed(wrong):
    play = Play()
    a = play.spawned()
    hello = a(Hello(1, "g-7" if wrong == "name" else "g-0", "guess" if wrong == "token" else a.token))
    if wrong == "peer":
        hello = hello.__class__(hello.conn, hello.call, hello.message, (4711, 1))
    play >> hello << a.refused(REFUSED, None, close=True)
    assert play.state() == "starting"


def test_a_descendant_of_the_worker_may_speak_for_it():
    play = Play()
    a = play.spawned()
    hello = a.hello()
    play >> hello.__class__(hello.conn, hello.call, hello.message, (5000, 4000, a.pid, 1)) << a.gets(ANY)


def test_an_earlier_incarnation_is_refused():
    play = Play()
    a = play.up()
    play.dies(a).ignoring(HangUp)
    play.up()
    a.conn = play.number()
    play >> a.hello() << a.refused(REFUSED, None, close=True)


def test_a_hello_that_comes_before_its_process_is_known_waits_for_it():
    play = Play()
    a = play.puppet(play.seen.pop(0))
    play >> a.hello()
    play.silence()
    play >> Spawned("g-0", 1, a.pid, a.token) << a.gets(ANY)


def test_a_hello_whose_process_could_not_be_started_is_refused():
    play = Play()
    a = play.puppet(play.seen.pop(0))
    play >> a.hello()
    play >> SpawnFailed("g-0", 1, "no such file")
    spawn = play.seen.pop(0)
    assert spawn.incarnation == 2
    play << a.refused(REFUSED, None, close=True)


def test_who_hangs_up_before_the_answer_is_not_introduced():
    """Else the worker would be bound to a dead connection, whose end nobody would ever hear of."""
    play = Play()
    a = play.spawned()
    play.hold()
    play >> a.hello() << writes(LoadState)
    play.leaves(a)
    play >> play.durable()
    play.silence()
    assert play.state() == "starting"
    assert not play.fleet.state.conns


def test_a_word_before_the_answer_is_refused_since_the_socket_holds_back_what_may_come_early():
    play = Play()
    a = play.spawned()
    play.hold()
    play >> a.hello() << writes(LoadState)
    play >> a(ItemsOffer(["x"])) << a.refused(NOT_INTRODUCED)
    play.flow() << a.gets(ANY, a.call - 1)
    play >> a(ItemsOffer(["x"])) << a.gets(Offered(1, 0))


def test_of_two_hellos_the_later_one_counts_though_the_earlier_takes_longer_to_look_into():
    play = Play("x")
    a = play.up()
    play.leaves(a).hold()
    earlier = play.back(a, Claim("y", 0))
    play << writes(LoadState)  # and ConfirmClaims after it, since a supervisor before this one gave the claim
    later = play.back(a)
    play << HangUp(earlier.conn) << writes(LoadState)
    play >> play.durable()
    play.silence() >> play.durable() << later.gets(ANY)
    assert play.fleet.state.workers["g-0"].current.conn == later.conn


@pytest.mark.parametrize("when", ["waiting", "introduced"])
def test_a_second_hello_on_one_connection_is_no_request(when):
    play = Play()
    a = play.spawned()
    play.hold()
    play >> a.hello() << writes(LoadState)
    if when == "introduced":
        play >> play.durable() << a.gets(ANY)
    play >> a.hello() << a.refused(INVALID_REQUEST)


def test_damaged_checkpoints_fail_the_worker_until_somebody_restores_one():
    play = Play()
    play.store.damaged.add("g-0")
    a = play.spawned()
    play >> a.hello() << a.refused(NO_CHECKPOINT)
    assert play.seen.pop(0).signum == 15
    play.dies(a, None, 15)
    assert play.state() == "failed"
    assert "restore g-0" in play.fleet.state.workers["g-0"].last_failure.message


def test_a_disk_that_cannot_be_read_is_told_at_hello():
    play = Play()
    a = play.spawned()
    play.hold()
    play >> a.hello() << writes(LoadState)
    play >> play.lost() << a.refused(STORAGE_UNAVAILABLE, {"errno": 28, "retry_after": 1.0})


def test_a_worker_that_comes_back_while_draining_is_told_again():
    play = Play("x")
    a = play.up()
    x = play.gives(a)
    play.fleet.lifecycle.drain(play.fleet.state.workers["g-0"], "enough", "stop", play.now)
    play.fleet.outbox.commands.clear()
    play.at(10.0).leaves(a)
    again = play.back(a, x)
    play << again.gets(ANY) << Tell(again.conn, Drain("enough", 20.0))


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_state_is_acknowledged_when_durable_and_comes_back_with_the_next_hello():
    play = Play("x")
    a = play.up()
    play.hold()
    play >> a(CheckpointSave("cursor/1", Raw(b'{"page":3}'))) << writes(SaveState)
    play.silence()
    play >> play.durable() << a.gets(Saved(1, ANY))
    play.flow().dies(a).ignoring(HangUp)
    b = play.spawned()
    play >> b.hello()
    checkpoint = play.seen.pop(0).result.checkpoint
    assert (checkpoint.generation, checkpoint.schema, bytes(checkpoint.state)) == (1, "cursor/1", b'{"page":3}')


@pytest.mark.parametrize(
    ("schema", "state", "path"),
    [("cursor", b"{}", "schema"), ("cursor/x", b"{}", "schema"), ("/1", b"{}", "schema"), ("cursor/1", b"[]", "state")],
)
def test_a_state_that_is_none_is_refused(schema, state, path):
    play = Play()
    a = play.up()
    play >> a(CheckpointSave(schema, Raw(state))) << a.refused(BAD_PARAMS, {"path": path})


def finish(play, a, key):
    """The worker does its only item, and ends well."""
    x = play.gives(a, key)
    play >> a(ItemDone(key, x.claim)) << a.gets(ANY)
    play >> a(ItemNext()) << a.gets(End("complete"))
    play >> a(Goodbye("complete")) << a.gets(ANY)
    play.dies(a, 0).ignoring(HangUp).silence()
    assert play.state() == "completed"


def test_a_fresh_run_begins_without_the_old_state():
    """Nor is the state that memory still has written into the new run when items ended in it."""
    play = Play("x")
    a = play.up()
    play >> a(CheckpointSave("cursor/1", Raw(b"{}"))) << a.gets(ANY)
    finish(play, a, "x")
    assert len(play.store.states["g-0"]) == 2, "saved again at the end, with the progress since"
    play >> Asked(1, "start", ("g",), fresh=True, wait=False)
    b = play.spawned()
    play.ignoring(Answered) >> b.hello()
    assert play.seen.pop(0).result.checkpoint is None
    play.ignoring(Answered) >> b(ItemsOffer(["y"])) << b.gets(ANY)
    finish(play, b, "y")
    assert len(play.store.states["g-0"]) == 2


def test_a_checkpoint_of_a_later_version_is_not_passed_over():
    play = Play("x")
    a = play.spawned()
    play.hold()
    play >> a.hello() << writes(LoadState)
    answer = StateLoaded("newer", 4, reason="it was written by a later version")
    play >> Persisted(play.held.pop(), answer) << a.refused(NO_CHECKPOINT)
    play << Signal("g-0", 1, 15)
    play.flow().dies(a).ignoring(HangUp)
    assert play.state() == "failed"
    why = "checkpoint 4 of g-0 cannot be used: it was written by a later version"
    assert play.fleet.state.workers["g-0"].last_failure.message == why


def test_a_disk_that_cannot_be_read_costs_the_worker_nothing_but_time():
    """It is given no older state, asks again after a while, and start_timeout begins anew; the others go on."""
    play = Play("x", count=2, start_timeout=30.0)
    play.store.states["g-0"] = [(1, 1, "cursor/1", Raw(b'{"page":1}'))]
    a, b = play.spawned("g-0"), play.up("g-1")
    for now in (20.0, 40.0, 60.0):
        play.until(now).hold()
        play >> a.hello() << writes(LoadState)
        play >> play.lost() << a.refused(STORAGE_UNAVAILABLE, {"errno": 28, "retry_after": 1.0})
        play.flow().silence()
    play.gives(b, "x")
    assert play.fleet.state.workers["g-0"].last_failure.signature == "checkpoint-unreadable"
    play.until(89.0).silence()
    play >> a.hello()
    assert play.seen.pop(0).result.checkpoint.generation == 1
    assert play.state() == "running"
    assert play.published("storage_degraded", "storage_recovered") == ["storage_degraded", "storage_recovered"] * 3


def test_a_checkpoint_that_cannot_be_loaded_is_refused_with_the_ones_there_are():
    play = Play("x")
    a = play.up()
    play.hold()
    for answer in (StateLoaded("unknown", there=(3, 2)), StateLoaded("newer", 9, reason="later"), StateLoaded("none")):
        play >> a(CheckpointLoad(9 if answer.found != "none" else None)) << writes(LoadState)
        play >> Persisted(play.held.pop(), answer)
        expected = a.gets(None) if answer.found == "none" else a.refused(NO_CHECKPOINT)
        play << expected


def test_introduced_goes_before_the_answer():
    """The answer may be longer than a line may be before hello, and so may the worker's next one."""
    play = Play()
    a = play.spawned()
    play.hold()
    play >> a.hello() << writes(LoadState)
    commands = [type(command) for command in play.fleet.handle(play.durable(), 0.0)]
    assert commands.index(Introduced) < commands.index(Reply)


def offered_of(play, puppet):
    """What a hello on a new connection is told of the source."""
    again = play.back(puppet)
    welcome = play.ignoring(HangUp).seen.pop(0).result
    assert isinstance(welcome, Welcome)
    assert welcome.evidence is None, "this version keeps none"
    return again, welcome.offered


def test_it_is_told_whether_a_source_was_offered_to_its_end():
    play = Play(on_complete="wait")
    a = play.up()
    a, offered = offered_of(play, a)
    assert not offered
    play >> a(ItemsOffer(["x"], more=True)) << a.gets(Offered(1, 0))
    a, offered = offered_of(play, a)
    assert not offered
    play.hold() >> a(ItemsOffer([])) << writes(AddItems)
    play >> play.durable() << a.gets(Offered(0, 0))  # not before it is known for good
    play.flow()
    a, offered = offered_of(play, a)
    assert offered
    play >> a(ItemsOffer(["y"], more=True)) << a.gets(Offered(1, 0))
    a, offered = offered_of(play, a)
    assert offered, "once is enough"
    again = Play(store=play.store, on_complete="wait")
    assert offered_of(again, again.up())[1], "it is kept with the run"


def test_an_offer_of_nothing_more_is_written_once():
    play = Play(on_complete="wait")
    a = play.up()
    play >> a(ItemsOffer([])) << a.gets(Offered(0, 0))
    play.hold() >> a(ItemsOffer([])) << a.gets(Offered(0, 0))
    play.silence()
