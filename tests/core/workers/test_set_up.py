"""Which ends of a process say that its set-up is wrong, and in which words."""

import pytest

from scraper_supervisor.core.workers.set_up import wrong_set_up

PYTHON = "/v/bin/python"


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        (
            78,
            "scraper_worker: g-0: no module 'scrapper' for scrapper:scrape",
            "no module 'scrapper' for scrapper:scrape",
        ),
        (78, "  my own words ", "my own words"),
        (78, None, "exited with code 78"),
        (78, "   ", "exited with code 78"),
        (1, f"{PYTHON}: No module named scraper_worker", f"{PYTHON} has no SDK, the package scraper_worker"),
        (1, "ModuleNotFoundError: No module named 'msgspec'", f"{PYTHON} has an SDK that can't be imported"),
        (2, "Try `python -h' for more information.", f"{PYTHON} is older than Python 3.11"),
        (1, "scraper_worker: g-0: a:b raised ConnectionError: no database", None),
        (1, None, None),
        (2, "usage: mine", None),
        (None, f"{PYTHON}: No module named scraper_worker", None),
    ],
)
def test_what_no_restart_mends_is_told_in_a_sentence(code, line, said):
    found = wrong_set_up(PYTHON, code, line, "g-0", introduced=False)
    assert found is None if said is None else found.startswith(said)


def test_a_command_and_a_worker_that_said_hello_say_so_by_78_alone():
    missing = "python: No module named scraper_worker"
    assert wrong_set_up("", 1, missing, "g-0", introduced=False) is None
    assert wrong_set_up(PYTHON, 1, missing, "g-0", introduced=True) is None
    assert wrong_set_up("", 78, "mine", "g-0", introduced=True) == "mine"
