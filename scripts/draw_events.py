#!/usr/bin/env python3
"""Draw the events and what each of them tells: docs/events.md.

Run it after a change of a payload in `core/formats/`; a test fails while the page is stale.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Struct
from msgspec.structs import fields

from scraper_supervisor.core.formats.event_payloads import PAYLOADS, UNPUBLISHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scraper_supervisor.core.formats.event_names import Payload

PAGE = Path(__file__).parent.parent / "docs" / "events.md"

HEAD = """\
# The events

Drawn by `scripts/draw_events.py` from the payloads in `core/formats/`; do not edit. A line of `events.jsonl` is one
JSON object:

| key | is |
|---|---|
| time | when it was published, RFC 3339 UTC with microseconds |
| event | its name, one of those below |
| severity | debug, info, warning, error or critical; below is the usual one |
| component | the part of the supervisor that it is about |
| correlation_id | the same for all events of one incident, from its detection to the recovery |
| worker, group | whom it is about; absent where it is about neither |
| data | what it tells, by event below |

Durations are numbers of seconds, sizes are bytes. Null says that something is unknown or does not apply. Readers ignore
keys that they do not know.
"""
WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", types.NoneType: "null"}


def described(payload: type[Payload]) -> tuple[str, dict[str, str]]:
    """What an event says, and what each of its fields is, from the docstrings of the payload and of its bases."""
    lead, meanings = "", {}
    for kind in reversed(payload.__mro__):
        text, _, attributes = (kind.__dict__.get("__doc__") or "").partition("Attributes:\n")
        lead = " ".join(text.split()) or lead
        for name, meaning in re.findall(r"^ {8}(\w+): (.*(?:\n {12,}\S.*)*)", attributes, re.MULTILINE):
            meanings[name] = " ".join(meaning.split()).removesuffix(".")
    return lead, meanings


def form(kind: Any) -> Iterator[str]:
    """How a value of that type is written in JSON, as alternatives."""
    if get_origin(kind) in (Union, types.UnionType):
        for one in get_args(kind):
            yield from form(one)
    elif get_origin(kind) is Literal:
        yield from (f'"{one}"' for one in get_args(kind))
    elif get_origin(kind) is tuple:
        yield f"list of {' or '.join(form(get_args(kind)[0]))}"
    elif isinstance(kind, type) and issubclass(kind, Struct):
        keys = (field.name if field.required else f"{field.name}?" for field in fields(kind))
        yield f"{{{', '.join(keys)}}}"
    else:
        yield WORDS[kind]


def drawing(payload: type[Payload]) -> str:
    """One event."""
    lead, meanings = described(payload)
    hints = get_type_hints(payload)
    lines = [f"## {payload.EVENT}", "", f"{lead} *{payload.SEVERITY}, {payload.COMPONENT}*", ""]
    if payload.EVENT in UNPUBLISHED:
        lines += [f"Not published by this version yet: {UNPUBLISHED[payload.EVENT]}.", ""]
    if payload.__struct_fields__:
        lines += ["| key | form | is |", "|---|---|---|"]
        lines += [
            f"| {name} | {', '.join(form(hints[name]))} | {meanings[name]} |" for name in payload.__struct_fields__
        ]
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(drawing(payload) for payload in PAYLOADS.values())])


def main() -> int:
    """Write the page."""
    PAGE.write_text(page())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
