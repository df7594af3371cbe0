"""Limits of workers, browsers and the host: gauges weighted by time, what follows from a sample, and recycle slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from scraper_supervisor.core.config.settings import ResourceSettings
from scraper_supervisor.core.measurements import BrowserSample, Sample
from scraper_supervisor.core.policy.limits import (
    HOST_PAUSE,
    Breach,
    EndBrowser,
    EndWorker,
    Gauge,
    HostGauge,
    Recovered,
    RecycleBrowser,
    RecycleSlots,
    ResourceWatch,
    RestartWorker,
    recycle_limit,
    step,
)

MS = 0.001
MIB = 1 << 20
GIB = 1 << 30


def browser(id_="b1", memory=100 * MIB, age=10.0, pages=1):
    return BrowserSample(id_, 4711, memory, age, pages)


def sample(*browsers, memory=100 * MIB, rss=200 * MIB, cpu=None, worker="m-0", time=0.0):
    return Sample(time, worker, memory, rss, cpu, 8, browsers)


# ---- gauges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "news"),
    [
        pytest.param([100, 101, 101], [None, True, None], id="over, not at, the limit; told once"),
        pytest.param([101, 99, 90, 89.9, 89], [True, None, None, False, None], id="recovery below 90%"),
        pytest.param([101, None, 101], [True, None, None], id="unknown is no news"),
        pytest.param([89, None, 50], [None, None, None], id="nothing ever wrong"),
        pytest.param([101, 80, 101], [True, False, True], id="again"),
    ],
)
def test_a_gauge_without_sustain(values, news):
    gauge, seen = Gauge(), []
    for now, value in enumerate(values):
        gauge, one = step(gauge, value, float(now), 100.0)
        seen.append(one)
    assert seen == news


@pytest.mark.parametrize(("late", "news"), [(-MS, None), (0.0, True), (MS, True)])
def test_a_sustained_gauge_breaks_to_the_millisecond(late, news):
    gauge, _ = step(Gauge(), 150.0, 0.0, 100.0, 60.0)
    assert step(gauge, 150.0, 60.0 + late, 100.0, 60.0)[1] is news


def test_a_dip_takes_back_its_own_time_and_no_more():
    gauge = Gauge(charge=0.0, at=0.0)
    for now, value in ((50.0, 150.0), (60.0, 10.0), (79.0, 150.0)):
        gauge, news = step(gauge, value, now, 100.0, 60.0)
        assert news is None
    assert step(gauge, 150.0, 80.0 - MS, 100.0, 60.0)[1] is None
    assert step(gauge, 150.0, 80.0, 100.0, 60.0)[1] is True


@given(
    signal=st.lists(st.tuples(st.integers(1, 40), st.sampled_from([10.0, 95.0, 150.0, None])), min_size=1, max_size=30),
    parts=st.integers(2, 8),
)
def test_sampling_more_often_changes_nothing(signal, parts):
    """Whole seconds in powers of two keep the sums exact; what counts is the state after each stretch."""
    coarse = fine = Gauge(at=0.0)
    now = 0.0
    for seconds, value in signal:
        coarse, _ = step(coarse, value, now + seconds, 100.0, 60.0)
        for part in range(1, parts + 1):
            fine, _ = step(fine, value, now + seconds * part / parts, 100.0, 60.0)
        now += seconds
        assert fine.broken == coarse.broken
        assert fine.charge == pytest.approx(coarse.charge)


# ---- what follows from a sample ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "settings", "expected"),
    [
        pytest.param(sample(browser()), {}, [], id="all well"),
        pytest.param(
            sample(browser(memory=1331 * MIB)),
            {},
            [
                Breach("browser_memory", GIB, 1331 * MIB, "m-0", "b1"),
                RecycleBrowser("m-0", "b1", "browser_memory", "browser b1 uses 1.3 GiB, over browser_memory 1 GiB"),
            ],
            id="browser_memory",
        ),
        pytest.param(
            sample(browser(memory=3 * GIB)),
            {"browser_memory": None},
            [
                Breach("browser_memory_max", 2 * GIB, 3 * GIB, "m-0", "b1"),
                EndBrowser("m-0", "b1", "browser b1 uses 3 GiB, over browser_memory_max 2 GiB"),
            ],
            id="browser_memory_max",
        ),
        pytest.param(
            sample(browser(memory=3 * GIB)),
            {},
            [
                Breach("browser_memory", GIB, 3 * GIB, "m-0", "b1"),
                Breach("browser_memory_max", 2 * GIB, 3 * GIB, "m-0", "b1"),
                EndBrowser("m-0", "b1", "browser b1 uses 3 GiB, over browser_memory_max 2 GiB"),
            ],
            id="both at once: only the kill",
        ),
        pytest.param(
            sample(browser(memory=9 * GIB)), {"browser_memory": None, "browser_memory_max": None}, [], id="off"
        ),
        pytest.param(
            sample(browser(age=7200.0)),
            {},
            [RecycleBrowser("m-0", "b1", "browser_lifetime", "browser b1 has run for 7200 s, browser_lifetime is 2h")],
            id="browser_lifetime",
        ),
        pytest.param(sample(browser(age=7200.0 - MS)), {}, [], id="a millisecond younger"),
        pytest.param(sample(browser(age=1e6)), {"browser_lifetime": None}, [], id="browser_lifetime off"),
        pytest.param(
            sample(browser(pages=50)),
            {"browser_pages": 50},
            [RecycleBrowser("m-0", "b1", "browser_pages", "browser b1 has opened 50 pages, browser_pages is 50")],
            id="browser_pages",
        ),
        pytest.param(sample(browser(pages=None)), {"browser_pages": 1}, [], id="browser_pages unknown"),
        pytest.param(
            sample(memory=1536 * MIB),
            {},
            [
                Breach("worker_memory", GIB, 1536 * MIB, "m-0"),
                RestartWorker("m-0", "worker m-0 without its browsers uses 1.5 GiB, over worker_memory 1 GiB"),
            ],
            id="worker_memory",
        ),
        pytest.param(
            sample(memory=3 * GIB),
            {},
            [
                Breach("worker_memory_max", 2 * GIB, 3 * GIB, "m-0"),
                EndWorker("m-0", "worker m-0 without its browsers uses 3 GiB, over worker_memory_max 2 GiB"),
                Breach("worker_memory", GIB, 3 * GIB, "m-0"),
            ],
            id="worker_memory_max: only the kill",
        ),
        pytest.param(sample(memory=None, rss=5 * GIB), {}, [], id="RSS over a limit proves nothing"),
        pytest.param(sample(browser(memory=None), memory=None, rss=None), {}, [], id="nothing known"),
    ],
)
def test_one_sample(one, settings, expected):
    assert ResourceWatch().observe(one, ResourceSettings(**settings), 0.0) == expected


def test_nothing_is_asked_for_twice_and_a_kill_may_follow_a_recycle():
    watch, settings = ResourceWatch(), ResourceSettings()
    kinds = []
    for now, gib in enumerate((1.5, 1.5, 0.5, 1.5, 2.5, 2.5, 0.5, 2.5)):
        kinds.append(
            [type(a).__name__ for a in watch.observe(sample(browser(memory=int(gib * GIB))), settings, float(now))]
        )
    assert kinds == [
        ["Breach", "RecycleBrowser"],
        [],
        ["Recovered"],
        ["Breach"],
        ["Breach", "EndBrowser"],
        [],
        ["Recovered", "Recovered"],
        ["Breach", "Breach"],
    ]


def test_a_browser_that_is_gone_recovers_and_its_successor_starts_clean():
    watch, settings = ResourceWatch(), ResourceSettings()
    watch.observe(sample(browser(memory=2 * GIB)), settings, 0.0)
    assert watch.observe(sample(browser("b2")), settings, 1.0) == [Recovered("browser_memory", GIB, None, "m-0", "b1")]
    assert RecycleBrowser in map(type, watch.observe(sample(browser("b2", memory=2 * GIB)), settings, 2.0))


def test_an_rss_below_the_limit_proves_recovery():
    watch, settings = ResourceWatch(), ResourceSettings()
    watch.observe(sample(memory=1536 * MIB), settings, 0.0)
    news = watch.observe(sample(memory=None, rss=500 * MIB), settings, 1.0)
    assert news == [Recovered("worker_memory", GIB, 500 * MIB, "m-0")]


def test_a_forgotten_worker_is_asked_anew():
    watch, settings = ResourceWatch(), ResourceSettings()
    first = watch.observe(sample(memory=3 * GIB), settings, 0.0)
    watch.forget("m-0")
    assert watch.observe(sample(memory=3 * GIB), settings, 1.0) == first


def test_workers_are_kept_apart():
    watch, settings = ResourceWatch(), ResourceSettings()
    for worker in ("m-0", "m-1"):
        actions = watch.observe(sample(browser(memory=2 * GIB - 1), worker=worker), settings, 0.0)
        assert [a.worker for a in actions] == [worker, worker]


def test_new_limits_count_from_the_next_sample():
    watch = ResourceWatch()
    one = sample(browser(memory=600 * MIB))
    assert watch.observe(one, ResourceSettings(), 0.0) == []
    lowered = watch.observe(one, ResourceSettings(browser_memory=500 * MIB), 1.0)
    assert list(map(type, lowered)) == [Breach, RecycleBrowser]
    assert watch.observe(one, ResourceSettings(browser_memory=None), 2.0) == [
        Recovered("browser_memory", None, 600 * MIB, "m-0", "b1")
    ]


def test_sustained_cpu_recycles_the_largest_browser_once_and_begins_anew_when_it_is_gone():
    watch, settings = ResourceWatch(), ResourceSettings(cpu_percent=150.0)
    two = (browser("b1"), browser("b2", memory=200 * MIB))
    assert watch.observe(sample(*two, cpu=180.0), settings, 0.0) == []
    assert watch.observe(sample(*two, cpu=180.0), settings, 60.0 - MS) == []
    breach, recycle = watch.observe(sample(*two, cpu=180.0), settings, 60.0)
    assert breach == Breach("cpu_percent", 150.0, 180.0, "m-0")
    assert recycle.browser == "b2"
    assert recycle.reason == "worker m-0 and its browsers use 180% CPU, over cpu_percent 150 for cpu_sustained 1m"
    assert watch.observe(sample(*two, cpu=180.0), settings, 300.0) == []
    assert watch.observe(sample(two[0], cpu=180.0), settings, 301.0) == [Recovered("cpu_percent", 150.0, None, "m-0")]
    assert watch.observe(sample(two[0], cpu=180.0), settings, 360.0) == []
    assert watch.observe(sample(two[0], cpu=180.0), settings, 361.0)[1].browser == "b1"


def test_sustained_cpu_without_a_browser_restarts_the_worker():
    watch, settings = ResourceWatch(), ResourceSettings(cpu_percent=150.0, cpu_sustained=0.0)
    assert [type(a) for a in watch.observe(sample(cpu=151.0), settings, 0.0)] == [Breach, RestartWorker]


@given(st.lists(st.tuples(st.sampled_from(["b1", "b2", "b3"]), st.integers(0, 3 * GIB)), max_size=40))
def test_each_browser_is_recycled_and_killed_at_most_once(steps):
    watch, settings, asked = ResourceWatch(), ResourceSettings(), []
    state = {"b1": 0, "b2": 0, "b3": 0}
    for now, (name, memory) in enumerate(steps):
        state[name] = memory
        one = sample(*(browser(id_, memory=size) for id_, size in state.items()))
        asked += [a for a in watch.observe(one, settings, float(now)) if isinstance(a, RecycleBrowser | EndBrowser)]
    assert len({(type(a), a.browser) for a in asked}) == len(asked)
    killed = {name for name, memory in steps if memory > settings.browser_memory_max}
    assert {a.browser for a in asked if isinstance(a, EndBrowser)} == killed


# ---- the host ------------------------------------------------------------------------------------------------------


def test_a_full_host_costs_the_largest_browser_one_at_a_time_with_growing_pauses():
    host, settings = HostGauge(), ResourceSettings()
    fleet = {"b1": ("m-0", browser("b1")), "b2": ("m-1", browser("b2", memory=300 * MIB)), "b3": ("m-1", browser("b3"))}
    breach, recycle = host.observe(85.0, fleet.values(), settings, 0.0)
    assert breach == Breach("host_memory_percent", 80.0, 85.0)
    expected = (
        "85% of the host's memory is in use, host_memory_percent is 80; browser b2 of m-1 is the largest with 300 MiB"
    )
    assert recycle == RecycleBrowser("m-1", "b2", "host_memory_percent", expected)
    assert host.observe(85.0, fleet.values(), settings, 100.0) == []
    del fleet["b2"]
    assert host.observe(85.0, fleet.values(), settings, 101.0) == []
    assert host.observe(85.0, fleet.values(), settings, 101.0 + HOST_PAUSE - MS) == []
    (second,) = host.observe(85.0, fleet.values(), settings, 101.0 + HOST_PAUSE)
    del fleet[second.browser]
    assert host.observe(85.0, fleet.values(), settings, 200.0) == []
    assert host.observe(85.0, fleet.values(), settings, 200.0 + 2 * HOST_PAUSE - MS) == []
    assert len(host.observe(85.0, fleet.values(), settings, 200.0 + 2 * HOST_PAUSE)) == 1


@pytest.mark.parametrize(
    ("percents", "kinds"),
    [
        ([80.0, None, 80.1], [[], [], [Breach, RecycleBrowser]]),
        ([81.0, 75.0, 71.9], [[Breach, RecycleBrowser], [], [Recovered]]),
    ],
)
def test_the_host_gauge(percents, kinds):
    host = HostGauge()
    seen = [host.observe(p, [("m-0", browser())], ResourceSettings(), float(now)) for now, p in enumerate(percents)]
    assert [[type(a) for a in actions] for actions in seen] == kinds


def test_a_host_without_browsers_or_without_figures_only_tells():
    assert list(map(type, HostGauge().observe(99.0, [], ResourceSettings(), 0.0))) == [Breach]
    assert list(map(type, HostGauge().observe(99.0, [("m-0", browser(memory=None))], ResourceSettings(), 0.0))) == [
        Breach
    ]


def test_a_host_limit_switched_off_is_recovered_from():
    host, off = HostGauge(), ResourceSettings(host_memory_percent=None)
    host.observe(99.0, [], ResourceSettings(), 0.0)
    assert host.observe(99.0, [], off, 1.0) == [Recovered("host_memory_percent", None, 99.0)]
    assert host.observe(99.0, [], off, 2.0) == []


# ---- slots ---------------------------------------------------------------------------------------------------------


def recycle(name, worker="m-0"):
    return RecycleBrowser(worker, name, "browser_lifetime", "old")


def test_slots_are_granted_in_order_and_come_back():
    slots = RecycleSlots(2)
    assert [slots.want(recycle(name)) for name in ("b1", "b2", "b3", "b1")] == [True, True, True, False]
    assert slots.grants() == [recycle("b1"), recycle("b2")]
    assert slots.grants() == []
    assert slots.want(recycle("b1")) is False
    slots.release("m-0", "b2")
    assert slots.grants() == [recycle("b3")]
    slots.release("m-0", "never heard of")


def test_a_slot_is_kept_until_it_is_released():
    slots = RecycleSlots(1)
    slots.want(recycle("b1"))
    slots.grants()
    slots.want(recycle("b2"))
    assert slots.grants() == []
    slots.release("m-0", "b1")
    assert slots.grants() == [recycle("b2")]


def test_a_workers_end_frees_its_slots_and_places():
    slots = RecycleSlots(1)
    for name, worker in (("b1", "m-0"), ("b2", "m-0"), ("b3", "m-1")):
        slots.want(recycle(name, worker))
    slots.grants()
    slots.forget("m-0")
    assert slots.grants() == [recycle("b3", "m-1")]


def test_resizing_takes_no_slot_back():
    slots = RecycleSlots(3)
    for name in ("b1", "b2", "b3", "b4"):
        slots.want(recycle(name))
    assert len(slots.grants()) == 3
    slots.resize(1)
    slots.release("m-0", "b1")
    assert slots.grants() == []
    slots.resize(4)
    assert slots.grants() == [recycle("b4")]


@pytest.mark.parametrize(("workers", "limit"), [(0, 1), (1, 1), (7, 1), (8, 2), (50, 12)])
def test_one_recycle_per_four_workers(workers, limit):
    settings = ResourceSettings()
    assert recycle_limit(settings, workers) == limit
    assert recycle_limit(replace(settings, max_concurrent_recycles=3), workers) == 3
