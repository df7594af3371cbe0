"""A worker's own state, kept by the supervisor, and the migrations that bring an old state up to date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from msgspec import Raw

from scraper_worker.errors import StateMismatch, UsageError
from scraper_worker.protocol import CheckpointSave, is_slot

if TYPE_CHECKING:
    from scraper_worker.connection.link import Link

State: TypeAlias = dict[str, Any]
Migration: TypeAlias = Callable[[State], State]

DEFAULT_SCHEMA: Final = ("state", 1)


class Checkpoint:
    """Save and load the state of this worker.

    Most workers need none: the supervisor keeps the queue, its outcomes and the results. State is for what is the
    worker's own, such as a cursor. Beside the main state a worker may keep up to 16 others, each in a slot of its own.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._schemas: dict[str | None, tuple[str, int]] = {}  # by slot
        self._migrations: dict[tuple[str, int], Migration] = {}

    def schema(self, name: str, version: int, *, slot: str | None = None) -> None:
        """Say which shape of state this code reads and writes.

        Args:
            name: what the state is, without a slash.
            version: 1 or more; raise it when the shape changes, and register a migration from the one before.
            slot: of which slot; None for the main state.

        Raises:
            UsageError: the name or the version can't be a schema's, or the slot's name a slot's.
        """
        _check_slot(slot)
        if not name or "/" in name or version < 1:
            raise UsageError(f'a schema is a name without "/" and a version from 1 on, not {name!r} and {version}')
        self._schemas[slot] = (name, version)

    def migration(self, name: str, version: int) -> Callable[[Migration], Migration]:
        """Register, as a decorator, the function that turns a state of `version` into one of `version` + 1.

        Raises:
            UsageError: there is such a migration already.
        """

        def register(function: Migration) -> Migration:
            if (name, version) in self._migrations:
                raise UsageError(f"{name}/{version} has a migration already: {self._migrations[name, version]!r}")
            self._migrations[name, version] = function
            return function

        return register

    async def save(self, state: Mapping[str, Any], *, schema: str | None = None, slot: str | None = None) -> int:
        """Write the state durably, and return its generation.

        Args:
            state: any JSON object.
            schema: "NAME/INTEGER"; the registered one if None, else "state/1".
            slot: where to, `[a-z][a-z0-9-]{0,15}`; None for the main state.

        Raises:
            UsageError: the state is no JSON object, or schema or slot are not of that form.
            CallError: the supervisor can't take it, as when it is over max_state, or one slot too many.
        """
        _check_slot(slot)
        name, version = self._parse(schema) if schema is not None else self._schemas.get(slot, DEFAULT_SCHEMA)
        if not isinstance(state, Mapping):
            raise UsageError(f"a state is a JSON object (a dict), not {type(state).__name__}")
        try:
            encoded = Raw(msgspec.json.encode(state))
        except (TypeError, ValueError) as error:
            raise UsageError(f"the state is not JSON: {error}") from None
        return (await self._link.save(CheckpointSave(f"{name}/{version}", encoded, slot))).generation

    async def load(self, generation: int | None = None, *, slot: str | None = None) -> State | None:
        """The newest sound state, or that of `generation`, migrated to the registered schema; None if there is none.

        Args:
            generation: which one; the newest if None.
            slot: from which slot; None for the main state.

        Raises:
            UsageError: no slot can have that name.
            StateMismatch: no chain of migrations leads from the saved state to the registered schema. The saved state
                stays as it is.
            CallError: there is no such generation, or it is damaged. If all of a slot are, this is raised once, and
                then the slot is empty.
        """
        _check_slot(slot)
        found = await self._link.load(generation, slot)
        if found is None:
            return None
        state: State = msgspec.json.decode(found.state)
        return self.migrate(state, found.schema, slot=slot)

    def migrate(self, state: State, schema: str, *, slot: str | None = None) -> State:
        """`state` of `schema` ("NAME/INTEGER") as one of the schema that is registered (for the slot).

        Raises:
            StateMismatch: no chain of migrations leads there.
        """
        if slot not in self._schemas:
            return state
        name, version = self._parse(schema)
        wanted_name, wanted = self._schemas[slot]
        here = f"the saved state is {schema}, this code reads {wanted_name}/{wanted}"
        if name != wanted_name:
            raise StateMismatch(
                f"{here}: load it under its own name, or restore another generation; nothing was changed"
            )
        if version > wanted:
            raise StateMismatch(
                f"{here}: newer code wrote it; run that, or restore an older generation; nothing was changed"
            )
        while version < wanted:
            step = self._migrations.get((name, version))
            if step is None:
                hint = f'register one with @worker.checkpoint.migration("{name}", {version})'
                raise StateMismatch(
                    f"{here}, and no migration leads from version {version}: {hint}; nothing was changed"
                )
            state = step(state)
            if not isinstance(state, dict):
                kind = type(state).__name__  # type: ignore[unreachable]  # a migration is the user's, and may return anything
                raise StateMismatch(f"the migration from {name}/{version} returned {kind} instead of a dict")
            version += 1
        return state

    @staticmethod
    def _parse(schema: str) -> tuple[str, int]:
        name, slash, version = schema.rpartition("/")
        if not slash or not name or not (version.isascii() and version.isdigit()):
            raise UsageError(f'a schema is "NAME/INTEGER", not {schema!r}')
        return name, int(version)


def _check_slot(slot: str | None) -> None:
    if slot is not None and not is_slot(slot):
        raise UsageError(f'a slot is named [a-z][a-z0-9-]{{0,15}}, and not "corrupt": {slot!r} can be none')
