from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from msgspec.structs import fields, replace

from scraper_supervisor.console.commands.config import check, config, init, starter
from scraper_supervisor.core.config.advice import warnings
from scraper_supervisor.core.config.parser import parse
from scraper_supervisor.core.config.settings import NAMED_TABLES, TABLES, Settings, TargetSettings, keys_of
from scraper_supervisor.core.config.uses import USES
from scraper_supervisor.store.config_file import load, load_or_default

SHIPPED = Path(__file__).parents[3] / "config"
VALID = '[workers.matches]\nentrypoint = "scraper:scrape"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "SCRAPER_SUPERVISOR_CONFIG",
        "STATE_DIRECTORY",
        "RUNTIME_DIRECTORY",
        "XDG_RUNTIME_DIR",
        "XDG_STATE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("scraper.py", "my_scraper.py"):
        (tmp_path / name).write_text("async def scrape(worker): ...\n", encoding="utf-8")
    return tmp_path


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# ---- check -----------------------------------------------------------------------------------------------------------


def test_check_finds_the_file_and_counts(folder: Path) -> None:
    path = write(folder / "supervisor.toml", VALID + "count = 3\n")
    outcome = check(None)
    assert outcome == (
        0,
        {"ok": True, "path": path, "errors": [], "warnings": []},
        f"{path}: valid, 1 group, 3 workers",
    )


def test_check_names_every_error_with_its_key(folder: Path) -> None:
    path = write(folder / "bad.toml", VALID + 'cuont = 3\n[resources]\nbrowser_memory = "lots"\n')
    code, document, text = check("bad.toml")
    assert (code, document["ok"], document["path"]) == (78, False, path)
    assert [error["path"] for error in document["errors"]] == ["resources.browser_memory", "workers.matches.cuont"]
    lines = text.splitlines()
    assert lines[0] == f"{path}: 2 errors"
    assert lines[2] == '  workers.matches.cuont: unknown key; did you mean "count"?'
    assert json.loads(json.dumps(document)) == document


def test_check_warns_and_is_content(folder: Path) -> None:
    write(folder / "supervisor.toml", VALID + '[abort]\nrule = "rate"\n')
    code, document, text = check(None)
    assert (code, [warning["path"] for warning in document["warnings"]]) == (0, ["abort.rule"])
    assert "warning: abort.rule: " in text


def test_check_warns_of_each_key_that_is_set_and_not_used_yet(folder: Path) -> None:
    write(folder / "supervisor.toml", VALID + 'count = "2-8"\n[evidence]\ntrace = true\n[logs]\nkeep = 3\n')
    code, document, text = check(None)
    assert code == 0
    assert [warning["path"] for warning in document["warnings"]] == [
        "evidence.trace",
        "logs.keep",
        "workers.matches.count",
    ]
    assert "warning: evidence.trace: not used by this version yet" in text
    assert "valid, 1 group, 2 workers" in text


def test_a_ledger_that_this_version_cannot_use_is_an_error(folder: Path) -> None:
    write(folder / "supervisor.toml", VALID + '[supervisor]\nledger = "service=scrapers"\n')
    code, document, _ = check(None)
    assert (code, document["errors"][0]["path"]) == (78, "supervisor.ledger")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a = \n", "is not TOML: line 1, column 5: "),
        (b"[a", "is not TOML: "),
        (b"a = '\xff'", "is not UTF-8: byte 5"),
        (b"a = " + b"[" * 5000, "is nested too deeply"),
        (None, "can't be read: no such file or directory"),
    ],
)
def test_a_file_that_is_no_toml_is_named_with_the_place(folder: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (folder / "x.toml").write_bytes(content)
    code, document, text = check("x.toml")
    assert code == 78
    assert expected in text
    assert text.startswith(str(folder / "x.toml"))
    assert [error["path"] for error in document["errors"]] == [""]


def test_a_folder_is_no_file(folder: Path) -> None:
    assert "can't be read: is a directory" in check(str(folder)).text


def test_without_any_file_it_says_where_it_looked(folder: Path) -> None:
    if Path("/etc/scraper-supervisor/supervisor.toml").exists():
        pytest.skip("this machine has a system-wide configuration")
    code, document, text = check(None)
    assert (code, document["path"]) == (78, None)
    assert "scraper-supervisor init" in text
    assert "./supervisor.toml" in text


def test_a_socket_path_that_is_too_long_is_a_configuration_error(folder: Path) -> None:
    write(folder / "supervisor.toml", VALID + f'[supervisor]\nruntime_dir = "/{"x" * 100}"\n')
    code, document, _ = check(None)
    assert (code, document["errors"][0]["path"]) == (78, "supervisor.runtime_dir")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "can't be read: no such file or directory"), (b"A=\xff", "is not UTF-8: byte 2"), (b"A", "line 1: ")],
)
def test_an_env_file_that_can_not_be_read_is_its_keys_problem(
    folder: Path, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (folder / "a.env").write_bytes(content)
    write(folder / "supervisor.toml", VALID + 'env_file = "a.env"\n')
    code, document, _ = check(None)
    assert (code, document["errors"][0]["path"]) == (78, "workers.matches.env_file")
    assert expected in document["errors"][0]["message"]


# ---- config ----------------------------------------------------------------------------------------------------------


def test_config_is_toml_that_means_the_same(folder: Path) -> None:
    (folder / "a.env").write_text("SECRET=hidden\n")
    path = write(folder / "supervisor.toml", VALID + 'env_file = "a.env"\n[targets."example.com"]\ndelay = "250ms"\n')
    code, document, text = config(None, {"HOME": "/home/u"}, str(folder))
    assert code == 0
    assert tomllib.loads(text) == document
    assert "hidden" not in text
    assert document["supervisor"]["state_dir"] == "/home/u/.local/state/scraper-supervisor"
    again = load(write(folder / "again.toml", text))
    found = replace(again.supervisor, state_dir=None, runtime_dir=None)
    assert replace(again, supervisor=found) == load(path)
    assert again.groups["matches"].file_env == {"SECRET": "hidden"}


def test_config_of_an_invalid_file_is_its_errors(folder: Path) -> None:
    write(folder / "supervisor.toml", "x = 1\n")
    code, document, text = config(None)
    assert (code, document["ok"]) == (78, False)
    assert "x: unknown key" in text


def test_the_bare_folder_is_the_state_with_all_defaults(folder: Path) -> None:
    (folder / ".scraper-supervisor").mkdir()
    loaded = load_or_default(None, {"HOME": "/home/u"}, str(folder))
    assert (loaded.path, loaded.base) == (None, str(folder))
    assert loaded.folders.state_dir == str(folder / ".scraper-supervisor")
    assert loaded.folders.runtime_dir == str(folder / ".scraper-supervisor" / "run")
    unplaced = replace(loaded.settings.supervisor, state_dir=None, runtime_dir=None)
    assert replace(loaded.settings, supervisor=unplaced) == Settings()
    assert "(no file, all defaults)" in check(None).text


# ---- init and the files that ship ------------------------------------------------------------------------------------


def test_init_writes_a_valid_starter(folder: Path) -> None:
    code, document, text = init()
    assert (code, document["ok"], document["path"]) == (0, True, str(folder / "supervisor.toml"))
    assert "scraper-supervisor check --config supervisor.toml" in text
    assert check(None).code == 0


def test_init_leaves_an_existing_file_alone_unless_forced(folder: Path) -> None:
    path = folder / "mine.toml"
    write(path, "mine")
    code, document, text = init("mine.toml")
    assert (code, document["ok"], path.read_text()) == (1, False, "mine")
    assert "exists already" in text
    assert init("mine.toml", force=True).code == 0
    assert 'state_dir = ".scraper-supervisor"' in path.read_text()


def test_init_in_two_projects_makes_two_states(folder: Path) -> None:
    environ, found = {"HOME": "/h", "XDG_RUNTIME_DIR": "/r"}, []
    for name in ("one", "two"):
        (folder / name).mkdir()
        assert init(str(folder / name / "supervisor.toml")).code == 0
        found.append(load_or_default(str(folder / name / "supervisor.toml"), environ, "/").folders)
    assert found[0].state_dir == str(folder / "one" / ".scraper-supervisor")
    assert found[0].runtime_dir == str(folder / "one" / ".scraper-supervisor" / "run")
    assert found[1].state_dir == str(folder / "two" / ".scraper-supervisor")
    deep = folder / ("x" * 90)
    deep.mkdir()
    assert init(str(deep / "supervisor.toml")).code == 0, "where the sockets' paths are too long, they are elsewhere"
    loaded = load_or_default(str(deep / "supervisor.toml"), environ, "/")
    assert loaded.folders.runtime_dir == "/r/scraper-supervisor"


def test_init_says_why_it_can_not_write(folder: Path) -> None:
    code, _, text = init("missing/supervisor.toml")
    assert (code, text) == (1, "missing/supervisor.toml: can't be written: no such file or directory")


@pytest.mark.parametrize("name", ["supervisor.toml", "development.toml"])
def test_the_files_that_ship_are_valid_and_raise_no_doubt(name: str) -> None:
    loaded = load_or_default(str(SHIPPED / name), {}, "/")
    assert warnings(loaded.settings, loaded.document) == []


def test_the_starter_is_the_file_that_ships() -> None:
    assert starter() == (SHIPPED / "supervisor.toml").read_text(encoding="utf-8")


def test_every_commented_key_of_the_starter_is_its_default() -> None:
    uncommented = re.sub(r"(?m)^# ([a-z_]+ = .+)$", r"\1", starter())
    assert uncommented.count("\n") == starter().count("\n")
    written = parse(tomllib.loads(uncommented), "/etc")
    assert written == parse(tomllib.loads(starter()), "/etc")
    assert replace(written, groups={}, targets={}) == Settings()
    assert written.targets == {"example.com": TargetSettings()}


def test_the_starter_holds_every_key_with_its_sentence() -> None:
    text = starter()
    sections = re.split(r"(?m)^\[", text)
    titles = {"workers": "workers.example", "retry": "retry.default", "targets": 'targets."example.com"'}
    for name, table in (TABLES | NAMED_TABLES).items():
        (section,) = (part for part in sections if part.startswith(titles.get(name, name) + "]"))
        unset = {item.name for item in fields(table) if item.default is None or item.name == "directory"}
        for key, about in keys_of(table).items():
            mark = "# example: " if key in unset and not about.off else "# "
            mark = "" if key == "entrypoint" else mark
            unused = "" if USES[name][key].reader else "# Not used by this version yet.\n"
            if key == "count":
                unused = "# The upper end of a range is not used by this version yet.\n"
            assert f"\n# {about.help}\n{unused}{mark}{key} = " in section, f"{name}.{key}"


def test_every_example_of_the_starter_fits_its_key() -> None:
    # A group has either entrypoint or command, and this version refuses a ledger elsewhere.
    shown = re.sub(r"(?m)^# example: (?!command|ledger)", "", starter())
    settings = parse(tomllib.loads(shown), "/etc", lambda _: "")
    assert settings.supervisor.metrics_listen == "127.0.0.1:9177"
    assert settings.groups["example"].python == "/etc/.venv/bin/python"
