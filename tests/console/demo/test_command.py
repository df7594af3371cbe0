"""The demo: its figures from a ledger made up, and the real thing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import msgspec
import pytest
from msgspec import Raw

from scraper_supervisor.console.demo.command import KNOBS, configuration, end_leftovers
from scraper_supervisor.console.demo.figures import Incidents, compare, paths
from scraper_supervisor.console.demo.site import DemoSite, Knobs
from scraper_supervisor.core.config.advice import warnings
from scraper_supervisor.core.config.parser import parse
from scraper_supervisor.core.formats.redaction import secrets_of
from scraper_supervisor.core.ops.item_ops import AddItems, Conclude, NewItem
from scraper_supervisor.core.ops.run_ops import OpenRun
from scraper_supervisor.store.event_log import EventRecord
from scraper_supervisor.store.opening import LedgerLocation
from scraper_supervisor.store.sqlite.ledger import Ledger
from scraper_worker.protocol import ENV_SOCKET, Failure

if TYPE_CHECKING:
    from pathlib import Path

NOT_FOUND = Raw(msgspec.json.encode(Failure("permanent", "external", "http-404", "not found", 404)))


def visit(url: str) -> None:
    try:
        urllib.request.urlopen(url, timeout=60).close()
    except urllib.error.HTTPError as error:
        error.close()


def scraped(site: DemoSite, path: Path, *, forget: str = "", spoil: str = "") -> None:
    """A ledger as a perfect scraper leaves it, but for what is forgotten or spoilt."""
    keys = sorted(paths(site) - {forget})
    gone = {f"{site.url}/match/{number}" for number in site.missing()}
    ledger = Ledger.open(path)
    (run,) = ledger.perform([OpenRun(0, "matches", "continue", 5)])
    items = tuple(NewItem(key, None, Raw(b"null"), 0) for key in keys)
    (added,) = ledger.perform([AddItems(0, "matches", run.run_id, items)])
    for index, item, _ in added.added:
        key = keys[index]
        visit(key)
        if key in gone:
            outcome, result, failure = "failed", None, NOT_FOUND
        else:
            found: dict[str, object] = {"links": 3}
            if "/match/" in key:
                match = site.match(int(key.rpartition("/")[2]))
                found = {"home": match.home, "away": match.away, "score": match.score}
            result = Raw(msgspec.json.encode({} if key == spoil else found))
            outcome, failure = "done", None
        values = {"result": result, "failure": failure}
        ledger.perform([Conclude(0, "matches", run.run_id, item, key, index + 1, "matches-0", outcome, 1, **values)])
    ledger.close()


def test_a_perfect_run(tmp_path: Path) -> None:
    with DemoSite(Knobs(matches=40, missing=0.1, seed=3)) as site:
        scraped(site, tmp_path / "ledger.db")
        outcome = compare(site, LedgerLocation(tmp_path), "matches")
        assert site.missing()
        assert outcome.ok
        assert (outcome.expected, outcome.done) == (42, 42 - len(site.missing()))
        assert outcome.failed == {"http-404": len(site.missing())}


def test_what_is_lost_wrong_or_repeated_is_found(tmp_path: Path) -> None:
    with DemoSite(Knobs(matches=10)) as site:
        forgotten, spoilt, again = (f"{site.url}/match/{number}" for number in (3, 5, 7))
        scraped(site, tmp_path / "ledger.db", forget=forgotten, spoil=spoilt)
        deadline = site.accesses()[-1].time
        while site.accesses()[-1].time <= deadline:  # times are told in milliseconds
            visit(again)
        outcome = compare(site, LedgerLocation(tmp_path), "matches")
        assert outcome.lost == (forgotten, spoilt)
        assert outcome.repeated == (again,)
        assert not outcome.ok


def test_incidents() -> None:
    incidents = Incidents()
    for event, severity, data in (
        ("worker_exited", "warning", {"signal": 9}),
        ("worker_exited", "info", {"code": 0}),
        ("retry_attempted", "info", {}),
        ("browser_restarted", "info", {"cause": "browser_memory", "how": "asked", "seconds": 1.5}),
        ("browser_restarted", "info", {"cause": "crash", "how": None, "seconds": 0.5}),
        ("worker_ready", "info", None),
    ):
        incidents.note(EventRecord("", event, severity, data=data))
    assert (incidents.deaths, incidents.retries, incidents.recycles, incidents.crashed) == (1, 1, [1.5], 1)


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    document = configuration("http://127.0.0.1:1")
    settings = parse(document, str(tmp_path))
    assert warnings(settings, document) == []
    assert secrets_of(settings) == set(), "nothing that is watched is shown as ***"
    assert sum(getattr(KNOBS, name) for name in ("error", "limited", "reset", "hang", "crash")) == pytest.approx(0.1)


def test_leftovers_are_ended_and_nobody_else(tmp_path: Path) -> None:
    def sleeper(path: str) -> subprocess.Popen[bytes]:
        code = "import sys, time; sys.stdout.write('up'); sys.stdout.flush(); time.sleep(60)"
        command = [sys.executable, "-S", "-E", "-c", code]
        process = subprocess.Popen(command, env={**os.environ, ENV_SOCKET: path}, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        process.stdout.close()
        return process

    ours, other = sleeper(str(tmp_path / "worker.sock")), sleeper(str(tmp_path / "worker.sock2"))
    try:
        end_leftovers(str(tmp_path / "worker.sock"))
        assert ours.wait(60) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(900)
@pytest.mark.parametrize("early", [True, False], ids=["ctrl-c", "to the end"])
def test_the_demo(tmp_path: Path, early: bool) -> None:
    # Sockets' paths are short, those of pytest are long.
    folder = tempfile.mkdtemp(prefix="demo-")
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "scraper_supervisor", "demo"],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if early:
            for line in process.stdout:
                if "worker_ready" in line:
                    break
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=800)
        assert (process.returncode, errors) == (130 if early else 0, ""), output[-3000:] + errors
        if not early:
            assert "Every item was scraped once, and none was lost." in output
            assert "worker deaths      1" in output
        assert os.listdir(folder) == []
    finally:
        shutil.rmtree(folder)
