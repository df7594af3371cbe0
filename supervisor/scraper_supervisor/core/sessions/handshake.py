"""Hello: who may speak for a worker, and what it is told when it does.

The answer waits for the worker's checkpoint to be read. A hello may come before Spawned does, and is kept until then.
What a client says before the answer never comes here: the socket holds it back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.checkpoints import state_of, why_unusable
from scraper_supervisor.core.events import HangUp, Introduced
from scraper_supervisor.core.fleet_state import Handshake, Worker
from scraper_supervisor.core.ops.item_ops import Confirmed
from scraper_supervisor.core.ops.state_ops import LoadState
from scraper_supervisor.core.queue.item_calls import storage_error
from scraper_supervisor.core.states.worker_life import Phase
from scraper_worker.protocol import (
    BAD_PARAMS,
    INVALID_REQUEST,
    NO_CHECKPOINT,
    PROTOCOL,
    REFUSED,
    Failure,
    Hello,
    RestartDelays,
    Welcome,
)

if TYPE_CHECKING:
    from scraper_supervisor.core.checkpoints import Checkpoints
    from scraper_supervisor.core.events import PersistFailed, Said
    from scraper_supervisor.core.fleet_state import FleetState
    from scraper_supervisor.core.ops.state_ops import StateLoaded
    from scraper_supervisor.core.workers.lifecycle import Lifecycle
    from scraper_supervisor.core.workers.recycling import Recycling
    from scraper_supervisor.core.workers.watchdog import Watchdog

EARLY_HELLOS: Final = 4  # of one worker, kept until its process is known


class Handshakes:
    """Answers hello."""

    def __init__(
        self,
        state: FleetState,
        lifecycle: Lifecycle,
        watchdog: Watchdog,
        recycling: Recycling,
        checkpoints: Checkpoints,
    ) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._watchdog = watchdog
        self._recycling = recycling
        self._checkpoints = checkpoints
        self._handshakes: dict[int, Handshake] = {}  # by connection, whose checkpoint is being read
        self._early: dict[str, list[Handshake]] = {}  # hellos that came before Spawned did

    def hello(self, event: Said, hello: Hello) -> None:
        """Take a hello."""
        if event.conn in self._state.conns or self._waits(event.conn):
            self._state.outbox.refuse(event.conn, event.call, INVALID_REQUEST, "this connection said hello before")
            return
        if hello.protocol != PROTOCOL:
            data = {"path": "protocol", "supported": [PROTOCOL]}
            self._state.outbox.refuse(
                event.conn, event.call, BAD_PARAMS, f"protocol {hello.protocol} is not supported", data
            )
            return
        worker = self._state.workers.get(hello.worker)
        if worker is not None and worker.life.phase is Phase.SPAWNING:
            early = self._early.setdefault(worker.name, [])
            if len(early) < EARLY_HELLOS:
                early.append(Handshake(event, worker.name, worker.life.incarnation))
                return
        self._check(Handshake(event, hello.worker, 0 if worker is None else worker.life.incarnation))

    def process_known(self, worker: str) -> None:
        """The worker's process is known, or could not be started: hellos that came earlier are taken."""
        for handshake in self._early.pop(worker, []):
            self._check(handshake)

    def disconnected(self, conn: int) -> None:
        """Nobody waits for the answer there any more."""
        self._handshakes.pop(conn, None)
        for name, early in list(self._early.items()):
            self._early[name] = [handshake for handshake in early if handshake.said.conn != conn]

    # ---- the checkpoint was read

    def _read(self, handshake: Handshake, answer: StateLoaded, now: float) -> None:
        if not self._is_open(handshake):
            return
        worker, hello = self._state.workers.get(handshake.worker), handshake.said.message
        if worker is None or not isinstance(hello, Hello) or not worker.life.introduced:
            self._confirmed(handshake, answer, Confirmed(()), now)  # what a very first hello names is no claim
            return
        queue = self._state.groups[worker.group].queue
        older = queue.of_predecessors(hello.in_flight)
        if older:
            queue.confirm(older, partial(self._confirmed, handshake, answer), partial(self._unreadable, handshake))
        else:
            self._confirmed(handshake, answer, Confirmed(()), now)

    def _confirmed(self, handshake: Handshake, answer: StateLoaded, confirmed: Confirmed, now: float) -> None:
        if self._close(handshake):
            self._welcome(handshake, answer, confirmed, now)

    def _unreadable(self, handshake: Handshake, fault: PersistFailed, now: float) -> None:
        """The checkpoint could not be read.

        Nothing older is given instead, and the worker, which is not to blame, has start_timeout anew to ask again.
        """
        if not self._close(handshake):
            return
        error = storage_error(fault)
        self._state.outbox.refuse(handshake.said.conn, handshake.said.call, error.code, error.message, error.data)
        worker = self._state.workers.get(handshake.worker)
        if worker is not None:
            worker.last_failure = Failure("transient", "system", "checkpoint-unreadable", fault.message)
            worker.life.hello_was_refused(self._state.groups[worker.group].settings, now)

    def _is_open(self, handshake: Handshake) -> bool:
        return self._handshakes.get(handshake.said.conn) is handshake

    def _close(self, handshake: Handshake) -> bool:
        """Close a handshake that has come to its end; False if its answer is not waited for any more."""
        if not self._is_open(handshake):
            return False
        del self._handshakes[handshake.said.conn]
        return True

    # ---- inside

    def _waits(self, conn: int) -> bool:
        """True if this connection's hello is not answered yet."""
        early = (handshake for handshakes in self._early.values() for handshake in handshakes)
        return conn in self._handshakes or any(one.said.conn == conn for one in early)

    def _check(self, handshake: Handshake) -> None:
        worker = self._state.workers.get(handshake.worker)
        refusal = self._why_not(worker, handshake)
        if refusal is not None or worker is None:
            self._refuse(handshake, refusal or "")
            return
        self._replace(handshake)
        self._handshakes[handshake.said.conn] = handshake
        op = LoadState(self._state.outbox.ticket(), worker.name, self._checkpoints.fresh_from(worker))
        self._checkpoints.read(op, partial(self._read, handshake), partial(self._unreadable, handshake))

    def _replace(self, handshake: Handshake) -> None:
        """A later hello takes the place of those not answered yet, of which one may take longer to look into."""
        for conn, earlier in list(self._handshakes.items()):
            if (earlier.worker, earlier.incarnation) == (handshake.worker, handshake.incarnation):
                del self._handshakes[conn]
                self._state.outbox.commands.append(HangUp(conn))

    def _why_not(self, worker: Worker | None, handshake: Handshake) -> str | None:
        name, hello = handshake.worker, handshake.said.message
        if worker is None or worker.group not in self._state.groups or not isinstance(hello, Hello):
            return f"no worker is named {name!r}"
        if not worker.life.alive or worker.life.killed or worker.life.token is None:
            return f"{name} is not expected now"
        if hello.token != worker.life.token or handshake.incarnation != worker.life.incarnation:
            return f"the token is not that of {name}'s present incarnation"
        if worker.life.pid not in handshake.said.ancestry:
            return f"the peer is neither {name}'s process nor a descendant of it"
        if worker.current.goodbye is not None:
            return f"{name} said goodbye"
        return None

    def _refuse(self, handshake: Handshake, why: str) -> None:
        self._state.outbox.refuse(
            handshake.said.conn, handshake.said.call, REFUSED, f"hello refused: {why}", close=True
        )

    def _welcome(self, handshake: Handshake, answer: StateLoaded, confirmed: Confirmed, now: float) -> None:
        said, hello = handshake.said, handshake.said.message
        worker = self._state.workers.get(handshake.worker)
        refusal = self._why_not(worker, handshake)
        if worker is None or refusal is not None or not isinstance(hello, Hello):
            self._refuse(handshake, refusal or "")
            return
        reason = why_unusable(worker.name, answer)
        if reason is not None:
            self._state.outbox.refuse(said.conn, said.call, NO_CHECKPOINT, reason)
            self._lifecycle.fail(worker, reason, now)
            return
        group = self._state.groups[worker.group]
        image = group.queue.image
        named = hello.in_flight if worker.life.introduced else ()
        worker.current.silence = None  # it is told its heartbeats anew
        self._lifecycle.introduced(worker, said.conn, now)
        self._state.outbox.commands.append(Introduced(said.conn))
        in_flight = group.queue.take_up(worker.name, worker.life.incarnation, named, confirmed, now)
        sound, restart = answer.found == "sound", group.settings.restart_policy
        if sound:
            worker.saved = (answer.generation, answer.saved_at)
            self._checkpoints.publish_loaded(worker, answer)
        self._state.outbox.reply(
            said.conn,
            said.call,
            Welcome(
                PROTOCOL,
                worker.name,
                group.name,
                worker.index,
                group.settings.count,
                worker.life.incarnation,
                0 if image is None else image.run,
                group.settings.heartbeat_interval,
                state_of(answer) if sound else None,
                group.queue.summary(),
                in_flight,
                group.queue.offered,
                None,
                RestartDelays(restart.base_delay, restart.multiplier, restart.max_delay),
            ),
        )
        self._recycling.reconnected(worker)
        self._watchdog.remind(worker, now)
        self._lifecycle.remind_to_drain(worker, now)
