"""Every setting has one entry that says who reads it, and is read there, or nowhere."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pytest
from msgspec import Struct

import scraper_supervisor
from scraper_supervisor.core.config.keys import Flag, Whole, WorkerCount
from scraper_supervisor.core.config.settings import GROUP_TABLES, NAMED_TABLES, TABLES
from scraper_supervisor.core.config.uses import NOT_YET, REFUSED, USES, Use, fields_of, in_place

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[3]
PACKAGE = Path(scraper_supervisor.__file__).parent
THE_SETTINGS_OWN = {
    f"core/config/{name}.py" for name in ("settings", "parser", "values", "advice", "uses", "reload_plan")
}
EVERY_TABLE = TABLES | NAMED_TABLES | {f"workers.{table}": TABLES[table] for table in GROUP_TABLES}
WHOLE = {table for table in TABLES if all(use.reader is None for use in USES[table].values())}
"""Tables of which no key is read yet: nothing may even touch them."""


def gaps(tables: Mapping[str, type[Struct]], uses: Mapping[str, Mapping[str, Use]]) -> set[str]:
    """Keys without an entry and entries without a key."""
    keys = {f"{name}.{key}" for name, table in tables.items() for key in fields_of(table)}
    return keys ^ {f"{name}.{key}" for name, entries in uses.items() for key in entries}


def test_every_key_has_an_entry_and_every_entry_a_key() -> None:
    assert gaps(EVERY_TABLE, USES) == set()


class Made(Struct):
    known: Annotated[bool, Flag("Told.")] = True
    forgotten: Annotated[int, Whole("Not told.")] = 1
    many: Annotated[int, WorkerCount("A range.", upper="many_max")] = 1
    many_max: int | None = None
    no_key: int = 0


def test_a_key_without_an_entry_and_an_entry_without_a_key_are_gaps() -> None:
    use = Use("daemon/app.py", in_place("at once"))
    found = gaps({"made": Made}, {"made": {"known": use, "many": use, "gone": use}, "lost": {"x": use}})
    assert found == {"made.forgotten", "made.many_max", "made.gone", "lost.x"}


@pytest.mark.parametrize(
    ("table", "key", "use"), [(table, key, use) for table, uses in USES.items() for key, use in uses.items()]
)
def test_an_entry_makes_sense(table: str, key: str, use: Use) -> None:
    assert (use.doubt is None) == (use.reader is not None)
    if use.reader is None:
        assert use.change.effect in ("not used yet", "not for a group", "refused")
    else:
        assert use.change.effect in ("in place", "rolling restart", "resize", "refused")
    assert use.change is not NOT_YET or use.reader is None
    assert use.change is not REFUSED or table == "supervisor"


def test_the_page_of_what_a_reload_does_is_not_stale() -> None:
    spec = importlib.util.spec_from_file_location("draw_reload", ROOT / "scripts" / "draw_reload.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text() == script.page(), "run scripts/draw_reload.py"


# ---- read where the entry says, or nowhere ---------------------------------------------------------------------------


READ = [(key, use.reader) for table in (*TABLES, *NAMED_TABLES) for key, use in USES[table].items() if use.reader]
UNREAD = [(table, key) for table in (*TABLES, *NAMED_TABLES) for key, use in USES[table].items() if use.reader is None]


@cache
def accesses(file: str) -> frozenset[tuple[str, str]]:
    """Every attribute that a file reads, as (what it is read of, its name)."""
    return attributes((PACKAGE / file).read_text())


def attributes(source: str) -> frozenset[tuple[str, str]]:
    tree = ast.parse(source)
    return frozenset((ast.unparse(node.value), node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def reads_unused(found: frozenset[tuple[str, str]], table: str, key: str) -> bool:
    """Whether one of these is a key that nothing should read: of something named as its table or as settings are.

    Of a name that a key in use bears too, only its own table's counts.
    """
    home = "group" if table == "workers" else table
    owners = (home,) if key in {name for name, _ in READ} else (home, "settings", "limits", "policy")
    return any(name == key and of.rpartition(".")[2].lstrip("_") in owners for of, name in found) or (
        table in WHOLE and any(name == table and of.endswith("settings") for of, name in found)
    )


@pytest.mark.parametrize(("key", "reader"), READ)
def test_a_key_is_read_where_its_entry_says(key: str, reader: str) -> None:
    assert key in {name for _, name in accesses(reader)}
    assert reader not in THE_SETTINGS_OWN or key == "env_file", "to parse it is not to use it"


@pytest.mark.parametrize(("table", "key"), UNREAD)
def test_a_key_that_is_not_used_yet_is_read_nowhere(table: str, key: str) -> None:
    files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")} - THE_SETTINGS_OWN
    files = {file for file in files if not file.startswith("core/policy/holds/")}  # the daemon does not ask it yet
    assert not [file for file in sorted(files) if reads_unused(accesses(file), table, key)]


@pytest.mark.parametrize(
    ("source", "table", "key"),
    [
        ("self._settings.supervisor.metrics_listen", "supervisor", "metrics_listen"),
        ("group.settings.count_max", "workers", "count_max"),
        ("limits.leak_forecast", "resources", "leak_forecast"),
        ("state.settings.abort.parked", "abort", "parked"),
        ("kept = loaded.settings.evidence", "evidence", "max_size"),
    ],
)
def test_a_use_of_a_key_that_claims_none_is_seen(source: str, table: str, key: str) -> None:
    assert reads_unused(attributes(source), table, key)
    assert not reads_unused(attributes("queue.parked + storage.ledger.room"), table, key)
