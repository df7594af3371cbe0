"""Where the configuration file, the state and the sockets are; pure: what exists is the caller's to say."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from scraper_supervisor.core.config.parser import InvalidSettings, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scraper_supervisor.core.config.settings import SupervisorSettings

ENV_CONFIG: Final = "SCRAPER_SUPERVISOR_CONFIG"
LOCAL_FILE: Final = "supervisor.toml"
LOCAL_FOLDER: Final = ".scraper-supervisor"
SYSTEM_FILE: Final = "/etc/scraper-supervisor/supervisor.toml"
RUNTIME_NOTE: Final = "runtime_dir"  # in the state folder: where a daemon's sockets are
MAX_SOCKET_PATH: Final = 107  # bytes; sun_path holds 108 with the closing zero

NOT_UTF8: Final = "expected a path that is UTF-8, since all that is told of it is JSON: rename the folder"

_NAME: Final = "scraper-supervisor"
# What systemd's StateDirectory and RuntimeDirectory give the service, which reads its file from /etc.
_SYSTEM_STATE: Final = f"/var/lib/{_NAME}"
_SYSTEM_RUNTIME: Final = f"/run/{_NAME}"


class Location(Struct, frozen=True):
    """Where the configuration is. `path` is None for kind "folder": no file, all defaults.

    `base` is the absolute folder that relative paths, and the defaults that depend on one, are relative to.
    """

    path: str | None
    kind: Literal["option", "environment", "local", "folder", "system"]
    base: str

    @property
    def state_dir(self) -> str | None:
        """The state folder that this kind of location fixes by itself, if it does."""
        return posixpath.join(self.base, LOCAL_FOLDER) if self.kind == "folder" else None

    @property
    def of_the_system(self) -> bool:
        """True for a file below /etc: it is the host's, and so are its folders, whoever asks."""
        return self.path is not None and self.path.startswith("/etc/")


class Folders(Struct, frozen=True):
    """Where state and sockets are; absolute paths."""

    state_dir: str
    runtime_dir: str

    @property
    def worker_socket(self) -> str:
        """The socket of the workers."""
        return posixpath.join(self.runtime_dir, "worker.sock")

    @property
    def control_socket(self) -> str:
        """The socket of the operator's commands."""
        return control_socket(self.runtime_dir)


def control_socket(runtime_dir: str) -> str:
    """The socket of the operator's commands in that runtime folder."""
    return posixpath.join(runtime_dir, "control.sock")


def config_file(option: str | None, environ: Mapping[str, str], exists: Callable[[str], bool], cwd: str) -> Location:
    """The configuration file by the documented order; what was named outright need not exist.

    Args:
        option: the value of --config.
        environ: the environment.
        exists: whether there is a file or folder of that absolute path.
        cwd: the absolute working folder.
    """

    def at(path: str, kind: Literal["option", "environment", "local", "system"]) -> Location:
        path = posixpath.normpath(posixpath.join(cwd, path))
        return Location(path, kind, posixpath.dirname(path))

    if option:
        return at(option, "option")
    if named := environ.get(ENV_CONFIG):
        return at(named, "environment")
    if exists(posixpath.join(cwd, LOCAL_FILE)):
        return at(LOCAL_FILE, "local")
    if exists(posixpath.join(cwd, LOCAL_FOLDER)):
        return Location(None, "folder", cwd)
    return at(SYSTEM_FILE, "system")


def folders(
    supervisor: SupervisorSettings, environ: Mapping[str, str], home: str | None, location: Location
) -> Folders:
    """The state and the runtime folder by the documented order.

    Args:
        supervisor: the `[supervisor]` table.
        environ: the environment; systemd sets STATE_DIRECTORY and RUNTIME_DIRECTORY.
        home: the user's absolute home folder, if there is one.
        location: where the configuration is.

    Raises:
        InvalidSettings: if nothing tells where the state is to be, a path is not UTF-8, or the path of a socket would
            be longer than the system allows.
    """
    if location.state_dir is not None:
        # All of it in one folder: two such folders of one user must not meet in $XDG_RUNTIME_DIR.
        return _fitting(Folders(location.state_dir, posixpath.join(location.state_dir, "run")))
    state_home = _absolute(environ.get("XDG_STATE_HOME")) or (home and posixpath.join(home, ".local", "state"))
    runtime_home = _absolute(environ.get("XDG_RUNTIME_DIR"))
    state = supervisor.state_dir or _first(environ.get("STATE_DIRECTORY"))
    state = state or (_SYSTEM_STATE if location.of_the_system else state_home and posixpath.join(state_home, _NAME))
    if not state:
        expected = "expected a folder for the state, since this user has no home folder ($HOME is not set)"
        raise InvalidSettings([Problem("supervisor.state_dir", expected)])
    runtime = (
        supervisor.runtime_dir
        or _first(environ.get("RUNTIME_DIRECTORY"))
        or (location.of_the_system and _SYSTEM_RUNTIME)
        or (runtime_home and posixpath.join(runtime_home, _NAME))
        or posixpath.join(location.base, state, "run")
    )
    return _fitting(Folders(*(posixpath.normpath(posixpath.join(location.base, path)) for path in (state, runtime))))


def _fitting(found: Folders) -> Folders:
    for key, path in (("state_dir", found.state_dir), ("runtime_dir", found.runtime_dir)):
        if not is_utf8(path):
            raise InvalidSettings([Problem(f"supervisor.{key}", NOT_UTF8)])
    size = len(found.control_socket.encode())
    if size > MAX_SOCKET_PATH:
        limit = f"expected a folder whose socket paths are at most {MAX_SOCKET_PATH} bytes"
        problem = Problem("supervisor.runtime_dir", f"{limit}, {found.control_socket} has {size}: set a shorter one")
        raise InvalidSettings([problem])
    return found


def is_utf8(path: str) -> bool:
    """True if the path holds no byte that Python could not decode."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first(listed: str | None) -> str | None:
    """The first of what may be several folders with colons between them."""
    return listed.split(":")[0] if listed else None


def _absolute(path: str | None) -> str | None:
    """XDG variables that hold a relative path are to be ignored."""
    return path if path and path.startswith("/") else None
