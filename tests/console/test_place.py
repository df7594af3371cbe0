"""How commands find the daemon and its folders, whatever the environment that they are run in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.console.conftest import FakeDaemon

from scraper_supervisor.store.folders import note_runtime_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    import pytest
    from click.testing import Result

    Call = Callable[..., Result]


def test_a_daemon_is_found_by_the_folder_that_it_noted(
    project: Path, call: Call, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The daemon was started with another XDG_RUNTIME_DIR than cron's and su's shells have.
    fake = FakeDaemon(project / "user" / "control.sock")
    fake.answers["status"] = document
    (project / "state").mkdir()
    try:
        for environ in ("", str(project / "another")):
            monkeypatch.setenv("XDG_RUNTIME_DIR", environ)
            assert call("status").exit_code == 3
            note_runtime_dir(project / "state", str(project / "user"))
            assert call("status").exit_code == 0
            (project / "state" / "runtime_dir").unlink()
    finally:
        fake.close()


def test_a_note_of_a_daemon_that_is_gone_hides_none_that_is_there(
    project: Path, call: Call, daemon: FakeDaemon, document: dict[str, Any]
) -> None:
    daemon.answers["status"] = document
    note_runtime_dir(project / "state", str(project / "gone"))
    assert call("status").exit_code == 0


def test_a_daemon_whose_state_dir_was_changed_in_the_file_is_still_the_files(
    project: Path, call: Call, daemon: FakeDaemon
) -> None:
    owner = {"state_dir": str(project / "state"), "device": 0, "inode": 0, "config": str(project / "supervisor.toml")}
    daemon.answers |= {"owner": owner, "reload": {"summary": "asked"}}
    changed = (project / "supervisor.toml").read_text(encoding="utf-8").replace('"state"', '"moved"')
    (project / "supervisor.toml").write_text(changed, encoding="utf-8")
    result = call("reload")
    assert (result.exit_code, result.stdout) == (0, "asked\n")
    owner["config"] = "/another/supervisor.toml"
    assert call("reload").exit_code == 3
