"""Importing the SDK is cheap, and gives what its name says."""

from __future__ import annotations

import subprocess
import sys

import pytest

import scraper_worker


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_neither_playwright_nor_asyncio_is_loaded():
    names = ("errors", "protocol", "retry", "failures.classify")
    modules = ", ".join(["scraper_worker", *(f"scraper_worker.{name}" for name in names)])
    code = (
        f"import sys, {modules}; print([m for m in ('asyncio', 'playwright', 'socket', 'logging') if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_a_worker_without_a_browser_loads_no_playwright():
    assert run("import sys, scraper_worker.__main__; print('playwright' in sys.modules)") == "False"


def test_functions_are_not_hidden_by_the_modules_of_their_names():
    code = (
        "import scraper_worker.retry, scraper_worker.failures.classify, scraper_worker.steps\n"
        "from scraper_worker import retry, classify\n"
        "from scraper_worker.retry import RetryPolicy\n"
        "print(type(retry).__name__, type(classify).__name__)"
    )
    assert run(code) == "function function"


@pytest.mark.parametrize("name", scraper_worker.__all__)
def test_every_public_name_is_there(name):
    assert getattr(scraper_worker, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        scraper_worker.nonsense  # noqa: B018 - the access is the test
