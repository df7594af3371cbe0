"""What operators do is told, by the daemon and without one; and what workers hold is shown with nothing to hide."""

import os

import pytest
from harness import HERE

pytestmark = pytest.mark.slow

SECRET = "https://u:sesame@127.0.0.1/x"


@pytest.fixture(scope="module")
def daemon(shared_daemons):
    group = {"entrypoint": "scrapers:remember", "directory": str(HERE), "env": {"E2E_ITEMS": "0"}}
    daemon = shared_daemons({"workers": {"g": group | {"on_complete": "wait"}}})
    return daemon.start()


def test_acts_are_told_with_the_operators_uid(daemon):
    group, worker = {"names": ["g"]}, {"names": ["g-0"], "wait": False}
    for method, params in (
        ("pause", group), ("items.add", group | {"keys": [SECRET, "plain"]}),
        ("items.cancel", group | {"keys": ["plain"]}),
        ("items.requeue", group | {"failed": True}), ("resume", {}), ("reload", {}), ("abort.clear", {}),
        ("recycle", worker), ("restart", worker), ("drain", worker), ("start", group | {"wait": False}), ("claims", {}),
    ):  # fmt: skip
        daemon.control(method, **params)
    assert daemon.command("stop") == ""
    assert daemon.exit_code() == 0
    told = [event["data"] for event in daemon.events("operator_acted")]
    assert {one["uid"] for one in told} == {os.getuid()}
    assert [(one["command"], one["names"]) for one in told] == [
        ("pause", ["g"]), ("items add", ["g"]), ("items cancel", ["g"]), ("items requeue", ["g"]), ("resume", []),
        ("reload", []), ("abort clear", []), ("recycle", ["g-0"]), ("restart", ["g-0"]), ("drain", ["g-0"]),
        ("start", ["g"]), ("stop", []),
    ]  # fmt: skip
    assert told[3]["options"] == ["--failed"]
    daemon.command("items", "add", "g", "later")
    last = daemon.events("operator_acted")[-1]["data"]
    assert (last["command"], last["keys"], last["uid"]) == ("items add", ["later"], os.getuid())
    assert told[1]["keys"][0].startswith("https://u:***@127.0.0.1/x#")
    assert "sesame" not in (daemon.state / "events.jsonl").read_text() + daemon.log()
