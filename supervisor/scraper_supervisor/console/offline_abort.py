"""What a daemon that is gone had aborted, and why; and another chance for it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from scraper_supervisor.console.context import Refused, clean
from scraper_supervisor.console.offline import goes_on, locked, no_ledger
from scraper_supervisor.console.offline_events import acted
from scraper_supervisor.store.event_log import EVENTS_FILE, exists, read_events
from scraper_supervisor.store.opening import is_there, location, open_for_reading, open_for_writing

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import Settings
    from scraper_supervisor.store.config_file import Place
    from scraper_supervisor.store.opening import LedgerLocation
    from scraper_supervisor.store.ports import RunInfo

_FIGURES: Final = ("items", "failures", "rate", "limit", "reason")
_TOLD: Final = frozenset({"supervisor_started", "abort_triggered", "abort_evaluated"})

_Key = tuple[str, str]  # scope, key


def last_abort(place: Place, settings: Settings) -> dict[str, Any]:
    """How the last daemon left the abort policy, as `status --json` has it under `abort`.

    The ledger says which runs are aborted; why is in the event log, as long as that is kept.

    Raises:
        Refused: there is neither a ledger nor an event log.
        LedgerUnusable: the ledger does not open.
        OSError: one of them can't be read.
    """
    where = location(place)
    told = _told(where)
    aborted = [name for name, run in _newest_runs(where).items() if run.state == "aborted"]
    scopes = [scope for (kind, key), scope in told.items() if key in aborted or (kind == "global" and aborted)]
    explained = {scope["key"] for scope in scopes}
    everything = "" in explained
    unexplained = [] if everything else [name for name in aborted if name not in explained]
    scopes += [
        _scope("group", name, None, {"reason": "the event log does not say why any more"}) for name in unexplained
    ]
    state = "aborted" if scopes else "normal"
    return {"state": state, "window_seconds": settings.abort.window, "scopes": scopes}


def _told(where: LedgerLocation) -> dict[_Key, dict[str, Any]]:
    """The aborts that the event log tells of, none of which is taken back later in it."""
    path = where.state_dir / EVENTS_FILE
    scopes: dict[_Key, dict[str, Any]] = {}
    for event in read_events(path, only=_TOLD) if exists(path) else ():
        data: Any = event.data if isinstance(event.data, dict) else {}
        whose: _Key = (str(data.get("scope")), str(data.get("key")))
        if event.event == "supervisor_started":  # everything gets another chance
            scopes.clear()
        elif event.event == "abort_triggered":
            scopes[whose] = _scope(*whose, event.time, data)
        elif event.event == "abort_evaluated" and data.get("action") == "cleared":
            scopes.pop(whose, None)
    return scopes


def _newest_runs(where: LedgerLocation) -> dict[str, RunInfo]:
    try:
        with open_for_reading(where) as reader:
            return {name: reader.runs(name)[0] for name in reader.groups()}
    except FileNotFoundError:
        raise Refused(f"{where}: there is no ledger yet, so nothing was aborted") from None


def _scope(kind: str, key: str, since: str | None, data: dict[str, Any]) -> dict[str, Any]:
    named = {"scope": kind, "key": key, "group": key if kind == "group" else None}
    known = {name: data.get(name) for name in _FIGURES}
    return named | {"state": "aborted", "since": since, "next_probe_at": None} | known


def clear_offline(place: Place, settings: Settings, names: tuple[str, ...]) -> dict[str, Any]:
    """Let aborted runs go on when the daemon is started, their parked items pending.

    Args:
        place: where the folders are.
        settings: the configuration, as far as it is valid.
        names: of groups; none for all.

    Returns:
        What the daemon would answer.

    Raises:
        Refused: there is no ledger, or no group of that name in it; or the disk does not take it.
        Locked: another process uses the state folder.
        LedgerUnusable: the ledger does not open.
        OSError: the state folder can't be used.
    """
    where = location(place)
    if not is_there(where):
        raise Refused(no_ledger(place))
    with contextlib.closing(locked(where.state_dir, "abort clear")):
        runs = _newest_runs(where)
        for name in names:
            if name not in runs and name not in settings.groups:
                known = ", ".join(sorted({*runs, *settings.groups})) or "none"
                raise Refused(f"no group is named {clean(name)!r}; known are: {known}")
        aborted = [run for name, run in runs.items() if run.state == "aborted" and (not names or name in names)]
        if aborted:
            with contextlib.closing(open_for_writing(where)) as ledger:
                for run in aborted:
                    goes_on(ledger, run.group, run.run_id)
        acted(where.state_dir, settings, "abort.clear", names)
    return {"cleared": [{"scope": "group", "key": run.group, "group": run.group} for run in aborted]}
