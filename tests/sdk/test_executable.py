"""Which Chromium is started: folders and a PATH of our own, nothing run."""

from __future__ import annotations

import pytest

from scraper_worker import BrowserUnavailable
from scraper_worker.browsers.executable import choose


def executable(path, text="#!/bin/sh\ntrue\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def machine(tmp_path):
    """A function that chooses, on a machine with these browsers on PATH and Playwright's own."""

    def choosing(on_path=(), playwright_s=(), options=None, **environment):
        for name in on_path:
            executable(tmp_path / "bin" / name)
        own = tmp_path / "pw" / "chromium-1255" / "chrome-linux64" / "chrome"
        if "full" in playwright_s:
            executable(own)
        if "shell" in playwright_s:
            executable(tmp_path / "pw/chromium_headless_shell-1255/chrome-headless-shell-linux64/chrome-headless-shell")
        found = choose(str(own), options or {}, {"PATH": str(tmp_path / "bin"), **environment})
        return found and found.removeprefix(f"{tmp_path}/")

    return choosing


BOTH = ("chromium", "chromium-headless-shell")
OWN = "pw/chromium-1255/chrome-linux64/chrome"
OWN_SHELL = "pw/chromium_headless_shell-1255/chrome-headless-shell-linux64/chrome-headless-shell"


@pytest.mark.parametrize(
    ("on_path", "playwright_s", "options", "chosen"),
    [
        (BOTH, (), {}, "bin/chromium-headless-shell"),
        (BOTH, (), {"headless": None}, "bin/chromium-headless-shell"),
        (BOTH, (), {"channel": "chromium-headless-shell"}, "bin/chromium-headless-shell"),
        (BOTH, (), {"channel": "chromium"}, "bin/chromium"),
        (BOTH, (), {"headless": False}, "bin/chromium"),
        (BOTH, (), {"devtools": True}, "bin/chromium"),
        (BOTH, (), {"channel": "chrome"}, None),
        (BOTH, (), {"executable_path": "/my/own"}, "/my/own"),
        (["chromium"], (), {}, "bin/chromium"),
        (["chromium"], (), {"channel": "chromium-headless-shell"}, None),
        (["google-chrome"], (), {}, "bin/google-chrome"),
        (["chromium-headless-shell"], (), {}, "bin/chromium-headless-shell"),
        (BOTH, ["shell"], {}, OWN_SHELL),
        (BOTH, ["full"], {}, "bin/chromium-headless-shell"),
        ((), ["full"], {}, OWN),
        ((), ["full", "shell"], {}, OWN_SHELL),
        (BOTH, ["full", "shell"], {"channel": "chromium"}, OWN),
        ((), (), {}, None),
    ],
)
def test_the_shell_where_headless_and_the_full_one_where_asked_for(machine, on_path, playwright_s, options, chosen):
    assert machine(on_path, playwright_s, options) == chosen


@pytest.mark.parametrize(
    ("options", "needs"), [({"channel": "chromium"}, "channel"), ({"headless": False}, "with windows")]
)
def test_only_the_other_kind_is_said_by_name(machine, options, needs):
    with pytest.raises(BrowserUnavailable, match=rf"{needs}.*needs the full Chromium, and only .*shell is here"):
        machine(["chromium-headless-shell"], (), options)


def test_the_environment_names_one(machine):
    assert machine(BOTH, ["full"], SCRAPER_WORKER_CHROMIUM="chromium") == "bin/chromium"
    assert machine(BOTH, (), {"channel": "chrome"}, SCRAPER_WORKER_CHROMIUM="chromium") == "bin/chromium"
    with pytest.raises(BrowserUnavailable, match="SCRAPER_WORKER_CHROMIUM names /nowhere"):
        machine(BOTH, SCRAPER_WORKER_CHROMIUM="/nowhere")


@pytest.mark.parametrize(
    ("script", "seen_through"),
    [
        ('#!/bin/sh -e\n\n{} "$@"\n', True),
        ('#!/bin/sh\n# starts it\nexec {} "$@"\n', True),
        ('#!/bin/sh\nexport A=1\nexec {} "$@"\n', False),
        ('#!/bin/sh\nexec {} --flag "$@"\n', False),
        ("\x7fELF {}", False),
    ],
)
def test_a_script_that_only_starts_the_browser_is_left_out(machine, tmp_path, script, seen_through):
    program = executable(tmp_path / "lib" / "program", "#!/bin/sh\ntrue\n")
    named = executable(tmp_path / "bin" / "wrapper", script.format(program))
    found = machine(SCRAPER_WORKER_CHROMIUM=named)
    assert found == ("lib/program" if seen_through else "bin/wrapper")
