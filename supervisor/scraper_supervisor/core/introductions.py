"""Hello: who may speak for a worker, and what it is told when it does.

The answer waits for the worker's checkpoint to be read. A hello may come before Spawned does, and a client may go on
talking without waiting for the answer: both are kept until their time comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.calls import storage_error
from scraper_supervisor.core.checkpoints import Checkpoints, state_of, why_unusable
from scraper_supervisor.core.events import Introduced, Said
from scraper_supervisor.core.records import LoadState, StateLoaded
from scraper_supervisor.core.state import Handshake, Worker
from scraper_supervisor.core.worker import Phase
from scraper_worker.protocol import (
    BAD_PARAMS,
    INVALID_REQUEST,
    MAX_OPEN_CALLS,
    NO_CHECKPOINT,
    NOT_INTRODUCED,
    PROTOCOL,
    REFUSED,
    STORAGE_UNAVAILABLE,
    Drain,
    Failure,
    Hello,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from scraper_supervisor.core.claims import Effect
    from scraper_supervisor.core.lifecycle import Lifecycle
    from scraper_supervisor.core.recycling import Recycling
    from scraper_supervisor.core.state import FleetState
    from scraper_supervisor.core.watchdog import Watchdog

EARLY_HELLOS: Final = 4  # of one worker, kept until its process is known


class Introductions:
    """Answers hello."""

    def __init__(
        self,
        state: FleetState,
        lifecycle: Lifecycle,
        watchdog: Watchdog,
        recycling: Recycling,
        checkpoints: Checkpoints,
        effects: Callable[[list[Effect], float], None],
    ) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._watchdog = watchdog
        self._recycling = recycling
        self._checkpoints = checkpoints
        self._effects = effects
        self._handshakes: dict[int, Handshake] = {}  # by ticket
        self._early: dict[str, list[Handshake]] = {}  # hellos that came before Spawned did

    def hello(self, event: Said, hello: Hello) -> None:
        """Take a hello."""
        if event.conn in self._state.conns or self._pending(event.conn) is not None:
            self._state.refuse(event.conn, event.call, INVALID_REQUEST, "this connection said hello before")
            return
        if hello.protocol != PROTOCOL:
            data = {"path": "protocol", "supported": [PROTOCOL]}
            self._state.refuse(event.conn, event.call, BAD_PARAMS, f"protocol {hello.protocol} is not supported", data)
            return
        worker = self._state.workers.get(hello.worker)
        if worker is not None and worker.life.phase is Phase.SPAWNING:
            early = self._early.setdefault(worker.name, [])
            if len(early) < EARLY_HELLOS:
                early.append(Handshake(event, worker.name, worker.life.incarnation))
                return
        self._check(Handshake(event, hello.worker, 0 if worker is None else worker.life.incarnation))

    def later(self, event: Said) -> bool:
        """A word that comes between hello and its answer is kept; whether this is one."""
        handshake = self._pending(event.conn)
        if handshake is None or len(handshake.later) >= MAX_OPEN_CALLS:
            return False
        handshake.later.append(event)
        return True

    def process_known(self, worker: str) -> None:
        """The worker's process is known, or could not be started: hellos that came earlier are taken."""
        for handshake in self._early.pop(worker, []):
            self._check(handshake)

    def disconnected(self, conn: int) -> None:
        """Nobody waits for the answer there any more."""
        self._handshakes = {
            ticket: handshake for ticket, handshake in self._handshakes.items() if handshake.said.conn != conn
        }
        for name, early in list(self._early.items()):
            self._early[name] = [handshake for handshake in early if handshake.said.conn != conn]

    def read(self, op: LoadState, answer: StateLoaded, now: float) -> list[Said] | None:
        """A checkpoint was read. If a hello waited for it: what the connection said after it, to be heard now."""
        handshake = self._handshakes.pop(op.ticket, None)
        if handshake is None:
            return None
        if not self._welcome(handshake, answer, now):
            self._turn_away(handshake)
            return []
        return handshake.later

    def failed(self, op: LoadState, errno: int, message: str, now: float) -> bool:
        """A checkpoint could not be read; whether a hello waited for it.

        Nothing older is given instead, and the worker, which is not to blame, has start_timeout anew to ask again.
        """
        handshake = self._handshakes.pop(op.ticket, None)
        if handshake is None:
            return False
        error = storage_error(errno, message)
        self._state.refuse(handshake.said.conn, handshake.said.call, STORAGE_UNAVAILABLE, error.message, error.data)
        self._turn_away(handshake)
        worker = self._state.workers.get(handshake.worker)
        if worker is not None:
            worker.last_failure = Failure("transient", "system", "checkpoint-unreadable", message)
            if worker.life.phase is Phase.STARTING and worker.life.deadline is not None:
                worker.life.deadline = now + self._state.groups[worker.group].settings.start_timeout
        return True

    # ---- inside

    def _pending(self, conn: int) -> Handshake | None:
        early = (handshake for handshakes in self._early.values() for handshake in handshakes)
        return next((one for one in (*self._handshakes.values(), *early) if one.said.conn == conn), None)

    def _check(self, handshake: Handshake) -> None:
        worker = self._state.workers.get(handshake.worker)
        refusal = self._why_not(worker, handshake)
        if refusal is not None or worker is None:
            self._refuse(handshake, refusal or "")
            return
        ticket = self._state.ticket()
        self._handshakes[ticket] = handshake
        self._state.persist(LoadState(ticket, worker.name, self._checkpoints.fresh_from(worker)))

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
        if worker.goodbye is not None:
            return f"{name} said goodbye"
        return None

    def _refuse(self, handshake: Handshake, why: str) -> None:
        self._turn_away(handshake)
        self._state.refuse(handshake.said.conn, handshake.said.call, REFUSED, f"hello refused: {why}", close=True)

    def _turn_away(self, handshake: Handshake) -> None:
        for event in handshake.later:
            self._state.refuse(event.conn, event.call, NOT_INTRODUCED, "hello was not accepted")

    def _welcome(self, handshake: Handshake, answer: StateLoaded, now: float) -> bool:
        said, hello = handshake.said, handshake.said.message
        worker = self._state.workers.get(handshake.worker)
        refusal = self._why_not(worker, handshake)
        if worker is None or refusal is not None or not isinstance(hello, Hello):
            self._refuse(handshake, refusal or "")
            handshake.later.clear()
            return True
        reason = why_unusable(worker.name, answer)
        if reason is not None:
            self._state.refuse(said.conn, said.call, NO_CHECKPOINT, reason)
            self._lifecycle.fail(worker, reason, now)
            return False
        group = self._state.groups[worker.group]
        image = group.queue.image
        self._lifecycle.introduced(worker, said.conn, now)
        self._state.out.append(Introduced(said.conn))
        effects, in_flight = group.queue.reclaim(worker.name, worker.life.incarnation, hello.in_flight, now)
        self._effects(effects, now)
        sound = answer.found == "sound"
        if sound:
            worker.saved = (answer.generation, answer.saved_at)
            self._checkpoints.publish_loaded(worker, answer)
        self._state.reply(
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
            ),
        )
        self._recycling.reconnected(worker)
        self._watchdog.remind(worker, now)
        if worker.life.phase is Phase.DRAINING and worker.life.deadline is not None:
            left = max(0.0, worker.life.deadline - now)
            self._state.tell(worker, Drain(worker.life.reason or "draining", left))
        return True
