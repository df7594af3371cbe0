"""An operator's acts are told: what was ordered, of what, by whom."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.playbook import Play

from scraper_supervisor.core.events import Answered, Asked
from scraper_supervisor.core.formats.event_payloads import OperatorActed
from scraper_worker.protocol import BrowserStarted


def acts(play: Play) -> list[Any]:
    return [one.data for one in play.log if one.event == "operator_acted"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked(1, "pause", ("g",), uid=7), OperatorActed("pause", ("g",), 7)),
        (Asked(1, "resume", uid=7), OperatorActed("resume", (), 7)),
        (Asked(1, "drain", ("g-0",), uid=7), OperatorActed("drain", ("g-0",), 7)),
        (Asked(1, "stop", ("g",), uid=7), OperatorActed("stop", ("g",), 7)),
        (Asked(1, "start", ("g",), uid=7), OperatorActed("start", ("g",), 7)),
        (Asked(1, "restart", ("g-0",), uid=0), OperatorActed("restart", ("g-0",), 0)),
        (Asked(1, "recycle", uid=7), OperatorActed("recycle", (), 7)),
        (Asked(1, "abort.clear", uid=7), OperatorActed("abort clear", (), 7)),
        (
            Asked(1, "items.add", ("g",), tuple(f"k{n}" for n in range(12)), uid=7),
            OperatorActed("items add", ("g",), 7, (), tuple(f"k{n}" for n in range(10)), 12),
        ),
        (
            Asked(1, "items.requeue", ("g",), failed=True, parked=True, uid=7),
            OperatorActed("items requeue", ("g",), 7, ("--failed", "--parked")),
        ),
        (Asked(1, "items.cancel", ("g",), ("x",), uid=7), OperatorActed("items cancel", ("g",), 7, (), ("x",), 1)),
    ],
)
def test_an_act_is_told(asked: Asked, told: OperatorActed) -> None:
    play = Play("x")
    play.up()
    play >> asked
    assert acts(play) == [told]


@pytest.mark.parametrize(
    "asked",
    [
        Asked(1, "claims"),
        Asked(1, "pause", ("nope",)),
        Asked(1, "items.add", ("g",), ("a\x00b",)),
        Asked(1, "checkpoint.restore", ("nope-0",), generation=1),
        Asked(1, "abort.clear", ("nope",)),
        Asked(1, "explode"),
    ],
)
def test_what_is_refused_or_only_looks_is_no_act(asked: Asked) -> None:
    play = Play("x")
    play.up()
    play >> asked
    assert any(isinstance(one, Answered) for one in play.seen)
    assert acts(play) == []


def test_the_order_comes_before_what_it_brings_about() -> None:
    play = Play("x")
    a = play.up()
    play >> a.notes(BrowserStarted("b1", 500))
    mark = len(play.log)
    play >> Asked(1, "recycle", ("g-0",))
    assert [one.event for one in play.log[mark:]] == ["operator_acted", "cleanup_initiated"]
