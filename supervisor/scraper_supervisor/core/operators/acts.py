"""Which requests are an operator's acts, and how `operator_acted` tells of one; the same with a daemon and without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scraper_supervisor.core.formats.event_payloads import OperatorActed

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_KEYS: Final = 10  # of those that a request names
COMMANDS: Final = {
    **{name: name for name in ("pause", "resume", "drain", "start", "restart", "stop", "recycle", "reload")},
    "items.add": "items add",
    "items.requeue": "items requeue",
    "items.cancel": "items cancel",
    "items.import.finish": "items import",
    "checkpoint.restore": "checkpoint restore",
    "abort.clear": "abort clear",
}  # request → command, as it is typed; what is not here only looks


def act(
    method: str,
    names: Sequence[str],
    uid: int,
    *,
    keys: Sequence[str] = (),
    fresh: bool = False,
    failed: bool = False,
    parked: bool = False,
    generation: int | None = None,
    slot: str | None = None,
) -> OperatorActed | None:
    """What is told of a request; None of one that only looks.

    Args:
        method: the request's.
        names: of groups, workers or whatever it concerns.
        uid: the operator's user number.
        keys: of items.
        fresh: an option of the command, as the others.
        failed: an option.
        parked: an option.
        generation: an option.
        slot: an option.
    """
    command = COMMANDS.get(method)
    if command is None:
        return None
    options = [f"--{name}" for name, given in (("fresh", fresh), ("failed", failed), ("parked", parked)) if given]
    options += [] if generation is None else [f"--generation {generation}"]
    options += [] if slot is None else [f"--slot {slot}"]
    return OperatorActed(command, tuple(names), uid, tuple(options), tuple(keys[:MOST_KEYS]), len(keys) or None)
