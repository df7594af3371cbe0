"""What holds for all tests."""

import os
import time
from collections.abc import Callable, Generator

import pytest
from coverage import Coverage
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of the code.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", PATIENT)
# For a night: HYPOTHESIS_PROFILE=deep scripts/test. What a test asks for is a share of the profile's examples.
settings.register_profile("deep", PATIENT, max_examples=10 * PATIENT.max_examples)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

UNTRACED = ("hypothesis", "untraced")


# The folders whose files take longest, in the order in which they are begun: where files run side by side, as by
# scripts/test, none that is long begins when the others have ended.
LONGEST = ("console/demo", "e2e", "sim", "sdk", "store")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the tests of the long files to the front; each folder's own order stays."""

    def rank(item: pytest.Item) -> int:
        return next((at for at, folder in enumerate(LONGEST) if f"/tests/{folder}/" in str(item.path)), len(LONGEST))

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Measure no coverage of what passes the same lines thousands of times: the tracer would triple its time."""
    measured = Coverage.current()
    if measured is None or not any(item.get_closest_marker(name) for name in UNTRACED):
        return (yield)
    measured.stop()
    try:
        return (yield)
    finally:
        measured.start()


@pytest.fixture
def on_this_machine() -> Callable[[float], float]:
    """A function that turns the seconds promised for an idle machine into those that this one may take, busy as it is.

    It is given as many times more as a loop takes longer on it. This is for promises only; whoever just waits for a
    condition has the patience of a minute.
    """
    before = _slowness()
    return lambda seconds: seconds * max(before, _slowness())


def _slowness() -> float:
    """How many times longer a loop takes by the clock than of the processor; 1 on an idle machine."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < 0.05:
        pass
    return max(1.0, (time.monotonic() - began) / 0.05)
