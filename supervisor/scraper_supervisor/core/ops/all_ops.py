"""All questions and all answers, as closed unions."""

from __future__ import annotations

from typing import TypeAlias

from scraper_supervisor.core.ops.import_ops import Imported, ImportOp, StateTaken
from scraper_supervisor.core.ops.item_ops import (
    Added,
    Changed,
    Concluded,
    Conclusion,
    Confirmed,
    Leased,
    LeaseLost,
    QueueOp,
    Reserved,
    WholeKeys,
)
from scraper_supervisor.core.ops.run_ops import Intents, LoadIntents, Probe, RunEnd, RunImage, RunOp, SetIntent
from scraper_supervisor.core.ops.state_ops import SlotsFull, StateLoaded, StateOp, StateSaved

LedgerOp: TypeAlias = QueueOp | ImportOp | RunOp | SetIntent | LoadIntents | Probe


Op: TypeAlias = LedgerOp | StateOp


Answer: TypeAlias = (
    RunImage
    | RunEnd
    | Added
    | Concluded
    | LeaseLost
    | Leased
    | Confirmed
    | Conclusion
    | Reserved
    | Changed
    | WholeKeys
    | Intents
    | Imported
    | StateTaken
    | StateSaved
    | SlotsFull
    | StateLoaded
    | None
)
