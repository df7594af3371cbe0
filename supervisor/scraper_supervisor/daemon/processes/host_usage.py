"""How full the machine is: its memory, or that of the container we are in, and the disk of the state folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_LIMIT: Final = 1 << 60  # bytes; version 1 writes a number near 2^63 where there is no limit


def memory_percent(proc: Path = Path("/proc/self")) -> float:
    """Memory in use, 0 to 100: of our control group's limit where there is one, else of the machine.

    What the kernel would give back at once (inactive file pages) does not count as used. Of nested limits the fullest
    decides.

    Args:
        proc: our folder in /proc; tests bring their own.
    """
    shares = [share for folder, files in _groups(proc) if (share := _share(folder, files)) is not None]
    return max(shares) if shares else float(psutil.virtual_memory().percent)


def disk_free(path: Path) -> int | None:
    """Bytes that we may still write on the file system of `path`; None if it cannot be asked."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


_V2: Final = ("memory.max", "memory.current", "inactive_file")
_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _groups(proc: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of our control group and of all above it, with the names of limit, usage and cache in them."""
    try:
        mounts = [line.split() for line in (proc / "mounts").read_text().splitlines()]
        entries = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        for mount in mounts:
            if not controllers and mount[2] == "cgroup2":
                files = _V2
            elif mount[2] == "cgroup" and "memory" in controllers.split(",") and "memory" in mount[3].split(","):
                files = _V1
            else:
                continue
            root = Path(mount[1])
            # In a namespace or container the path may lead nowhere below the mount; the mount itself is ours then.
            folder = root.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
            while True:
                yield folder, files
                if folder == root:
                    break
                folder = folder.parent


def _share(folder: Path, files: tuple[str, str, str]) -> float | None:
    """Percent of one group's limit in use; None without a limit."""
    limit_file, usage_file, cache_key = files
    try:
        text = (folder / limit_file).read_text().strip()
        if text == "max" or int(text) >= _NO_LIMIT or int(text) <= 0:
            return None
        used = int((folder / usage_file).read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == cache_key:
                used -= int(value)
                break
    except (OSError, ValueError):
        return None
    return max(0.0, 100.0 * used / int(text))
