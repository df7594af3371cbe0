"""The worker protocol, version 1: its messages, limits and error codes. `jsonrpc` makes lines of them, and back."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

from msgspec import Meta, Raw, Struct

PROTOCOL: Final = 1
MAX_LINE: Final = 16 * 1024 * 1024  # bytes; larger where max_state asks for it
MAX_LINE_BEFORE_HELLO: Final = 64 * 1024  # bytes
MAX_OPEN_CALLS: Final = 256
MAX_KEY: Final = 4096  # bytes of UTF-8
MAX_DEPTH: Final = 512  # arrays and objects of a line inside one another, the message itself included
SUPERVISOR_LOST_AFTER: Final = 300.0  # seconds without a supervisor, after which a worker ends itself

MAX_SLOTS: Final = 16  # of one worker, beside its main state
SESSION_SLOT: Final = "session"  # cookies and storage of the browser; the one slot that outlives a fresh run

ENV_SOCKET: Final = "SCRAPER_WORKER_SOCKET"
ENV_NAME: Final = "SCRAPER_WORKER_NAME"
ENV_TOKEN: Final = "SCRAPER_WORKER_TOKEN"
STACK_SIGNAL: Final = 7  # above SIGRTMIN: no program uses it by itself
STACK_FILE: Final = ".scraper-worker-stack"  # in TMPDIR; a worker that catches the signal writes there where it stands

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
STORAGE_UNAVAILABLE: Final = -32001
NOT_INTRODUCED: Final = -32002
REFUSED: Final = -32003
TOO_LARGE: Final = -32004
BAD_PARAMS: Final = -32005
NO_CHECKPOINT: Final = -32006
NOT_CLAIMED: Final = -32007
TOO_MANY_CALLS: Final = -32008

Priority: TypeAlias = Annotated[int, Meta(ge=-(2**53) + 1, le=2**53 - 1)]  # what every JSON peer can hold exactly
Kind: TypeAlias = Literal["transient", "permanent", "blocked", "infrastructure"]
Category: TypeAlias = Literal["network", "browser", "system", "application", "external"]
CallId: TypeAlias = int | float | str | None


_SLOT: Final = re.compile(r"[a-z][a-z0-9-]{0,15}", re.ASCII)


def is_slot(name: str) -> bool:
    """Whether a slot may bear this name, which is that of its folder."""
    return _SLOT.fullmatch(name) is not None and name != "corrupt"


class Failure(Struct, frozen=True, omit_defaults=True):
    """How an item, or something beside it, failed. Times are seconds from receipt."""

    kind: Kind
    category: Category
    signature: str
    message: str
    status: int | None = None
    retry_after: float | None = None
    traceback: str | None = None
    evidence: tuple[str, ...] = ()


class Claim(Struct, frozen=True):
    """An item in a worker's hands, as the worker names it when it comes back."""

    key: str
    claim: int


class Offer(Struct, frozen=True, omit_defaults=True):
    """One item as a worker offers it."""

    key: str
    target: str | None = None
    data: Raw = Raw(b"null")
    priority: Priority = 0


class BadEntry(NamedTuple):
    """An entry among offers that can be no item. On the wire it is an array, so that no supervisor takes it for one.

    The SDK sends one for what it can't put into JSON, and reading an offer makes one of each entry that is neither a
    key nor an object of the right shape: it is left out, and the others count.
    """

    reason: str
    entry: str = ""


WireEntry: TypeAlias = str | Offer | BadEntry


class Refused(Struct, frozen=True):
    """One of the entries that were left out: its place in the call, and why."""

    index: int
    reason: str


MAX_REFUSED: Final = 10  # of these in an answer

# ---- worker → supervisor --------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, omit_defaults=True):
    """The first request of a connection."""

    protocol: int
    worker: str
    token: str
    client: str = ""
    in_flight: list[Claim] = []


class Heartbeat(Struct, frozen=True, omit_defaults=True):
    """A sign of life: event-loop lag and pages opened per browser since its start."""

    lag_ms: float = 0.0
    pages: dict[str, int] = {}


class ItemsOffer(Struct, frozen=True, omit_defaults=True):
    """Items for the run; `more` says that another offer will follow."""

    items: list[WireEntry]
    more: bool = False


class ItemNext(Struct, frozen=True, omit_defaults=True):
    """Ask for an item; the answer waits until there is one, for `wait` seconds if given."""

    wait: float | None = None


class ItemDone(Struct, frozen=True, omit_defaults=True):
    """An item succeeded."""

    key: str
    claim: int | None = None
    seconds: float | None = None
    target: str | None = None
    result: Raw = Raw(b"null")
    offers: list[WireEntry] = []


class ItemFailed(Struct, frozen=True, omit_defaults=True):
    """An attempt at an item failed."""

    key: str
    failure: Failure
    claim: int | None = None
    seconds: float | None = None
    target: str | None = None


class ItemRelease(Struct, frozen=True, omit_defaults=True):
    """An item is given back at no cost."""

    key: str
    claim: int | None = None
    reason: str = ""


class ItemProgress(Struct, frozen=True, omit_defaults=True):
    """A sign of life of one item, and how far it is, in whatever unit; people are shown it."""

    key: str
    claim: int | None = None
    message: str | None = None
    done: int | float | None = None
    total: int | float | None = None


class FailureReport(Struct, frozen=True, omit_defaults=True):
    """A failure outside any item."""

    failure: Failure
    target: str | None = None


class CheckpointSave(Struct, frozen=True, omit_defaults=True):
    """The worker's state, or that of a slot, to be written durably. `state` is a JSON object and stays undecoded."""

    schema: str
    state: Raw
    slot: str | None = None


class CheckpointLoad(Struct, frozen=True, omit_defaults=True):
    """Ask for a state: the newest, or the one of `generation`; of the main ones, or of a slot's."""

    generation: int | None = None
    slot: str | None = None


class BrowserStarted(Struct, frozen=True, omit_defaults=True):
    """A browser is up."""

    browser: str
    pid: int
    driver_pid: int | None = None
    engine: str = ""
    version: str = ""


class BrowserStopped(Struct, frozen=True):
    """A browser is gone."""

    browser: str
    reason: Literal["close", "recycle", "crash"]


class Goodbye(Struct, frozen=True):
    """The last request: the worker is about to exit."""

    reason: Literal["complete", "drained"]


FromWorker: TypeAlias = (
    Hello
    | Heartbeat
    | ItemsOffer
    | ItemNext
    | ItemDone
    | ItemFailed
    | ItemRelease
    | ItemProgress
    | FailureReport
    | CheckpointSave
    | CheckpointLoad
    | BrowserStarted
    | BrowserStopped
    | Goodbye
)

WORKER_METHODS: Final[dict[str, type[FromWorker]]] = {
    "hello": Hello,
    "heartbeat": Heartbeat,
    "items.offer": ItemsOffer,
    "item.next": ItemNext,
    "item.done": ItemDone,
    "item.failed": ItemFailed,
    "item.release": ItemRelease,
    "item.progress": ItemProgress,
    "failure.report": FailureReport,
    "checkpoint.save": CheckpointSave,
    "checkpoint.load": CheckpointLoad,
    "browser.started": BrowserStarted,
    "browser.stopped": BrowserStopped,
    "goodbye": Goodbye,
}

# ---- results --------------------------------------------------------------------------------------------------------


class CheckpointState(Struct, frozen=True):
    """A state as `hello` and `checkpoint.load` answer it."""

    generation: int
    schema: str
    saved_at: str
    state: Raw


class ItemCounts(Struct, frozen=True):
    """How far the group's run is."""

    pending: int = 0
    done: int = 0
    failed: int = 0


class Held(Struct, frozen=True):
    """An item that is in the worker's hands according to the supervisor."""

    key: str
    claim: int
    attempt: int


class Evidence(Struct, frozen=True):
    """Where a worker puts the files that a failure may name, and whether it shall trace an item's last attempt."""

    dir: str
    trace: bool


class RestartDelays(Struct, frozen=True):
    """How the waits between restarts grow, in seconds; a worker lets as long pass between logins that fail."""

    base_delay: float = 1.0
    multiplier: float = 2.0
    max_delay: float = 60.0

    def after(self, failures: int) -> float:
        """The wait in seconds after so many failures in a row, from 1 on."""
        return min(self.max_delay, self.base_delay * self.multiplier ** (failures - 1))


class Welcome(Struct, frozen=True):
    """The answer to `hello`.

    `offered` says that a worker of this run has offered its source to the end. Without `evidence`, none is kept.
    """

    protocol: int
    worker: str
    group: str
    index: int
    count: int
    incarnation: int
    run: int
    heartbeat_interval: float
    checkpoint: CheckpointState | None
    items: ItemCounts
    in_flight: list[Held]
    offered: bool = False
    evidence: Evidence | None = None
    restart_policy: RestartDelays | None = None


class Offered(Struct, frozen=True, omit_defaults=True):
    """The answer to `items.offer`; `refused` names the first ten entries that were left out."""

    added: int
    known: int
    refused: list[Refused] = []


class Granted(Struct, frozen=True):
    """The answer to `item.next` when there is an item.

    `last` says that a charged failure now would be final. `held` says that its target is held, and this is its probe.
    """

    key: str
    claim: int
    target: str | None
    data: Raw
    attempt: int
    last: bool = False
    held: bool = False


class End(Struct, frozen=True):
    """The answer to `item.next` when there is none."""

    end: Literal["complete", "draining", "empty"]


class DoneAnswer(Struct, frozen=True, omit_defaults=True):
    """The answer to `item.done`; `refused` names the first ten of its offers that were left out."""

    seq: int
    duplicate: bool
    refused: list[Refused] = []


class FailedAnswer(Struct, frozen=True):
    """The answer to `item.failed`; `delay` is seconds, None while parked or held."""

    action: Literal["retry", "final"]
    attempt: int
    delay: float | None
    reason: str


class Saved(Struct, frozen=True):
    """The answer to `checkpoint.save`."""

    generation: int
    sha256: str


class Nothing(Struct, frozen=True):
    """An empty answer."""


# ---- supervisor → worker --------------------------------------------------------------------------------------------


class BrowserRecycle(Struct, frozen=True):
    """Request: replace this browser; answered when the new one is up. `deadline` is seconds from receipt."""

    browser: str
    reason: str
    deadline: float


class Drain(Struct, frozen=True):
    """Notification: finish what is in hand and say goodbye."""

    reason: str
    deadline: float


class ItemCancel(Struct, frozen=True):
    """Notification: end that item and answer `item.failed`."""

    key: str
    claim: int
    reason: str
    deadline: float


ToWorker: TypeAlias = BrowserRecycle | Drain | ItemCancel

SUPERVISOR_METHODS: Final[dict[str, type[ToWorker]]] = {
    "browser.recycle": BrowserRecycle,
    "drain": Drain,
    "item.cancel": ItemCancel,
}
