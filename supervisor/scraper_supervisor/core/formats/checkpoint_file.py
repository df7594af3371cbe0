"""The sealed line of a checkpoint file, and which files a worker keeps.

A file is one JSON object on one line that ends in `,"sha256":"<64 hex>"}` and a newline. The checksum is that of every
byte before `,"sha256":`, so that `head -c -78 FILE | sha256sum` verifies it with no program of ours. The worker's state
travels undecoded: what it means is the worker's matter.

A state may have many megabytes, and is handled beside an event loop that must not wait: whatever holds the interpreter
works on slices, and nothing makes a copy of the whole.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
from msgspec import Raw, Struct

from scraper_supervisor.core.config.settings import Compression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


FORMAT: Final = 1
FOOTER_BYTES: Final = 78  # of `,"sha256":"<64 hex>"}` and the newline
GZIP_BITS: Final = 31  # zlib's window bits for gzip; it writes mtime 0, so equal input gives equal bytes

SealedText: TypeAlias = bytes | bytearray | memoryview
Fields: TypeAlias = dict[str, Raw]

ENDINGS: Final[dict[Compression, str]] = {"none": "", "gzip": ".gz"}  # of a file's name

# How the fields of an older format become those of the next one: format → function. Format 1 is the first there was.
UPGRADES: Final[dict[int, Callable[[Fields], Fields]]] = {}

_MARK: Final = b',"sha256":"'
_END: Final = b'"}\n'
_STATE: Final = re.compile(rb',"state":')
_BREAKS: Final = b"\r\n"
_GZIP_LEVEL: Final = 6
_SLICE: Final = 1024 * 1024  # bytes worked on at once, some 0.1 ms
_FILE_NAME: Final = re.compile(r"checkpoint-([0-9]{12}|[1-9][0-9]{12,17})\.json(\.gz)?", re.ASCII)


class Damaged(Exception):
    """Bytes that are not a sound checkpoint; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TooNew(Exception):
    """A sound checkpoint in a format that only a later version knows; `reason` says what to do."""

    def __init__(self, found: int) -> None:
        self.reason = (
            f"it was written by a later version (format {found}, this one reads up to format {FORMAT}); "
            "use that version, or restore an older generation"
        )
        super().__init__(self.reason)


class Counts(Struct, frozen=True):
    """The items of the worker's group when the state was saved."""

    pending: int
    done: int
    failed: int


class CheckpointHeader(Struct, frozen=True):
    """What a checkpoint says of itself, in the order in which it is written."""

    worker: str
    run: int
    generation: int
    schema: str
    saved_at: str  # RFC 3339 UTC
    items: Counts


class Sealed(Struct, frozen=True):
    """A sound checkpoint."""

    header: CheckpointHeader
    state: Raw
    sha256: str


class Sealing(Struct, frozen=True):
    """A checkpoint ready to be written: its bytes in slices, their checksum, and what tells its state from others."""

    parts: tuple[SealedText, ...]
    sha256: str
    digest: bytes


class _Format(Struct, frozen=True):
    format: int


class FileName(Struct, frozen=True, order=True):
    """A checkpoint file as its name tells it."""

    generation: int
    name: str
    compression: Compression


# ---- the line --------------------------------------------------------------------------------------------------------


def slices(text: SealedText | Raw) -> Iterator[memoryview]:
    """The text in pieces that are quickly worked on; none is a copy."""
    view = memoryview(text)
    for at in range(0, view.nbytes, _SLICE):
        yield view[at : at + _SLICE]


def seal_parts(header: CheckpointHeader, state: Raw) -> Sealing:
    """Make the sealed line.

    Args:
        header: What the file says of itself.
        state: The state as JSON text; line breaks, which can only stand between its tokens, are taken out.
    """
    head = b'{"format":%d,%b,"state":' % (FORMAT, msgspec.json.encode(header)[1:-1])
    checksum, digest = hashlib.sha256(head), hashlib.sha256()
    parts: list[SealedText] = [head]
    for part in slices(state):
        copy = bytes(part)  # of this slice alone: views cannot be searched
        text = copy.translate(None, _BREAKS) if b"\n" in copy or b"\r" in copy else part
        checksum.update(text)
        digest.update(text)
        parts.append(text)
    footer = b"%b%b%b" % (_MARK, checksum.hexdigest().encode(), _END)
    return Sealing((*parts, footer), checksum.hexdigest(), digest.digest())


def seal(header: CheckpointHeader, state: Raw) -> bytes:
    """The bytes of a checkpoint file (see `seal_parts`)."""
    return b"".join(seal_parts(header, state).parts)


def seal_object(fields: Struct) -> bytes:
    """A line of any other content, sealed in the same way."""
    text = msgspec.json.encode(fields)[:-1]
    return b"%b%b%b%b" % (text, _MARK, hashlib.sha256(text).hexdigest().encode(), _END)


def content(data: SealedText) -> tuple[memoryview, str]:
    """What a sealed line's checksum vouches for, without the brace that closes it, and the checksum in hex.

    Raises:
        Damaged: The end is missing, the checksum does not fit, or it is more than one line.
    """
    view = memoryview(data)
    text, footer = view[:-FOOTER_BYTES], bytes(view[-FOOTER_BYTES:])
    if len(footer) < FOOTER_BYTES or not footer.startswith(_MARK) or not footer.endswith(_END):
        raise Damaged(f"it does not end in a checksum; it is cut short or is no checkpoint ({view.nbytes} bytes)")
    checksum, broken = hashlib.sha256(), False
    for part in slices(text):
        checksum.update(part)
        copy = bytes(part)
        broken = broken or b"\n" in copy or b"\r" in copy
    found = checksum.hexdigest()
    if footer != b"%b%b%b" % (_MARK, found.encode(), _END):
        raise Damaged(f"the checksum does not fit: expected {_printable(footer[11:75])}, found {found}")
    if broken:
        raise Damaged("it is more than one line")
    return text, found


def unseal(data: SealedText) -> Sealed:
    """Read a checkpoint file's bytes.

    Raises:
        Damaged: The end is missing, the checksum does not fit, or the line does not hold what it should.
        TooNew: It is of a later version.
    """
    text, found = content(data)
    try:
        header, state = _parse(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"the checksum fits, but the content is no checkpoint: {error}") from error
    return Sealed(header, state, found)


def _parse(text: memoryview) -> tuple[CheckpointHeader, Raw]:
    """The header and the state of a line in the present format, or brought up to it."""
    # Within a JSON string a quote is escaped: the first of these is the key, and what is before it a short object.
    state = _STATE.search(text)
    head = bytes(text if state is None else text[: state.start()]) + b"}"
    found = msgspec.json.decode(head, type=_Format).format
    if found > FORMAT:
        raise TooNew(found)
    if found == FORMAT and state is not None:
        return msgspec.json.decode(head, type=CheckpointHeader), msgspec.json.decode(text[state.end() :], type=Raw)
    fields = msgspec.json.decode(bytes(text) + b"}", type=Fields)
    for number in range(found, FORMAT):
        if number not in UPGRADES:
            raise Damaged(f"its format is {found}, which never was; this version writes format {FORMAT}")
        fields = UPGRADES[number](fields)
    if "state" not in fields:
        raise Damaged("the checksum fits, but the content is no checkpoint: it has no state")
    return msgspec.json.decode(msgspec.json.encode(fields), type=CheckpointHeader), fields["state"]


def compress(parts: Iterable[SealedText], compression: Compression) -> Iterable[SealedText]:
    """A sealed line as its file holds it, in pieces: the same bytes give the same file."""
    return parts if compression == "none" else _gzip(parts)


def _gzip(parts: Iterable[SealedText]) -> Iterator[bytes]:
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, GZIP_BITS)
    for part in parts:
        for piece in slices(part):
            yield packer.compress(piece)
    yield packer.flush()


def decompress(data: SealedText) -> bytearray:
    """The sealed line of a gzip file.

    Raises:
        Damaged: It is no gzip file, is cut short, or is followed by something.
    """
    unpacker, line, read = zlib.decompressobj(GZIP_BITS), bytearray(), 0
    try:
        for part in slices(data):
            read += part.nbytes
            line += unpacker.decompress(part, _SLICE)
            while unpacker.unconsumed_tail:
                line += unpacker.decompress(unpacker.unconsumed_tail, _SLICE)
            if unpacker.eof:
                break
        line += unpacker.flush()
    except zlib.error as error:
        raise Damaged(f"it does not unpack: {error}") from error
    if not unpacker.eof:
        raise Damaged(f"the gzip stream is cut short ({len(data)} bytes)")
    after = len(unpacker.unused_data) + len(data) - read
    if after:
        raise Damaged(f"{after} bytes follow the gzip stream")
    return line


def check_file(name: FileName, data: bytes) -> None:
    """Hold a file that was sound before against its checksum once more; cheaper than reading what is in it.

    Raises:
        Damaged: See `content`.
    """
    content(decompress(data) if name.compression == "gzip" else data)


def unseal_file(name: FileName, worker: str, data: bytes) -> Sealed:
    """Read a checkpoint file's bytes and hold them against its name and folder.

    Raises:
        Damaged: See `unseal`; or it is another worker's, or another generation.
        TooNew: It is of a later version.
    """
    sealed = unseal(decompress(data) if name.compression == "gzip" else data)
    if sealed.header.worker != worker:
        raise Damaged(f"it is of worker {sealed.header.worker!r}, expected {worker!r}")
    if sealed.header.generation != name.generation:
        raise Damaged(f"it is generation {sealed.header.generation}, its name says {name.generation}")
    return sealed


def state_digest(state: Raw) -> bytes:
    """Tells states apart: two equal ones have the same."""
    digest = hashlib.sha256()
    for part in slices(state):
        digest.update(part)
    return digest.digest()


def _printable(data: bytes) -> str:
    return data.decode("ascii", "backslashreplace")


# ---- the files -------------------------------------------------------------------------------------------------------


def file_name(generation: int, compression: Compression) -> str:
    """The name of a generation's file."""
    return f"checkpoint-{generation:012d}.json{ENDINGS[compression]}"


def parse_file_name(name: str) -> FileName | None:
    """What a name tells; None for a file that is not a checkpoint."""
    found = _FILE_NAME.fullmatch(name)
    return FileName(int(found[1]), name, "gzip" if found[2] else "none") if found else None


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
