"""The sealed line of a checkpoint file, and which files a worker keeps.

A file is one JSON object on one line that ends in `,"sha256":"<64 hex>"}` and a newline. The checksum is that of every
byte before `,"sha256":`, so that `head -c -78 FILE | sha256sum` verifies it with no program of ours. The worker's state
travels undecoded: what it means is the worker's matter.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw, Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT: Final = 1
FOOTER_BYTES: Final = 78  # of `,"sha256":"<64 hex>"}` and the newline

_MARK: Final = b',"sha256":"'
_END: Final = b'"}\n'
_GZIP: Final = (
    31  # zlib's window bits for a gzip header and trailer; it writes mtime 0, so equal input gives equal bytes
)
_GZIP_LEVEL: Final = 6
_HEAD: Final = 8192  # bytes of a file in which its header ends
_FILE_NAME: Final = re.compile(r"checkpoint-([0-9]{12})\.json(\.gz)?", re.ASCII)


class Damaged(Exception):
    """Bytes that are not a sound checkpoint; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Counts(Struct, frozen=True):
    """The items of the worker's group when the state was saved."""

    pending: int
    done: int
    failed: int


class Header(Struct, frozen=True):
    """What a checkpoint says of itself, in the order in which it is written."""

    worker: str
    run: int
    generation: int
    schema: str
    saved_at: str  # RFC 3339 UTC
    items: Counts


class Sealed(Struct, frozen=True):
    """A sound checkpoint."""

    header: Header
    state: Raw
    sha256: str


class _Line(Struct, frozen=True):
    format: int
    worker: str
    run: int
    generation: int
    schema: str
    saved_at: str
    items: Counts
    state: Raw


class FileName(Struct, frozen=True, order=True):
    """A checkpoint file as its name tells it."""

    generation: int
    name: str
    gzip: bool


# ---- the line --------------------------------------------------------------------------------------------------------


def seal_parts(header: Header, state: Raw) -> tuple[bytes, bytes, bytes]:
    """The sealed line in three parts: a large state need not be copied once more to be written.

    Args:
        header: What the file says of itself.
        state: The state as JSON text; line breaks between its tokens are taken out.
    """
    text = bytes(state)
    if b"\n" in text or b"\r" in text:
        text = msgspec.json.format(text, indent=-1)
    head = b'{"format":%d,%b,"state":' % (FORMAT, msgspec.json.encode(header)[1:-1])
    digest = hashlib.sha256(head)
    digest.update(text)
    return head, text, b"%b%b%b" % (_MARK, digest.hexdigest().encode(), _END)


def seal(header: Header, state: Raw) -> bytes:
    """The bytes of a checkpoint file (see `seal_parts`)."""
    return b"".join(seal_parts(header, state))


def unseal(data: bytes) -> Sealed:
    """Read a checkpoint file's bytes.

    Raises:
        Damaged: The end is missing, the checksum does not fit, or the line does not hold what it should.
    """
    content, footer = data[:-FOOTER_BYTES], data[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or not footer.startswith(_MARK) or not footer.endswith(_END):
        raise Damaged(f"it does not end in a checksum; it is cut short or is no checkpoint ({len(data)} bytes)")
    found = hashlib.sha256(content).hexdigest()
    if footer != b"%b%b%b" % (_MARK, found.encode(), _END):
        raise Damaged(f"the checksum does not fit: expected {_printable(footer[11:75])}, found {found}")
    if b"\n" in content or b"\r" in content:
        raise Damaged("it is more than one line")
    try:
        line = msgspec.json.decode(content + b"}", type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"the checksum fits, but the content is no checkpoint: {error}") from error
    if line.format != FORMAT:
        raise Damaged(f"its format is {line.format}; this version reads format {FORMAT}")
    header = Header(line.worker, line.run, line.generation, line.schema, line.saved_at, line.items)
    return Sealed(header, line.state, found)


def checksum(footer: bytes) -> str:
    """The checksum that a sealed line (or the last of its parts) ends in, in hex."""
    return footer[-67:-3].decode("ascii")


def compress(parts: Iterable[bytes]) -> list[bytes]:
    """The gzip variant of a sealed line: the same bytes give the same file."""
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
    return [*(packer.compress(part) for part in parts), packer.flush()]


def decompress(data: bytes) -> bytes:
    """The sealed line of a gzip file.

    Raises:
        Damaged: It is no gzip file, is cut short, or is followed by something.
    """
    unpacker = zlib.decompressobj(_GZIP)
    try:
        line = unpacker.decompress(data)
    except zlib.error as error:
        raise Damaged(f"it does not unpack: {error}") from error
    if not unpacker.eof:
        raise Damaged(f"the gzip stream is cut short ({len(data)} bytes)")
    if unpacker.unused_data:
        raise Damaged(f"{len(unpacker.unused_data)} bytes follow the gzip stream")
    return line


def unseal_file(name: FileName, worker: str, data: bytes) -> Sealed:
    """Read a checkpoint file's bytes and hold them against its name and folder.

    Raises:
        Damaged: See `unseal`; or it is another worker's, or another generation.
    """
    sealed = unseal(decompress(data) if name.gzip else data)
    if sealed.header.worker != worker:
        raise Damaged(f"it is of worker {sealed.header.worker!r}, expected {worker!r}")
    if sealed.header.generation != name.generation:
        raise Damaged(f"it is generation {sealed.header.generation}, its name says {name.generation}")
    return sealed


def presumed_run(name: FileName, data: bytes) -> int | None:
    """The run that a damaged file seems to be of; None if even that cannot be read."""
    head = data[:_HEAD]
    if name.gzip:
        try:
            head = zlib.decompressobj(_GZIP).decompress(data, _HEAD)
        except zlib.error:
            return None
    found = re.search(rb'"run":([0-9]{1,15}),', head)
    return int(found[1]) if found else None


def state_digest(state: bytes | Raw) -> bytes:
    """Tells states apart: two equal ones have the same."""
    return hashlib.sha256(state).digest()


def _printable(data: bytes) -> str:
    return data.decode("ascii", "backslashreplace")


# ---- the files -------------------------------------------------------------------------------------------------------


def file_name(generation: int, *, gzip: bool) -> str:
    """The name of a generation's file."""
    return f"checkpoint-{generation:012d}.json{'.gz' if gzip else ''}"


def parse_file_name(name: str) -> FileName | None:
    """What a name tells; None for a file that is not a checkpoint."""
    found = _FILE_NAME.fullmatch(name)
    return FileName(int(found[1]), name, bool(found[2])) if found else None


def newest_first(names: Iterable[str]) -> list[FileName]:
    """The checkpoint files among the names of a folder, newest first."""
    return sorted((file for name in names if (file := parse_file_name(name)) is not None), reverse=True)


def retention_plan(states: Iterable[tuple[FileName, bytes]], keep: int) -> list[FileName]:
    """Which files to remove: all but the newest `keep` states, and of equal states all but the newest.

    Args:
        states: Sound files with their states' digests, newest first.
        keep: How many generations stay, at least one.
    """
    kept: set[bytes] = set()
    removed = []
    for file, digest in states:
        if digest in kept or len(kept) >= max(keep, 1):
            removed.append(file)
        else:
            kept.add(digest)
    return removed
