"""What the figures of `status` and `top` mean, as the help and docs/operations.md tell it."""

from __future__ import annotations

from typing import Final

LEGEND: Final = (
    ("STATE", "where the group or worker stands; a paused worker's process runs on, backoff waits for its next start"),
    ("PROGRESS", "how many of the run's items have ended, done or failed"),
    ("DONE, FAILED", "items of this run that ended so: of a group, or by a worker over all its incarnations"),
    ("LEFT", "items of this run that have not ended: pending, in flight, waiting or parked"),
    ("/MIN", "items done a minute, over the last minute"),
    ("ETA", "LEFT without what is parked, at the rate of /MIN; none while nothing is handed out"),
    ("RUN", "which pass over the group's items this is"),
    ("IN FLIGHT", "items in workers' hands"),
    ("WAITING", "items that are tried again, not before a time"),
    ("PARKED", "items that the abort policy has set aside; `items requeue --parked` takes them up again"),
    ("MEMORY", "PSS of the worker's processes without its browsers: shared pages are counted once"),
    ("BROWSERS", "PSS of its browsers together; their number before it where it is not one"),
    ("RESTARTS", "starts of the worker after the first, since the daemon's start"),
    ("RECYCLES", "browsers that the worker replaced between two items because it was asked to"),
    ("KILLS", "browsers that the supervisor killed: over a hard limit, overdue, or stuck in an item"),
    ("PID", "the number of the worker's process"),
    ("CPU", "of the worker with its browsers; 100% is one core"),
    ("PAGES", "pages that its living browsers have opened so far"),
    ("UP", "age of the worker's process"),
    ("availability", "worker-seconds running, as a share of those wanted (paused, draining and completed left out)"),
    ("recoveries", "deaths, hangs and lost browsers that were followed by progress; p90 and max: how long it took"),
    ("checkpoint p99", "the time in which 99% of the latest checkpoints were durable"),
    ("items lost", "items acknowledged as done that the ledger lacks; anything but 0 is a reason to call us"),
    ("-", "not known, or not there: never 0"),
)  # (figure, meaning)
