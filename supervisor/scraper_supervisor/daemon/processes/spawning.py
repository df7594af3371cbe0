"""Starting one process and collecting one exit status: the blocking half of `processes`, for its threads."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec
from msgspec import Struct

from scraper_supervisor.daemon.processes import process_tree, procfs, worker_output
from scraper_supervisor.daemon.processes.process_tree import ProcessRecord
from scraper_supervisor.daemon.processes.worker_output import Output
from scraper_worker.protocol import ENV_NAME, ENV_SOCKET, ENV_TOKEN

if TYPE_CHECKING:
    from scraper_supervisor.core.config.settings import GroupSettings
    from scraper_supervisor.core.events import Spawn
    from scraper_supervisor.daemon.upkeep.surroundings import Surroundings

_PR_SET_CHILD_SUBREAPER: Final = 36
STREAMS: Final = ("out", "err")
# What is said to us alone and would mislead a worker: it could declare us ready, or take our sockets.
OURS_ALONE: Final = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
)


class SpawnSpec(Struct, frozen=True):
    """What to start. `env` is the whole environment; TMPDIR is added, and a token where it holds none."""

    worker: str
    incarnation: int
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]


class SpawnedProcess(Struct, frozen=True):
    """A process that runs, or was alive a moment ago; `start_time` is in clock ticks since boot."""

    pid: int
    start_time: int
    token: str


class Exit(Struct, frozen=True):
    """How a process ended: by `code` or by `signal`; neither is known of one that was not our child.

    `last_line` is the last one that a worker printed to stderr.
    """

    code: int | None = None
    signal: int | None = None
    last_line: str | None = None


class SpawnError(Exception):
    """A process could not be started; `errno` is 0 where the system gave none.

    `is_set_up` says that the program or its folder is not there, or is no program.
    """

    def __init__(self, number: int, message: str, *, is_set_up: bool = False) -> None:
        super().__init__(message)
        self.errno = number
        self.message = message
        self.is_set_up = is_set_up


class Live(Struct, eq=False):
    """A worker's process until its death is known; `pidfd` names it whatever becomes of the number."""

    worker: str
    incarnation: int
    pid: int
    start_time: int
    token: str
    pidfd: int
    handles: dict[str, int]  # our ends of the FIFOs, by stream
    outputs: list[Output] = []


class CommandProcess(Struct, eq=False):
    """A command that is no worker; `pidfd` is -1 once its status was collected."""

    pid: int
    pidfd: int

    def kill(self) -> None:
        """SIGKILL its process group, whose number is not free before the status is collected."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


SET_UP_ERRORS: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EISDIR, errno.ENOEXEC})
"""What the system says of a program or a folder that is not there, or is no such thing."""

LONGEST_TMPDIR: Final = 62  # bytes; with a longer one Chromium can't bind a socket in its profile, and dies
_INCARNATIONS: Final = len("12345678-1234567")


class ProcessFolders(Struct, frozen=True):
    """Where workers' FIFOs, temporary folders and records are."""

    output: Path
    tmp: Path
    records: Path

    @classmethod
    def of(cls, runtime_dir: Path, state_dir: Path) -> Self:
        """The folders of a supervisor. Temporary ones are in /tmp where the runtime folder's path is too long."""
        tmp = runtime_dir / "tmp"
        if len(os.fsencode(tmp)) + 1 + _INCARNATIONS > LONGEST_TMPDIR:
            mark = zlib.crc32(os.fsencode(runtime_dir))
            tmp = Path(f"/tmp/scraper-supervisor-{os.geteuid()}-{mark:08x}")
        return cls(runtime_dir / "output", tmp, state_dir / "workers")

    def make(self) -> None:
        """Make those that do not exist.

        Raises:
            OSError: one cannot be made, or is somebody else's.
        """
        for folder in self.all():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()  # /tmp is everybody's
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "not a folder of this user", str(folder))

    def all(self) -> tuple[Path, ...]:
        """Each of them."""
        return (self.output, self.tmp, self.records)

    def fifo(self, worker: str, stream: str) -> Path:
        """A worker's FIFO for "out" or "err"."""
        return self.output / f"{worker}.{stream}"

    def tmpdir(self, worker: str, incarnation: int) -> Path:
        """An incarnation's TMPDIR: by the worker's name where that is short enough."""
        path = self.tmp / f"{worker}-{incarnation}"
        if len(os.fsencode(path)) <= LONGEST_TMPDIR:
            return path
        return self.tmp / f"{zlib.crc32(worker.encode()):08x}-{incarnation}"

    def record(self, worker: str) -> Path:
        """A worker's record for the next supervisor."""
        return self.records / f"{worker}.json"

    def forget(self, worker: str) -> None:
        """Remove a worker's FIFOs and record."""
        for path in (*(self.fifo(worker, stream) for stream in STREAMS), self.record(worker)):
            path.unlink(missing_ok=True)


def spec_of(command: Spawn, worker_socket: str, environment: Mapping[str, str]) -> SpawnSpec:
    """What to start for a worker of a group.

    Args:
        command: which worker, and its group's settings.
        worker_socket: the path of the socket that it finds us at.
        environment: ours, as far as it is for workers; the group's own comes over it.
    """
    group = command.group
    env = {**environment, **group.file_env, **group.env}
    if group.entrypoint is not None:
        env.setdefault("PYTHONUNBUFFERED", "1")  # what a scraper prints shall not wait for a full buffer
    env[ENV_SOCKET] = worker_socket
    env[ENV_NAME] = command.worker
    env.pop(ENV_TOKEN, None)  # ours, if we ourselves run under a supervisor
    return SpawnSpec(command.worker, command.incarnation, _argv(group), group.directory, env)


def _argv(group: GroupSettings) -> tuple[str, ...]:
    """What to execute. -P keeps a scraper's own json.py from breaking the SDK; it adds the folder to the path later."""
    if group.entrypoint is not None:
        return (group.python or sys.executable, "-P", "-m", "scraper_worker", group.entrypoint)
    return group.command or ()


def environment_for_workers(environ: Mapping[str, str]) -> dict[str, str]:
    """Our environment without what the service manager meant for us."""
    return {name: value for name, value in environ.items() if name not in OURS_ALONE}


def start_worker(spec: SpawnSpec, folders: ProcessFolders, boot_id: str, given: Surroundings) -> Live:
    """Start a worker's process, with its FIFOs, TMPDIR and record. The child is not reaped before this returns.

    Raises:
        SpawnError: it could not be started; nothing is left of the attempt.
    """
    token = spec.env.get(ENV_TOKEN) or secrets.token_hex(16)
    tmpdir = folders.tmpdir(spec.worker, spec.incarnation)
    record = ProcessRecord(spec.worker, spec.incarnation, token, boot_id, str(tmpdir))
    ours: dict[str, int] = {}
    theirs: dict[str, int] = {}
    try:
        folders.make()  # they may have been removed under us
        process_tree.remove_tree(tmpdir)
        tmpdir.mkdir(mode=0o700)
        for stream in STREAMS:
            ours[stream], theirs[stream] = worker_output.make_fifo(folders.fifo(spec.worker, stream))
        process_tree.write_record(
            folders.record(spec.worker), record
        )  # the token first: should we die now, it finds the process
        child = subprocess.Popen(
            spec.argv,
            cwd=spec.cwd,
            env={**spec.env, ENV_TOKEN: token, "TMPDIR": str(tmpdir)},
            stdin=subprocess.DEVNULL,
            stdout=theirs["out"],
            stderr=theirs["err"],
            start_new_session=True,
            umask=given.umask,
        )
        given.give(child.pid)
        pidfd = _take_over(child)
    except (OSError, ValueError) as error:
        for handle in ours.values():
            os.close(handle)
        folders.forget(spec.worker)
        process_tree.remove_tree(tmpdir)
        raise _spawn_error(spec.argv, error, spec.cwd) from error
    finally:
        for handle in theirs.values():
            os.close(handle)
    found = procfs.stat(child.pid)  # a zombie at the least
    start_time = found.start_time if found else 0
    record = msgspec.structs.replace(record, pid=child.pid, start_time=start_time)
    with contextlib.suppress(OSError):  # a full disk: the first record, with the token, still finds it
        process_tree.write_record(folders.record(spec.worker), record)
    return Live(spec.worker, spec.incarnation, child.pid, start_time, token, pidfd, ours)


def start_command(argv: tuple[str, ...], stdin: bytes, env: Mapping[str, str], given: Surroundings) -> CommandProcess:
    """Start a command that is no worker; it can read `stdin`, and what it prints goes to our stderr.

    Raises:
        SpawnError: it could not be started.
    """
    source = os.memfd_create("stdin")  # unlike a pipe, it needs nobody to write while the command reads
    try:
        with os.fdopen(os.dup(source), "wb") as file:
            file.write(stdin)
        os.lseek(source, 0, os.SEEK_SET)
        child = subprocess.Popen(argv, env=dict(env), stdin=source, stdout=2, start_new_session=True, umask=given.umask)
        given.give(child.pid)
        return CommandProcess(child.pid, _take_over(child))
    except (OSError, ValueError) as error:
        raise _spawn_error(argv, error) from error
    finally:
        os.close(source)


def _take_over(child: subprocess.Popen[bytes]) -> int:
    """The pidfd of a child whose status Popen must no more collect.

    Raises:
        OSError: no handle is left; the child is killed then.
    """
    try:
        pidfd = os.pidfd_open(child.pid)
    except OSError:
        child.kill()
        child.wait()
        raise
    child.returncode = -1  # what Popen believes from now on: it neither polls nor warns
    return pidfd


def _spawn_error(argv: tuple[str, ...], error: OSError | ValueError, cwd: str | None = None) -> SpawnError:
    if isinstance(error, OSError):
        named = error.filename is not None and os.fsdecode(error.filename) in (argv[0], cwd)  # else a folder of ours
        reason = f"cannot start {error.filename or argv[0]}: {error.strerror or error}{_hint(argv, error)}"
        return SpawnError(error.errno or 0, reason, is_set_up=named and error.errno in SET_UP_ERRORS)
    return SpawnError(errno.EINVAL, f"cannot start {argv[0]}: {error}")


def _hint(argv: tuple[str, ...], error: OSError) -> str:
    """What else to know of a program that is not found, though its name looks right."""
    if error.errno == errno.ENOEXEC:
        return "; a script's first line names its interpreter: #!/bin/sh"
    if error.errno == errno.EACCES and "/" not in argv[0]:  # said of a folder on PATH that may not be searched, too
        return _words_hint(argv)
    if error.errno != errno.ENOENT or error.filename != argv[0]:
        return ""
    try:
        with open(argv[0], "rb") as file:
            first = file.readline(256)
    except OSError:
        return _words_hint(argv)
    if not first.startswith(b"#!"):
        return "; it is there, but the loader that it asks for is not"
    interpreter = first[2:].rstrip(b"\n").decode(errors="replace")
    ending = ": its lines end with CR LF, it must be saved with LF" if interpreter.endswith("\r") else ""
    return f"; it is there, but its interpreter {interpreter.strip()!r} is not{ending}"


def _words_hint(argv: tuple[str, ...]) -> str:
    words = argv[0].split()
    each = f"; each word is an element of its own: command = {json.dumps(words)}"
    return each if len(argv) == 1 and len(words) > 1 else ""


def find_worker(record: ProcessRecord, folders: ProcessFolders, boot_id: str) -> Live | None:
    """A predecessor's worker, if it lives."""
    if record.pid is None or record.boot_id != boot_id:
        return None
    try:
        pidfd = os.pidfd_open(record.pid)
    except OSError:
        return None
    found = procfs.stat(record.pid)
    if found is None or found.start_time != record.start_time or not found.alive:
        os.close(pidfd)
        return None
    handles: dict[str, int] = {}
    for stream in STREAMS:
        with contextlib.suppress(OSError):  # the folder was wiped: it goes on, unheard
            handles[stream] = worker_output.open_fifo(folders.fifo(record.worker, stream))
    return Live(record.worker, record.incarnation, found.pid, found.start_time, record.token, pidfd, handles)


def collect(pidfd: int) -> Exit | None:
    """Take the exit status of a process; None while it runs.

    Of a process that is no child of ours (adopted from a supervisor that died) nothing is ever known: an empty Exit.
    """
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return Exit()
    if info is None:
        return None
    return Exit(info.si_status, None) if info.si_code == os.CLD_EXITED else Exit(None, info.si_status)


def become_subreaper() -> None:
    """Have orphaned descendants come to this process rather than to init.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")
