"""What events tell: every name has a payload, every payload is published, and their keys are the contract's."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import pytest

from scraper_supervisor.core.config.parser import Problem
from scraper_supervisor.core.events import Publish
from scraper_supervisor.core.formats.event_names import SEVERITIES, Component, EventName, Payload
from scraper_supervisor.core.formats.event_payloads import (
    PAYLOADS,
    UNPUBLISHED,
    AbortEvaluated,
    AbortExecuted,
    ConfigRejected,
    HoldStarted,
    ItemFinished,
    OperatorActed,
)
from scraper_supervisor.core.formats.worker_payloads import BrowserRestarted, WorkerCompleted, WorkerExited
from scraper_worker.protocol import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "supervisor" / "scraper_supervisor"
CLASSES = {payload.__name__: name for name, payload in PAYLOADS.items()}
FIGURES = (20, 14, 0.7, 0.5, "14 of 20 failed", None)
SCOPE = ["scope", "key", "group", "items", "failures", "rate", "limit", "reason", "next_probe_at"]


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the supervisor's sources, with its module."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(SOURCES).as_posix(), node


CALLS = list(calls())


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


# ---- every name has one payload, and nothing else is published -------------------------------------------------------


def test_every_name_of_the_contract_has_one_payload() -> None:
    assert len(get_args(EventName)) == 35
    assert set(PAYLOADS) == set(get_args(EventName))
    assert len(CLASSES) == len(PAYLOADS)
    for payload in PAYLOADS.values():
        assert payload.SEVERITY in SEVERITIES
        assert payload.COMPONENT in get_args(Component)
    assert SEVERITIES[0] == "debug"


def test_a_payload_that_bears_a_name_is_registered() -> None:
    def below(kind: type[Payload]) -> Iterator[type[Payload]]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    assert {kind for kind in below(Payload) if "EVENT" in vars(kind)} == set(PAYLOADS.values())


def test_every_event_is_published_or_said_not_to_be() -> None:
    made = {CLASSES[called(node)] for _, node in CALLS if called(node) in CLASSES}
    assert made | set(UNPUBLISHED) == set(PAYLOADS)
    assert made.isdisjoint(UNPUBLISHED), "what is published is not unpublished"


def test_events_are_made_of_payloads_alone() -> None:
    """What mypy says of a payload's type, said again of the sources: nobody gives a name, or keys, by hand."""
    makers = {module for module, node in CALLS if called(node) == "Publish"}
    assert makers == {"core/outbox.py", "daemon/app.py", "daemon/reload.py"}
    words = [node for _, node in CALLS if called(node) in ("publish", "_publish", "Publish")]
    assert len(words) > 30
    for node in words:
        assert not any(isinstance(one, ast.Constant) and one.value not in SEVERITIES for one in node.args), node.lineno
        allowed = {"severity", "worker", "group", "incident", "at"}
        assert {keyword.arg for keyword in node.keywords} <= allowed, node.lineno


def test_an_event_bears_its_payloads_name_and_component() -> None:
    event = Publish(WorkerCompleted(), "info", "c-1")
    assert (event.event, event.component) == ("worker_completed", "workers")


# ---- as JSON ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "keys"),
    [
        (
            WorkerExited(1, None, 9, ordered=False, reason=None, charged="x", died=True),
            ["incarnation", "code", "signal", "ordered", "reason", "charged", "lines", "oom"],
        ),
        (BrowserRestarted("b1", "crash", None, 0.5), ["browser", "cause", "how", "seconds"]),
        (
            ItemFinished("x", 1, "retry", "h", 0.1, Failure("transient", "network", "timeout", "late")),
            ["key", "attempt", "outcome", "target", "seconds", "failure"],
        ),
        (HoldStarted("target", "h", "g", *FIGURES), SCOPE),
        (AbortEvaluated("group", "g", "g", *FIGURES, "suspected"), SCOPE),
        (AbortExecuted("global", "", None, *FIGURES, ("g",)), SCOPE),
        (OperatorActed("pause", ("g",), 1000), ["command", "names", "uid"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Payload) else None,
)
def test_the_keys_are_the_contracts(payload: Payload, keys: list[str]) -> None:
    written: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(payload))
    assert list(written)[: len(keys)] == keys


def test_payloads_are_written_as_json_holds_them() -> None:
    def written(payload: Payload) -> object:
        return msgspec.json.decode(msgspec.json.encode(payload))

    assert written(WorkerCompleted()) == {}
    assert written(ConfigRejected((Problem("a.b", "no"),))) == {"problems": [{"path": "a.b", "message": "no"}]}
    failure = Failure("blocked", "external", "http-429", "slow down", status=429)
    document = written(ItemFinished("x", 2, "failed", None, None, failure))
    assert document == {
        "key": "x",
        "attempt": 2,
        "outcome": "failed",
        "target": None,
        "seconds": None,
        "failure": {
            "kind": "blocked",
            "category": "external",
            "signature": "http-429",
            "message": "slow down",
            "status": 429,
        },
    }


def test_the_page_of_events_is_not_stale() -> None:
    spec = importlib.util.spec_from_file_location("draw_events", ROOT / "scripts" / "draw_events.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text() == script.page(), "run scripts/draw_events.py"
