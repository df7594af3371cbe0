"""A language for transcripts: `play >> event << command`, in the manner of mitmproxy's playbooks.

    play = Play("x")                                   # one group "g" of one worker, whose run holds the item x
    a = play.up("g-0")                                 # spawned, welcomed
    claim = Some()
    play >> a(ItemNext()) << a.gets(Granted("x", claim, None, ANY, 1))
    play >> a(ItemDone("x", claim.value)) << a.gets(DoneAnswer(1, False))

Every command must be named, in its order, before the next event; only what nobody else hears (the log, the sampler) is
left out. The disk answers at once unless it is held: then what is asked of it is a command like the others.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import ANY

from msgspec import Raw
from tests.sim.model import ModelStore

from scraper_supervisor.core.config.settings import AbortSettings, GroupSettings, RetrySettings, Settings
from scraper_supervisor.core.events import (
    Command,
    Disconnected,
    Due,
    Event,
    Exited,
    HangUp,
    Introduced,
    KillTree,
    Persist,
    Persisted,
    PersistFailed,
    Publish,
    Refuse,
    Reply,
    Said,
    Spawn,
    Spawned,
    StackTold,
    TreeEnded,
    Unwatch,
    Watch,
)
from scraper_supervisor.core.fleet import Fleet
from scraper_supervisor.core.ops.item_ops import AddItems, NewItem
from scraper_supervisor.core.ops.run_ops import OpenRun
from scraper_supervisor.core.snapshot import Daemon
from scraper_worker.jsonrpc import RpcError
from scraper_worker.protocol import BrowserStarted, End, Failure, Goodbye, Granted, Hello, ItemDone, ItemNext, Nothing

HIDDEN = (Publish, Watch, Unwatch, Introduced)
BLIP = Failure("transient", "network", "blip", "it went away")
GIB = 2**30
PLAIN_RETRY = RetrySettings(jitter="none", base_delay=1.0, max_attempts=3)
DAEMON = Daemon(4711, "0", "2026-01-01T00:00:00.000Z", None, "2026-01-01T00:00:00.000Z", None, 50.0, 1000.0)


class Some:
    """Equal to whatever it is first compared with, and from then on to that alone."""

    def __init__(self) -> None:
        self.value: Any = None

    def __eq__(self, other: object) -> bool:
        if self.value is None:
            self.value = other
        return bool(self.value == other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return "…" if self.value is None else repr(self.value)


class Puppet:
    """One incarnation of a worker, and the connection that it speaks on."""

    def __init__(self, name: str, incarnation: int, pid: int, token: str, conn: int) -> None:
        self.name, self.incarnation, self.pid, self.token, self.conn = name, incarnation, pid, token, conn
        self.call = 100 * conn

    def __call__(self, message: Any) -> Said:
        """Say something; a new call each time."""
        self.call += 1
        return Said(self.conn, self.call, message, self._ancestry(message))

    def _ancestry(self, message: Any) -> tuple[int, ...]:
        match message:
            case Hello():
                return (self.pid, 1)
            case BrowserStarted(pid=pid):
                return (pid, self.pid, 1)
        return ()

    def notes(self, message: Any) -> Said:
        """Say something that is never answered."""
        return Said(self.conn, None, message, self._ancestry(message))

    def gets(self, result: Any, call: int | None = None) -> Reply:
        """The answer to the latest call, or to that one."""
        return Reply(self.conn, self.call if call is None else call, result)

    def refused(self, code: int, data: Any = ANY, *, call: int | None = None, close: bool = False) -> Refuse:
        """The latest call is refused."""
        return Refuse(self.conn, self.call if call is None else call, RpcError(code, ANY, data), close)

    def hello(self, *in_flight: Any) -> Said:
        """The first word."""
        return self(Hello(1, self.name, self.token, "puppet", list(in_flight)))

    def runs(self) -> Spawned:
        """Its process runs."""
        return Spawned(self.name, self.incarnation, self.pid, self.token)

    def exits(self, code: int | None = 0, signal: int | None = None, last_line: str | None = None) -> Exited:
        """Its process ends."""
        return Exited(self.name, self.incarnation, code, signal, last_line)

    def buried(self) -> KillTree:
        """Whatever it leaves is cleared away."""
        return KillTree(self.name, self.incarnation, ANY, ANY)


class Play:
    """A fleet on a stage.

    Args:
        keys: items that the run holds already.
        groups: settings of several groups; else one group "g" with `group` as its settings.
    """

    def __init__(
        self,
        *keys: Any,
        groups: tuple[GroupSettings, ...] = (),
        settings: dict[str, Any] | None = None,
        once: bool = False,
        store: ModelStore | None = None,
        **group: Any,
    ) -> None:
        self.now = 0.0
        self.store = store or ModelStore()
        self.settings = Settings(
            **{"retry": {"default": PLAIN_RETRY}, "abort": AbortSettings(enabled=False, consecutive_crashes=999)}
            | {"groups": {one.name: one for one in groups or (a_group("g", **group),)}}
            | (settings or {})
        )
        self.held: list[Any] | None = None
        self.stands: tuple[str, ...] = ()  # where workers that are asked tell that they stand
        self.tells = True  # whether the daemon answers where they do
        self.seen: list[Command] = []
        self.log: list[Publish] = []
        self._numbers = 0
        if keys:
            self.fill("g", *keys)
        self.fleet = Fleet(self.settings, "boot", once=once)
        self._take(self.fleet.start(self.now))

    def fill(self, group: str, *keys: Any) -> None:
        """Put items into the group's run, as an earlier life of the supervisor did."""
        run: Any = self.store.perform(OpenRun(0, group, "continue", 5), 0.0)
        items = tuple(key if isinstance(key, NewItem) else NewItem(key, None, Raw(b"null"), 0) for key in keys)
        self.store.perform(AddItems(0, group, run.run_id, items), 0.0)

    # ---- the transcript

    def __rshift__(self, event: Event) -> Play:
        assert not self.seen, f"not expected before {event}: {self.seen}"
        self._take(self.fleet.handle(event, self.now))
        return self

    def __lshift__(self, expected: Any) -> Play:
        assert self.seen, f"expected {expected}, nothing more was commanded"
        command = self.seen.pop(0)
        assert expected == command, f"expected {expected}\nbut got  {command}\nthen     {self.seen}"
        return self

    def silence(self) -> Play:
        """Nothing (more) was commanded."""
        assert not self.seen, self.seen
        return self

    def ignoring(self, *kinds: type) -> Play:
        """Leave out such commands here; their order is not the point."""
        self.seen = [command for command in self.seen if not isinstance(command, kinds)]
        return self

    # ---- time

    def at(self, now: float) -> Play:
        """Let it be that late, with no timer in between."""
        self.now = now
        return self

    def deadline(self, offset: float = 0.0) -> Play:
        """Jump to the next deadline, or a little before or after it."""
        deadline = self.fleet.next_deadline()
        assert deadline is not None
        self.now = deadline + offset
        return self

    def until(self, now: float) -> Play:
        """Let time pass, with the timer going off whenever it is due; stops early where something is commanded."""
        while not self.seen and (deadline := self.fleet.next_deadline()) is not None and deadline <= now:
            assert deadline >= self.now
            self.now = deadline
            self._take(self.fleet.handle(Due(), self.now))
        if not self.seen:
            self.now = now
        return self

    # ---- the disk

    def hold(self) -> Play:
        """From now on, what is asked of the disk is not answered by itself."""
        self.held = []
        return self

    def durable(self) -> Persisted:
        """The oldest of what the disk was asked is carried out."""
        assert self.held
        op = self.held.pop(0)
        return Persisted(op, self.store.perform(op, self.now))

    def lost(self) -> PersistFailed:
        """The oldest of what the disk was asked left no trace."""
        assert self.held
        return PersistFailed(self.held.pop(0), 28, "No space left on device")

    def flow(self) -> Play:
        """The disk answers by itself again, what is held first."""
        held, self.held = self.held or [], None
        for op in held:
            self._take(self.fleet.handle(Persisted(op, self.store.perform(op, self.now)), self.now))
        return self

    # ---- shorthand

    def up(self, name: str = "g-0") -> Puppet:
        """The worker's Spawn is at hand: it comes up, says hello and is welcomed."""
        puppet = self.spawned(name)
        waiting, self.seen = self.seen, []
        self >> puppet.hello() << puppet.gets(ANY)
        self.seen += waiting
        return puppet

    def spawned(self, name: str = "g-0") -> Puppet:
        """The worker's Spawn is at hand: its process runs, and has not said hello."""
        spawn = next(command for command in self.seen if isinstance(command, Spawn) and command.worker == name)
        self.seen.remove(spawn)
        waiting, self.seen = self.seen, []
        puppet = self.puppet(spawn)
        self >> puppet.runs()
        self.seen += waiting
        return puppet

    def puppet(self, spawn: Spawn) -> Puppet:
        """What a Spawn is about to become."""
        number = self.number()
        return Puppet(spawn.worker, spawn.incarnation, 1000 + number, f"token-{number}", number)

    def back(self, puppet: Puppet, *in_flight: Any) -> Puppet:
        """The same incarnation says hello on a new connection; its answer is still to come."""
        again = Puppet(puppet.name, puppet.incarnation, puppet.pid, puppet.token, self.number())
        self >> again.hello(*in_flight)
        return again

    def gives(self, puppet: Puppet, key: Any = ANY) -> Granted:
        """The worker asks for an item and gets one."""
        granted = Some()
        self >> puppet(ItemNext()) << puppet.gets(granted)
        assert isinstance(granted.value, Granted), granted.value
        assert key == granted.value.key, granted.value
        return granted.value

    def dies(self, puppet: Puppet, code: int | None = 1, signal: int | None = None) -> Play:
        """The process ends, what it leaves is cleared away."""
        self >> puppet.exits(code, signal) << puppet.buried()
        waiting, self.seen = self.seen, []
        self >> TreeEnded(puppet.name, puppet.incarnation, 0)
        self.seen += waiting
        return self

    def leaves(self, puppet: Puppet) -> Play:
        """The connection breaks."""
        return self >> Disconnected(puppet.conn)

    def published(self, *names: str) -> list[str]:
        """What was written to the event log so far, of these names."""
        return [publish.event for publish in self.log if not names or publish.event in names]

    def row(self, key: str, group: str = "g") -> Any:
        """The ledger's row of an item."""
        return self.store.newest(group).row(key)

    def state(self, name: str = "g-0") -> str:
        """A worker's state, as `status` tells it."""
        return self.fleet.lifecycle.public(self.fleet.state.workers[name])

    def number(self) -> int:
        """A new number."""
        self._numbers += 1
        return self._numbers

    # ---- inside

    def _take(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Publish):
                self.log.append(command)
            elif isinstance(command, Persist) and self.held is not None:
                self.held.append(command.op)
                self.seen.append(command)
            elif isinstance(command, Persist):
                self._take(self.fleet.handle(Persisted(command.op, self.store.perform(command.op, self.now)), self.now))
            elif not isinstance(command, HIDDEN):
                self.seen.append(command)
                if isinstance(command, KillTree) and command.ask and self.tells:
                    told = StackTold(command.worker, command.incarnation, self.stands)
                    self._take(self.fleet.handle(told, self.now))


def a_group(name: str = "g", **changes: Any) -> GroupSettings:
    """A group's settings."""
    return GroupSettings(**({"name": name, "directory": "/", "entrypoint": "a:b"} | changes))


def finish(play: Play, a: Puppet, *keys: str) -> Play:
    """The worker does these items, is told that all is done, and ends well."""
    for key in keys:
        item = play.gives(a, key)
        play >> a(ItemDone(key, item.claim)) << a.gets(ANY)
    play >> a(ItemNext()) << a.gets(End("complete"))
    play >> a(Goodbye("complete")) << a.gets(Nothing())
    return play.dies(a, 0).ignoring(HangUp)


def group_state(play: Play, name: str = "g") -> str:
    """A group's state, as `status` tells it."""
    return play.fleet.state.groups[name].state.public


def writes(kind: type) -> Any:
    """Any operation of that kind asked of the disk."""
    return _Writes(kind)


class _Writes:
    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Persist) and isinstance(other.op, self._kind)

    __hash__ = None  # type: ignore[assignment]  # it is a pattern

    def __repr__(self) -> str:
        return f"Persist({self._kind.__name__})"
