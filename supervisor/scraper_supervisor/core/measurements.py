"""What the sampler measured of workers and browsers: values."""

from __future__ import annotations

from msgspec import Struct


class BrowserSample(Struct, frozen=True):
    """One browser as measured. Sizes are bytes of PSS, `age` is seconds, `pages` those opened since its start."""

    id: str
    pid: int
    memory: int | None
    age: float
    pages: int | None


class Sample(Struct, frozen=True):
    """One worker's tree as measured at `time`, monotonic seconds; None is unknown.

    `worker_memory` (PSS) and `rss` are bytes without the browsers; `cpu_percent` is the whole tree's since the sample
    before, 100 for one core.
    """

    time: float
    worker: str
    worker_memory: int | None
    rss: int | None
    cpu_percent: float | None
    processes: int
    browsers: tuple[BrowserSample, ...] = ()
