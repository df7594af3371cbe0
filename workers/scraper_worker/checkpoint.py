"""A worker's own state, kept by the supervisor, and the migrations that bring an old state up to date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from msgspec import Raw

from scraper_worker.errors import StateMismatch, UsageError
from scraper_worker.protocol import CheckpointSave

if TYPE_CHECKING:
    from scraper_worker.connection.link import Link

State: TypeAlias = dict[str, Any]
Migration: TypeAlias = Callable[[State], State]

DEFAULT_SCHEMA: Final = ("state", 1)


class Checkpoint:
    """Save and load the state of this worker.

    Most workers need none: the supervisor keeps the queue, its outcomes and the results. State is for what is the
    worker's own, such as a session or a cursor.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._schema: tuple[str, int] | None = None
        self._migrations: dict[tuple[str, int], Migration] = {}

    def schema(self, name: str, version: int) -> None:
        """Say which shape of state this code reads and writes.

        Args:
            name: what the state is, without a slash.
            version: 1 or more; raise it when the shape changes, and register a migration from the one before.

        Raises:
            UsageError: the name or the version can't be a schema's.
        """
        if not name or "/" in name or version < 1:
            raise UsageError(f'a schema is a name without "/" and a version from 1 on, not {name!r} and {version}')
        self._schema = (name, version)

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

    async def save(self, state: Mapping[str, Any], *, schema: str | None = None) -> int:
        """Write the state durably, and return its generation.

        Args:
            state: any JSON object.
            schema: "NAME/INTEGER"; the registered one if None, else "state/1".

        Raises:
            UsageError: the state is no JSON object, or the schema is not of that form.
            CallError: the supervisor can't take it, as when it is over max_state.
        """
        name, version = self._parse(schema) if schema is not None else self._schema or DEFAULT_SCHEMA
        if not isinstance(state, Mapping):
            raise UsageError(f"a state is a JSON object (a dict), not {type(state).__name__}")
        try:
            encoded = Raw(msgspec.json.encode(state))
        except (TypeError, ValueError) as error:
            raise UsageError(f"the state is not JSON: {error}") from None
        return (await self._link.save(CheckpointSave(f"{name}/{version}", encoded))).generation

    async def load(self, generation: int | None = None) -> State | None:
        """The newest sound state, or that of `generation`, migrated to the registered schema; None if there is none.

        Raises:
            StateMismatch: no chain of migrations leads from the saved state to the registered schema. The saved state
                stays as it is.
            CallError: there is no such generation, or it is damaged.
        """
        found = await self._link.load(generation)
        if found is None:
            return None
        state: State = msgspec.json.decode(found.state)
        return self.migrate(state, found.schema)

    def migrate(self, state: State, schema: str) -> State:
        """`state` of `schema` ("NAME/INTEGER") as one of the registered schema.

        Raises:
            StateMismatch: no chain of migrations leads there.
        """
        if self._schema is None:
            return state
        name, version = self._parse(schema)
        wanted_name, wanted = self._schema
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
