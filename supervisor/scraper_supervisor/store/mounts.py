"""Which file system a path is on: a ledger needs locks and syncs that a network file system does not keep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from scraper_supervisor.store.errors import NetworkFileSystem

_NETWORK: Final = frozenset([
    "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs",
    "smb3", "smbfs",
])  # fmt: skip
_NETWORK_FUSE: Final = re.compile(
    r"fuse\.(?:sshfs|gluster\w*|ceph\w*|s3\w*|goofys|rclone|gcsfuse|blobfuse2?|davfs2?|juicefs|\w*nfs)", re.ASCII
)
_ESCAPE: Final = re.compile(r"\\([0-7]{3})", re.ASCII)  # the kernel writes blanks in paths in octal


def refuse_network(path: Path) -> None:
    """Refuse a path on a network file system; where the kernel does not tell, it is taken to be local.

    Raises:
        NetworkFileSystem: It is.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return
    kind = network_mount(mounts, str(path.resolve()))
    if kind is not None:
        raise NetworkFileSystem(path, kind)


def network_mount(mountinfo: str, path: str) -> str | None:
    """The kind of network file system that an absolute path is on; None for a local one.

    Args:
        mountinfo: The content of /proc/self/mountinfo.
        path: An absolute path without links.
    """
    longest, kind = -1, ""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        point = _ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields.split(" ")[4])
        inside = point == "/" or path == point or path.startswith(point + "/")
        if inside and len(point) >= longest:  # of two mounts on one point the later one hides the earlier
            longest, kind = len(point), rest.split(" ")[0]
    return kind if kind in _NETWORK or _NETWORK_FUSE.fullmatch(kind) else None
