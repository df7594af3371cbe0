"""Workers' saved states: asked to be written or read, and what is answered when they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.calls import storage_error
from scraper_supervisor.core.records import LoadState, SaveState, StateLoaded, StateSaved
from scraper_worker.protocol import (
    NO_CHECKPOINT,
    STORAGE_UNAVAILABLE,
    TOO_LARGE,
    BadParams,
    CheckpointSave,
    CheckpointState,
    Saved,
)

if TYPE_CHECKING:
    from scraper_supervisor.core.events import Said
    from scraper_supervisor.core.lifecycle import Lifecycle
    from scraper_supervisor.core.slo import Slo
    from scraper_supervisor.core.state import FleetState, Worker

SMALL_STATE: Final = 1024 * 1024  # bytes; larger states are not kept to be written again on interval


def state_of(answer: StateLoaded) -> CheckpointState:
    """A sound state, as workers are told of it."""
    return CheckpointState(answer.generation, answer.schema, answer.saved_at, answer.state)


def why_unusable(worker: str, answer: StateLoaded) -> str | None:
    """Why a worker must not start from what was found, and the remedy; None if it may."""
    if answer.found == "newer":
        return f"checkpoint {answer.generation} of {worker} cannot be used: {answer.reason}"
    if answer.found == "damaged":
        group = worker.rpartition("-")[0]
        return (
            f"every checkpoint of {worker} is damaged and was moved to corrupt/; put a sound one in their place "
            f"and use 'checkpoint restore {worker} --generation N', or begin anew with 'start {group} --fresh'"
        )
    return None


def why_not_given(worker: str, generation: int, answer: StateLoaded) -> str | None:
    """Why a certain generation cannot be had, and which there are; None if it can."""
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


class Checkpoints:
    """Serves checkpoint.save and checkpoint.load."""

    def __init__(self, state: FleetState, lifecycle: Lifecycle, slo: Slo) -> None:
        self._state = state
        self._lifecycle = lifecycle
        self._slo = slo
        self._calls: dict[int, tuple[int, int | None]] = {}  # ticket → (conn, call)

    def owes(self, conn: int) -> bool:
        """Whether a call of this connection waits for the disk."""
        return any(caller[0] == conn for caller in self._calls.values())

    def save(self, event: Said, worker: Worker, save: CheckpointSave) -> None:
        """checkpoint.save.

        Raises:
            BadParams: no schema or no object.
        """
        name, _, version = save.schema.rpartition("/")
        if not name or not (version.isascii() and version.isdecimal()):
            raise BadParams("schema", f'expected "NAME/INTEGER", got {save.schema!r}')
        text = memoryview(save.state)  # it may be large: no copy is made of it
        if text[0] != ord("{"):
            raise BadParams("state", "expected an object")
        size, limit = text.nbytes, self._state.settings.checkpoint.max_state
        if size > limit:
            message = f"the state has {size} bytes, over max_state of {limit}"
            self._state.refuse(event.conn, event.call, TOO_LARGE, message, {"path": "state", "limit": limit})
            return
        worker.state = (save.schema, save.state) if size <= SMALL_STATE else None
        group = self._state.groups[worker.group]
        worker.state_ended = group.queue.done + group.queue.failed
        op = self._lifecycle.state_op(worker, save.schema, save.state)
        self._calls[op.ticket] = (event.conn, event.call)
        self._state.persist(op)

    def load(self, event: Said, worker: Worker, generation: int | None) -> None:
        """checkpoint.load."""
        op = LoadState(self._state.ticket(), worker.name, self.fresh_from(worker), generation)
        self._calls[op.ticket] = (event.conn, event.call)
        self._state.persist(op)

    def fresh_from(self, worker: Worker) -> int:
        """The first run whose states still count."""
        image = self._state.groups[worker.group].queue.image
        return 0 if image is None else image.fresh_from

    def saved(self, op: SaveState, answer: StateSaved) -> None:
        """A state is durable."""
        self._state.saves.discard(op.ticket)
        self._slo.checkpoint(answer.seconds)
        worker = self._state.workers.get(op.worker)
        if worker is not None:
            worker.saved = (answer.generation, answer.saved_at)
        self._state.publish(
            "checkpoint_created",
            "debug",
            "checkpoints",
            worker=worker,
            generation=answer.generation,
            bytes=answer.bytes,
            seconds=answer.seconds,
            checkpoint_of=op.worker,
        )
        if answer.removed:
            self._state.publish(
                "checkpoint_deleted",
                "debug",
                "checkpoints",
                worker=worker,
                generations=answer.removed,
                reason=f"retention keeps {op.retention}",
            )
        caller = self._calls.pop(op.ticket, None)
        if caller is not None:
            self._state.reply(*caller, Saved(answer.generation, answer.sha256))

    def loaded(self, op: LoadState, answer: StateLoaded) -> None:
        """A state was read for checkpoint.load."""
        conn, call = self._calls.pop(op.ticket, (0, None))
        if answer.found == "sound":
            self.publish_loaded(self._state.workers.get(op.worker), answer)
            self._state.reply(conn, call, state_of(answer))
        elif answer.found == "none":
            self._state.reply(conn, call, None)
        else:
            if op.generation is None:
                reason = why_unusable(op.worker, answer)
            else:
                reason = why_not_given(op.worker, op.generation, answer)
            self._state.refuse(conn, call, NO_CHECKPOINT, reason or f"no checkpoint of {op.worker}")

    def failed(self, op: SaveState | LoadState, errno: int, message: str) -> None:
        """A state could not be written or read: the caller is told to come again."""
        self._state.saves.discard(op.ticket)
        error = storage_error(errno, message)
        caller = self._calls.pop(op.ticket, None)
        if caller is not None:
            self._state.refuse(*caller, STORAGE_UNAVAILABLE, error.message, error.data)
        elif isinstance(op, SaveState) and op.worker in self._state.workers:
            self._state.workers[op.worker].state_ended = -1  # written again at the next occasion

    def publish_damage(self, worker: str, answer: StateLoaded) -> None:
        """Tell of every file that was found damaged."""
        for damage in answer.damage:
            self._state.publish(
                "checkpoint_corrupted",
                "error",
                "checkpoints",
                worker=self._state.workers.get(worker),
                path=damage.path,
                reason=damage.reason,
            )

    def publish_loaded(self, worker: Worker | None, answer: StateLoaded) -> None:
        """Tell which state a worker was given."""
        self._state.publish(
            "checkpoint_loaded",
            "info",
            "checkpoints",
            worker=worker,
            generation=answer.generation,
            schema=answer.schema,
            saved_at=answer.saved_at,
        )
