from __future__ import annotations

from typing import Any, Literal

import pytest

from scraper_supervisor.core.config.parser import InvalidSettings
from scraper_supervisor.core.config.paths import Folders, Location, config_file, folders
from scraper_supervisor.core.config.settings import SupervisorSettings

ENV = {"SCRAPER_SUPERVISOR_CONFIG": "named.toml"}
BASE = Location("/base/supervisor.toml", "option", "/base")
BOTH = {"/srv/supervisor.toml", "/srv/.scraper-supervisor"}


@pytest.mark.parametrize(
    ("option", "environ", "existing", "expected"),
    [
        ("../a.toml", ENV, BOTH, Location("/a.toml", "option", "/")),
        (None, ENV, BOTH, Location("/srv/named.toml", "environment", "/srv")),
        (None, {"SCRAPER_SUPERVISOR_CONFIG": ""}, BOTH, Location("/srv/supervisor.toml", "local", "/srv")),
        (None, {}, {"/srv/.scraper-supervisor"}, Location(None, "folder", "/srv")),
        (
            None,
            {},
            set(),
            Location("/etc/scraper-supervisor/supervisor.toml", "system", "/etc/scraper-supervisor"),
        ),
    ],
)
def test_the_file_is_looked_for_in_order(
    option: str | None, environ: dict[str, str], existing: set[str], expected: Location
) -> None:
    assert config_file(option, environ, existing.__contains__, "/srv") == expected


def test_only_the_bare_folder_fixes_the_state_folder() -> None:
    assert Location(None, "folder", "/srv").state_dir == "/srv/.scraper-supervisor"
    assert Location("/srv/supervisor.toml", "local", "/srv").state_dir is None


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ({}, {}, Folders("/home/u/.local/state/scraper-supervisor", "/home/u/.local/state/scraper-supervisor/run")),
        (
            {},
            {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"},
            Folders("/s/scraper-supervisor", "/r/scraper-supervisor"),
        ),
        (
            {},
            {"STATE_DIRECTORY": "/a:/b", "RUNTIME_DIRECTORY": "/c", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"},
            Folders("/a", "/c"),
        ),
        ({}, {"XDG_STATE_HOME": "relative", "STATE_DIRECTORY": "/a"}, Folders("/a", "/a/run")),
        (
            {"state_dir": "/x", "runtime_dir": "/y"},
            {"STATE_DIRECTORY": "/a", "RUNTIME_DIRECTORY": "/c"},
            Folders("/x", "/y"),
        ),
        ({"state_dir": "x"}, {}, Folders("/base/x", "/base/x/run")),
    ],
)
def test_the_folders_are_looked_for_in_order(
    settings: dict[str, Any], environ: dict[str, str], expected: Folders
) -> None:
    assert folders(SupervisorSettings(**settings), environ, "/home/u", BASE) == expected


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ({}, {}, Folders("/var/lib/scraper-supervisor", "/run/scraper-supervisor")),
        (
            {},
            {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/0"},
            Folders("/var/lib/scraper-supervisor", "/run/scraper-supervisor"),
        ),
        ({}, {"STATE_DIRECTORY": "/a", "RUNTIME_DIRECTORY": "/c"}, Folders("/a", "/c")),
        ({"state_dir": "/x", "runtime_dir": "y"}, {}, Folders("/x", "/etc/scraper-supervisor/y")),
    ],
)
@pytest.mark.parametrize("kind", ["system", "option"])
def test_a_shell_beside_the_service_finds_the_services_folders(
    kind: Literal["system", "option"], settings: dict[str, Any], environ: dict[str, str], expected: Folders
) -> None:
    where = Location("/etc/scraper-supervisor/supervisor.toml", kind, "/etc/scraper-supervisor")
    assert folders(SupervisorSettings(**settings), environ, "/root", where) == expected


def test_a_bare_folder_has_all_of_it_in_one() -> None:
    where = Location(None, "folder", "/srv")
    environ = {"STATE_DIRECTORY": "/a", "XDG_RUNTIME_DIR": "/r"}
    expected = Folders("/srv/.scraper-supervisor", "/srv/.scraper-supervisor/run")
    assert folders(SupervisorSettings(), environ, "/home/u", where) == expected


def test_the_sockets_are_in_the_runtime_folder() -> None:
    found = Folders("/s", "/r")
    assert (found.worker_socket, found.control_socket) == ("/r/worker.sock", "/r/control.sock")


@pytest.mark.parametrize(("letter", "size"), [("x", 94), ("é", 47)])
def test_a_socket_path_of_107_bytes_is_the_longest(letter: str, size: int) -> None:
    fits = "/" + letter * size  # with "/control.sock" 108 bytes: one too many
    with pytest.raises(InvalidSettings) as caught:
        folders(SupervisorSettings(runtime_dir=fits), {}, "/home/u", Location("/s.toml", "option", "/"))
    (problem,) = caught.value.problems
    assert problem.path == "supervisor.runtime_dir"
    assert "at most 107 bytes" in problem.message
    assert "has 108" in problem.message
    shorter = fits[:-1]
    where = Location("/s.toml", "option", "/")
    assert folders(SupervisorSettings(runtime_dir=shorter), {}, "/home/u", where).runtime_dir == shorter


def test_without_a_home_folder_the_state_needs_one_that_is_named() -> None:
    with pytest.raises(InvalidSettings, match="no home folder"):
        folders(SupervisorSettings(), {}, None, BASE)
    assert folders(SupervisorSettings(), {"XDG_STATE_HOME": "/s"}, None, BASE).state_dir == "/s/scraper-supervisor"
    assert folders(SupervisorSettings(state_dir="here"), {}, None, BASE).state_dir == "/base/here"
