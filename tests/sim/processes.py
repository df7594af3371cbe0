"""Simulated workers: they work as the SDK does, and die, hang, lie, repeat themselves and come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw

from scraper_supervisor.core.events import Disconnected, Exited, Refuse, Replied, Said
from scraper_worker.protocol import (
    NOT_CLAIMED,
    STORAGE_UNAVAILABLE,
    BrowserRecycle,
    BrowserStarted,
    BrowserStopped,
    CheckpointSave,
    Claim,
    DoneAnswer,
    Drain,
    End,
    FailedAnswer,
    Failure,
    Goodbye,
    Granted,
    Heartbeat,
    Hello,
    ItemCancel,
    ItemDone,
    ItemFailed,
    ItemNext,
    ItemProgress,
    ItemRelease,
    ItemsOffer,
    Offer,
    Offered,
    Welcome,
)

if TYPE_CHECKING:
    from random import Random

    from tests.sim.world import World

RETRY_AFTER = 1.0
KINDS = ("transient", "transient", "blocked", "infrastructure", "permanent")


class Process:
    """One incarnation of a worker."""

    def __init__(self, world: World, worker: str, incarnation: int, group: str, *, plain: bool) -> None:
        self.world = world
        self.rng: Random = world.rng
        self.worker, self.incarnation, self.group, self.plain = worker, incarnation, group, plain
        self.pid = world.number()
        self.token = f"token-{self.pid}"
        self.alive = True
        self.hung = False
        self.conn: int | None = None
        self.welcomed = self.ever = False
        self.held: dict[int, str] = {}  # claim → key
        self.calls: dict[int, Any] = {}  # unanswered, on whatever connection
        self.repeats: dict[int, Any] = {}  # said twice: whichever comes first ends the claim
        self.offers: list[str] = list(world.keys[group])
        self.offering = False
        self.draining = self.complete = self.goodbye = False
        self.browser: str | None = None
        self.in_browser: dict[int, str] = {}  # of what it holds, what ends with its browser alone
        self.slots = world.concurrency

    # ---- its life

    def begin(self) -> None:
        """It was spawned."""
        if not self.plain:
            self.world.later(self.rng.uniform(0, 0.2), self.connect)
        else:
            self.world.later(self.rng.uniform(5, 60), lambda: self.exit(0))

    def exit(self, code: int | None, signal: int | None = None) -> None:
        """It ends."""
        if not self.alive:
            return
        self.alive = False
        self._drop_connection()
        gap, life = self.rng.choice((0.0, 0.0, 0.05)), self.world.life
        self.world.later(gap, lambda: self._exited(life, code, signal))

    def _exited(self, life: int, code: int | None, signal: int | None) -> None:
        if life == self.world.life:
            self.world.dead(self)
            self.world.feed(Exited(self.worker, self.incarnation, code, signal))

    def signalled(self, signum: int) -> None:
        """SIGTERM."""
        del signum
        if self.alive and not self.hung and self.rng.random() < 0.8:
            self.world.later(self.rng.uniform(0, 3), lambda: self.exit(None, 15))

    def in_hands(self) -> list[str]:
        """The keys that it holds and has not told the end of."""
        told = {getattr(message, "claim", None) for message in (*self.calls.values(), *self.repeats.values())}
        return [key for claim, key in self.held.items() if claim not in told]

    # ---- its connection

    def connect(self) -> None:
        """Say hello, naming what it holds unless this is the first time."""
        if not self.alive or self.hung or self.goodbye or self.plain:
            return
        old, self.conn, self.welcomed = self.conn, self.world.number(), False
        named = [Claim(key, claim) for claim, key in self.held.items()] if self.ever else []
        if named and self.world.faults and self.rng.random() < 0.1:
            dropped = self.rng.choice(named)
            if not any(getattr(message, "claim", None) == dropped.claim for message in self.calls.values()):
                named.remove(dropped)
                del self.held[dropped.claim]
                self.slots += 1
        if self.world.faults and self.rng.random() < 0.05:
            named.append(Claim(self.rng.choice(self.world.keys[self.group]), self.rng.randrange(1, 50)))
        hello = Hello(1, self.worker, self.token, "simulated", named)
        if old is not None and self.rng.random() < 0.5:
            conn = old
            self.world.later(0.01, lambda: self.world.feed(Disconnected(conn)))
        self.say(hello)
        if self.world.faults and self.rng.random() < 0.05:
            self.disconnect()
        if self.world.faults and self.rng.random() < 0.05:  # it does not wait for the answer
            self.say(Heartbeat())

    def _drop_connection(self) -> None:
        conn, self.conn, self.welcomed = self.conn, None, False
        if conn is not None:
            self.world.feed(Disconnected(conn))

    def disconnect(self) -> None:
        """The connection breaks; it comes back, unless it has nothing more to say."""
        self._drop_connection()
        if self.goodbye:
            self.exit(0)
        self.world.later(self.rng.uniform(0.01, 2.0), self.connect)

    def say(self, message: Any) -> int | None:
        """Send a message; a request is remembered until it is answered."""
        if not self.alive or self.conn is None:
            return None
        if isinstance(message, Heartbeat | ItemProgress | BrowserStarted | BrowserStopped):
            ancestry = (message.pid, self.pid, 1) if isinstance(message, BrowserStarted) else ()
            self.world.feed(Said(self.conn, None, message, ancestry))
            return None
        call = self.world.number()
        self.calls[call] = message
        if not self.welcomed and not isinstance(message, Hello):
            return call  # it is sent when hello is answered, as the socket and the SDK have it
        self.world.called(self.conn, call, message)
        ancestry = (self.pid, 1) if isinstance(message, Hello) else ()
        self.world.feed(Said(self.conn, call, message, ancestry))
        if self.world.faults and not isinstance(message, Hello | ItemNext) and self.rng.random() < 0.05:
            self._repeat(message)
        return call

    def _repeat(self, message: Any) -> None:
        """The same call again, before the first is answered or after it."""
        conn = self.conn
        if isinstance(message, ItemsOffer) and message.more:
            return  # said after the last offer, it would be a promise that is never kept

        def again() -> None:
            if self.alive and self.conn == conn and conn is not None and not self.goodbye:
                call = self.world.number()
                self.repeats[call] = message
                self.world.called(conn, call, message)
                self.world.feed(Said(conn, call, message))

        self.world.later(self.rng.choice((0.0, 0.02, 3.0)), again)

    def _send_again(self) -> None:
        for call, message in list(self.calls.items()):
            del self.calls[call]
            if not isinstance(message, Hello):
                self.say(message)

    def beat(self) -> None:
        """Show that it lives."""
        if self.alive and not self.hung:
            if self.welcomed:
                self.say(Heartbeat(0.0, {self.browser: 3} if self.browser else {}))
            self.world.later(3.0, self.beat)

    # ---- what it is told

    def answered(self, call: int, result: Any) -> None:
        """A call of its present connection was answered."""
        message = self.calls.pop(call, None)
        if message is None or not self.alive or self.hung:
            if isinstance(result, Granted) and self.alive:
                self.held[result.claim] = result.key
            elif isinstance(message, ItemDone | ItemFailed | ItemRelease):
                self.held.pop(message.claim or 0, None)
            return
        match result:
            case Welcome():
                self._welcome(result)
            case Offered():
                self.offering = False
                self._offer()
            case Granted(key=key, claim=claim):
                self.held[claim] = key
                self._work(key, claim)
            case End(end=end):
                self.draining = self.draining or end == "draining"
                self.complete = self.complete or end == "complete"
                self.world.later(0.5 if end == "empty" else 0.0, self._ask_again)
            case DoneAnswer() | FailedAnswer():
                self.held.pop(message.claim, None)
                self.slots += 1
                self._ask()
        if isinstance(message, ItemRelease):
            self.held.pop(message.claim, None)
            self.slots += 1
            self._ask()
        if isinstance(message, Goodbye) and self.rng.random() < 0.95:  # else it stays
            self.world.later(self.rng.uniform(0, 1), lambda: self.exit(0))
        elif self.draining or self.complete:
            self._ask()

    def refused(self, refusal: Refuse) -> None:
        """A call of its present connection was refused."""
        message = self.calls.pop(refusal.call, None)
        if refusal.close:
            self.world.later(0.01, lambda: self.exit(1))
        elif message is None or not self.alive or self.hung:
            return
        elif refusal.error.code == STORAGE_UNAVAILABLE:
            if isinstance(message, Hello):
                self._drop_connection()
                self.world.later(1.0, self.connect)
            else:
                self.world.later(RETRY_AFTER, lambda: self.say(message) or self._keep(message))
        elif refusal.error.code == NOT_CLAIMED and isinstance(message, ItemDone | ItemFailed | ItemRelease):
            self.held.pop(message.claim or 0, None)
            self.slots += 1
            self._ask()
        elif isinstance(message, Hello):
            self.world.later(0.01, lambda: self.exit(1))

    def _keep(self, message: Any) -> None:
        if self.alive and self.conn is None:  # it is said when the connection is back
            self.calls[self.world.number()] = message

    def _welcome(self, welcome: Welcome) -> None:
        self.welcomed = True
        truth = {held.claim: held.key for held in welcome.in_flight}
        for claim in [claim for claim in self.held if claim not in truth]:
            if not any(getattr(message, "claim", None) == claim for message in self.calls.values()):
                self.slots += 1
            del self.held[claim]
        for claim, key in truth.items():
            if claim not in self.held:
                self.held[claim] = key
                self.slots -= 1
                self.say(ItemRelease(key, claim, "not known here"))
        self._send_again()
        if self.ever:
            self._ask()
        else:
            self.ever = True
            self.beat()
            self.browser = f"b{self.pid}"
            self.say(BrowserStarted(self.browser, 100_000 + self.pid))
            if self.rng.random() < 0.3:
                self.say(CheckpointSave("sim/1", Raw(b'{"at":1}')))
            self._offer()

    def told(self, message: Any, call: int | None) -> None:
        """The supervisor says something by itself."""
        if not self.alive or self.hung:
            return
        match message:
            case Drain():
                self.draining = True
                self._ask()
            case ItemCancel(key=key, claim=claim) if claim not in self.in_browser and self.rng.random() < 0.5:
                failure = Failure("transient", "system", "cancelled-by-order", "it took too long")
                self.world.later(0.1, lambda: self._end(key, claim, ItemFailed(key, failure, claim)))
            case BrowserRecycle(browser=browser):
                self.world.later(
                    self.rng.choice((0.1, 1.0, 19.999, 20.001, 100.0)), lambda: self._recycle(browser, call)
                )

    def browser_killed(self, pid: int) -> None:
        """Its browser was killed; it starts another, unless it does not notice."""
        if self.alive and not self.hung and self.browser is not None and pid == 100_000 + self.pid:
            self.say(BrowserStopped(self.browser, "crash"))
            self.browser = f"b{self.world.number()}"
            self.say(BrowserStarted(self.browser, 100_000 + self.pid))
            died = Failure("infrastructure", "browser", "browser-died", "it was killed")
            stuck, self.in_browser = self.in_browser, {}
            neighbours = {claim: key for claim, key in self.held.items() if self.rng.random() < 0.5}
            for claim, key in (stuck | neighbours).items():
                self._end(key, claim, ItemFailed(key, died, claim))

    def _recycle(self, browser: str, call: int | None) -> None:
        if not self.alive or self.hung or self.conn is None or call is None or not self.welcomed:
            return
        if self.browser == browser:
            self.say(BrowserStopped(browser, "recycle"))
            self.browser = f"b{self.world.number()}"
            self.say(BrowserStarted(self.browser, 100_000 + self.pid))
        self.world.feed(Replied(self.conn, call, None))

    # ---- its work

    def _offer(self) -> None:
        if self.offering or not self.alive:
            return
        if not self.offers:
            self._ask()
            return
        part, self.offers = self.offers[:7], self.offers[7:]
        self.offering = True
        items: list[str | Offer] = [
            Offer(key, self.world.target(key), Raw(b"null"), self.world.priority(key)) for key in part
        ]
        self.say(ItemsOffer(items, bool(self.offers)))

    def _ask_again(self) -> None:
        self.slots += 1
        self._ask()

    def _ask(self) -> None:
        if not self.alive or self.goodbye or self.offers or self.offering:
            return
        if self.draining or self.complete:
            open_ = any(not isinstance(message, Hello) for message in self.calls.values())
            if not self.held and not open_ and self.welcomed:
                self.goodbye = True
                self.say(Goodbye("drained" if self.draining else "complete"))
            return
        while self.slots > 0:
            self.slots -= 1
            wait = self.rng.choice((None, None, None, 5.0, 0.0)) if self.world.faults else None
            if self.say(ItemNext(wait)) is None:
                self._keep(ItemNext(wait))

    def _work(self, key: str, claim: int) -> None:
        world, roll = self.world, self.rng.random()
        if key in world.poison:
            world.later(0.2, lambda: self.exit(None, 11) if self.held.get(claim) == key else None)
        elif world.faults and roll < 0.02:
            world.later(self.rng.uniform(0, 2), lambda: self.exit(1))
        elif world.faults and roll < 0.03:
            self.hung = True
        elif world.faults and roll < 0.05:
            self._get_stuck(key, claim)
        elif world.faults and roll < 0.08:
            world.later(0.1, lambda: self._end(key, claim, ItemRelease(key, claim, "no")))
        elif key in world.hopeless or (world.faults and roll < 0.2):
            kind: Any = "permanent" if key in world.hopeless else self.rng.choice(KINDS)
            after = 2.0 if kind == "blocked" and self.rng.random() < 0.5 else None
            failure = Failure(kind, "network", f"sim-{kind}", "simulated", None, after)
            world.later(
                self.rng.uniform(0, 2), lambda: self._end(key, claim, ItemFailed(key, failure, claim, 1.0, "t.sim"))
            )
        else:
            found: list[str | Offer] = list(world.children(self.group, key))
            world.later(
                self.rng.uniform(0, 2), lambda: self._end(key, claim, ItemDone(key, claim, 1.0, None, Raw(b"1"), found))
            )

    def _get_stuck(self, key: str, claim: int) -> None:
        """It ends with its browser, or late, or never; some tell meanwhile how far they are."""
        way = self.rng.choice(("browser", "late", "telling", "never"))
        if way == "browser":
            self.in_browser[claim] = key
        elif way == "late":
            self.world.later(self.rng.uniform(5, 50), lambda: self._end(key, claim, ItemDone(key, claim)))
        elif way == "telling":
            self._tell(key, claim, self.rng.randrange(1, 20))

    def _tell(self, key: str, claim: int, times: int) -> None:
        if times == 0:
            self._end(key, claim, ItemDone(key, claim))
        elif self.alive and not self.hung and self.held.get(claim) == key:
            self.say(ItemProgress(key, claim, "still at it", times))
            self.world.later(5.0, lambda: self._tell(key, claim, times - 1))

    def _end(self, key: str, claim: int, message: Any) -> None:
        busy = any(getattr(other, "claim", None) == claim for other in self.calls.values())
        if self.alive and not self.hung and self.held.get(claim) == key and not busy and self.say(message) is None:
            self._keep(message)
