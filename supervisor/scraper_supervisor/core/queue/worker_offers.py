"""What workers offer: what can be no item is left out, the rest is written; and whether a source came to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scraper_supervisor.core.events import Refuse
from scraper_supervisor.core.formats.event_payloads import FailurePatternDetected
from scraper_supervisor.core.queue.item_calls import left_out, sort_entries, storage_error
from scraper_worker.protocol import Offered

if TYPE_CHECKING:
    from scraper_supervisor.core.events import PersistFailed
    from scraper_supervisor.core.ops.item_ops import Added
    from scraper_supervisor.core.outbox import Outbox
    from scraper_supervisor.core.queue.item_calls import Caller, Entries, RunRef
    from scraper_supervisor.core.queue.item_changes import ItemChanges
    from scraper_worker.protocol import ItemsOffer, WireEntry


class WorkerOffers:
    """The offers of one group's workers.

    Attributes:
        to_the_end: a worker of this run has offered its source to the end.
    """

    def __init__(self, outbox: Outbox, run: RunRef, changes: ItemChanges) -> None:
        self.to_the_end = False
        self._outbox = outbox
        self._run = run
        self._changes = changes

    def offer(self, caller: Caller, message: ItemsOffer) -> None:
        """Offer items; an entry that can be none is left out and told."""
        entries = self.sort(caller, message.items)
        last = not message.more and not self.to_the_end
        if not entries.items and not last:
            self._outbox.reply(caller.conn, caller.call, Offered(0, 0, entries.refused))
            return
        run_id = self._run.run_id

        def added(answer: Added) -> None:
            self.to_the_end = self.to_the_end or (last and self._run.run_id == run_id)
            self._outbox.reply(caller.conn, caller.call, Offered(len(answer.added), answer.known, entries.refused))

        def not_added(fault: PersistFailed) -> None:
            if caller.call is not None:
                self._outbox.commands.append(Refuse(caller.conn, caller.call, storage_error(fault)))

        self._changes.offer(entries.items, added, not_added, caller.conn, last=last)

    def sort(self, caller: Caller, offered: list[WireEntry]) -> Entries:
        """The items among what is offered; what can be none is told by an event."""
        entries = sort_entries(offered)
        if entries.bad:
            told = FailurePatternDetected(left_out(entries, len(offered)), None)
            self._outbox.publish(told, worker=caller.worker, group=self._run.group)
        return entries
