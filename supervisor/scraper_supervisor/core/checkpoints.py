"""Workers' saved states: asked to be written or read, and what is answered when they are.

Whoever wants a state written or read does it through here, so that each is counted and told of, and damage is too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.formats.worker_payloads import (
    CheckpointCorrupted,
    CheckpointCreated,
    CheckpointDeleted,
    CheckpointLoaded,
)
from scraper_supervisor.core.ops.state_ops import (
    LoadState,
    SaveState,
    SlotsFull,
    StateLoaded,
    StateSaved,
    state_of_whom,
)
from scraper_supervisor.core.queue.item_calls import storage_error
from scraper_worker.jsonrpc import BadParams, check_slot
from scraper_worker.protocol import (
    BAD_PARAMS,
    MAX_SLOTS,
    NO_CHECKPOINT,
    SESSION_SLOT,
    TOO_LARGE,
    CheckpointLoad,
    CheckpointSave,
    CheckpointState,
    ItemCounts,
    Saved,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Raw

    from scraper_supervisor.core.config.settings import CheckpointSettings
    from scraper_supervisor.core.events import PersistFailed, Said
    from scraper_supervisor.core.fleet_state import FleetState, Worker
    from scraper_supervisor.core.ops.run_ops import RunImage
    from scraper_supervisor.core.policy.slo import Slo

SMALL_STATE: Final = 1024 * 1024  # bytes; larger states are not kept to be written again on interval


def state_of(answer: StateLoaded) -> CheckpointState:
    """A sound state, as workers are told of it."""
    return CheckpointState(answer.generation, answer.schema, answer.saved_at, answer.state)


def why_unusable(worker: str, answer: StateLoaded, slot: str | None = None) -> str | None:
    """Why a worker must not go on from what was found, and the remedy; None if it may."""
    if answer.found == "newer":
        return f"checkpoint {answer.generation} of {state_of_whom(worker, slot)} cannot be used: {answer.reason}"
    if answer.found == "damaged" and slot is not None:
        return (
            f"every checkpoint of {state_of_whom(worker, slot)} is damaged and was moved to corrupt/; this is told "
            f"once, then the slot is empty; 'checkpoint restore {worker} --slot {slot} --generation N' brings back one "
            "that was put in its place"
        )
    if answer.found == "damaged":
        group = worker.rpartition("-")[0]
        return (
            f"every checkpoint of {worker} is damaged and was moved to corrupt/; put a sound one in their place "
            f"and use 'checkpoint restore {worker} --generation N', or begin anew with 'start {group} --fresh'"
        )
    return None


def why_not_given(worker: str, generation: int, answer: StateLoaded, slot: str | None = None) -> str | None:
    """Why a certain generation cannot be had, and which there are; None if it can."""
    worker = state_of_whom(worker, slot)
    others = f"; there are: {', '.join(map(str, answer.there)) or 'none'}"
    match answer.found:
        case "sound":
            return None
        case "newer":
            return f"checkpoint {generation} of {worker} cannot be used: {answer.reason}{others}"
        case "damaged":
            reason = f" ({answer.damage[0].reason})" if answer.damage else ""
            return f"checkpoint {generation} of {worker} is damaged{reason} and was moved to corrupt/{others}"
        case _:
            return f"{worker} has no checkpoint {generation}{others}"


def counts_of(image: RunImage) -> ItemCounts:
    """The items of a run as the ledger has it, as a checkpoint carries them."""
    return ItemCounts(sum(lane.open for lane in image.lanes) + image.waiting, image.done, image.failed)


def save_op(
    ticket: int,
    worker: str,
    run: int,
    schema: str,
    state: Raw,
    counts: ItemCounts,
    settings: CheckpointSettings,
    slot: str | None = None,
) -> SaveState:
    """The operation that writes a worker's state as its next generation, as it is configured.

    Args:
        ticket: under which the store answers.
        worker: whose state it is.
        run: the number of the group's run.
        schema: "NAME/INTEGER".
        state: a JSON object.
        counts: the items of the group.
        settings: the table `[checkpoint]`.
        slot: where it belongs; None for the main state.
    """
    return SaveState(
        ticket,
        worker,
        run,
        schema,
        state,
        counts.pending,
        counts.done,
        counts.failed,
        settings.retention,
        settings.compression,
        slot,
    )


class Checkpoints:
    """Serves checkpoint.save and checkpoint.load, and writes the latest states again with the progress since."""

    def __init__(self, state: FleetState, slo: Slo) -> None:
        self._state = state
        self._slo = slo
        self._since: float | None = None  # when the states were last written again, monotonic seconds

    # ---- for everybody

    def write(
        self,
        op: SaveState,
        saved: Callable[[StateSaved], None],
        refused: Callable[[PersistFailed], None],
        conn: int | None = None,
        full: Callable[[SlotsFull], None] = lambda _: None,
    ) -> None:
        """Have a state written; `saved`, `refused` or, where it would be one slot too many, `full` is told."""

        def answered(answer: StateSaved | SlotsFull, _: float) -> None:
            if isinstance(answer, SlotsFull):
                full(answer)
                return
            self._saved(op, answer)
            saved(answer)

        self._state.outbox.ask(op, answered, lambda fault, _: refused(fault), conn=conn)

    def read(
        self,
        op: LoadState,
        loaded: Callable[[StateLoaded, float], None],
        refused: Callable[[PersistFailed, float], None],
        conn: int | None = None,
    ) -> None:
        """Have a state read; `loaded` or `refused` is told. What is found damaged is published."""
        self._state.outbox.ask(op, partial(self._loaded, op.worker, loaded), refused, conn=conn)

    def _loaded(
        self, worker: str, loaded: Callable[[StateLoaded, float], None], answer: StateLoaded, now: float
    ) -> None:
        publish_damage(self._state, worker, answer)
        loaded(answer, now)

    def op_of(self, worker: Worker, schema: str, state: Raw, slot: str | None = None) -> SaveState:
        """The operation that writes a worker's state, with the group's counts as they are."""
        queue = self._state.groups[worker.group].queue
        run = 0 if queue.image is None else queue.image.run
        ticket, settings = self._state.outbox.ticket(), self._state.settings.checkpoint
        return save_op(ticket, worker.name, run, schema, state, queue.summary(), settings, slot)

    def fresh_from(self, worker: Worker, slot: str | None = None) -> int:
        """The first run whose states still count; a session is not a run's."""
        if slot == SESSION_SLOT:
            return 0
        image = self._state.groups[worker.group].queue.image
        return 0 if image is None else image.fresh_from

    # ---- what workers call

    def save(self, event: Said, worker: Worker, save: CheckpointSave) -> None:
        """checkpoint.save.

        Raises:
            BadParams: no schema, no object, or a slot that can be none.
        """
        name, _, version = save.schema.rpartition("/")
        if not name or not (version.isascii() and version.isdecimal()):
            raise BadParams("schema", f'expected "NAME/INTEGER", got {save.schema!r}')
        text = memoryview(save.state)  # it may be large: no copy is made of it
        if text[0] != ord("{"):
            raise BadParams("state", "expected an object")
        check_slot(save.slot)
        outbox, size, limit = self._state.outbox, text.nbytes, self._state.settings.checkpoint.max_state
        if size > limit:
            message = f"the state has {size} bytes, over max_state of {limit}"
            outbox.refuse(event.conn, event.call, TOO_LARGE, message, {"path": "state", "limit": limit})
            return
        if save.slot is None:
            worker.state = (save.schema, save.state) if size <= SMALL_STATE else None
            ended = self._state.groups[worker.group].queue.ended
            worker.state_ended = ended.done + ended.failed
        self.write(
            self.op_of(worker, save.schema, save.state, save.slot),
            lambda answer: outbox.reply(event.conn, event.call, Saved(answer.generation, answer.sha256)),
            partial(self._unavailable, event),
            event.conn,
            partial(self._full, event),
        )

    def load(self, event: Said, worker: Worker, load: CheckpointLoad) -> None:
        """checkpoint.load.

        Raises:
            BadParams: a slot that can be none.
        """
        check_slot(load.slot)
        fresh_from = self.fresh_from(worker, load.slot)
        op = LoadState(self._state.outbox.ticket(), worker.name, fresh_from, load.generation, load.slot)
        self.read(op, partial(self._told, event, op), lambda fault, _: self._unavailable(event, fault), event.conn)

    def _told(self, event: Said, op: LoadState, answer: StateLoaded, _: float) -> None:
        outbox = self._state.outbox
        if answer.found == "sound":
            self.publish_loaded(self._state.workers.get(op.worker), answer, op.slot)
            outbox.reply(event.conn, event.call, state_of(answer))
        elif answer.found == "none":
            outbox.reply(event.conn, event.call, None)
        else:
            if op.generation is None:
                reason = why_unusable(op.worker, answer, op.slot)
            else:
                reason = why_not_given(op.worker, op.generation, answer, op.slot)
            outbox.refuse(event.conn, event.call, NO_CHECKPOINT, reason or f"no checkpoint of {op.worker}")

    def _full(self, event: Said, answer: SlotsFull) -> None:
        message = f"a worker has at most {MAX_SLOTS} slots; there are: {', '.join(answer.slots)}"
        self._state.outbox.refuse(event.conn, event.call, BAD_PARAMS, message, {"path": "slot"})

    def _unavailable(self, event: Said, fault: PersistFailed) -> None:
        error = storage_error(fault)
        self._state.outbox.refuse(event.conn, event.call, error.code, error.message, error.data)

    # ---- the latest state, written again with the progress since

    def begin(self, now: float) -> None:
        """Count `interval` from now on."""
        self._since = now

    def next_deadline(self) -> float | None:
        """When `due` has something to write."""
        return None if self._since is None else self._since + self._state.settings.checkpoint.interval

    def due(self, now: float) -> None:
        """`interval` may have passed."""
        deadline = self.next_deadline()
        if deadline is not None and now >= deadline:
            self.begin(now)
            for worker in self._state.workers.values():
                self.save_again(worker)

    def save_again(self, worker: Worker) -> None:
        """Write the worker's latest state once more, if it is small and items ended since it was written."""
        queue = self._state.groups[worker.group].queue
        ended = queue.ended.done + queue.ended.failed
        if worker.state is None or queue.image is None or worker.state_ended == ended:
            return
        worker.state_ended = ended

        def refused(_: PersistFailed) -> None:
            worker.state_ended = -1  # written again at the next occasion

        self.write(self.op_of(worker, *worker.state), lambda _: None, refused)

    # ---- inside

    def _saved(self, op: SaveState, answer: StateSaved) -> None:
        self._slo.checkpoint(answer.seconds)
        worker = self._state.workers.get(op.worker)
        if worker is not None and op.slot is None:
            worker.saved = (answer.generation, answer.saved_at)
        created = CheckpointCreated(answer.generation, answer.bytes, answer.seconds, op.worker, op.slot)
        self._state.publish(created, worker=worker)
        if answer.removed:
            deleted = CheckpointDeleted(answer.removed, f"retention keeps {op.retention}", op.slot)
            self._state.publish(deleted, worker=worker)

    def publish_loaded(self, worker: Worker | None, answer: StateLoaded, slot: str | None = None) -> None:
        """Tell which state a worker was given."""
        loaded = CheckpointLoaded(answer.generation, answer.schema, answer.saved_at, slot)
        self._state.publish(loaded, worker=worker)


def publish_damage(state: FleetState, worker: str, answer: StateLoaded) -> None:
    """Tell of every file that was found damaged."""
    for damage in answer.damage:
        state.publish(CheckpointCorrupted(damage.path, damage.reason), worker=state.workers.get(worker))
