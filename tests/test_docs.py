"""The pages in docs/ held against the tree: the map is complete, and whatever a page names in code style is there."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("supervisor/scraper_supervisor", "workers/scraper_worker")
NAMES = ("architecture", "checklists", "decisions", "development", "flaky-tests", "flows", "glossary")
PAGES = tuple(f"{name}.md" for name in NAMES)  # those for who works on the code
BASES = (ROOT, *(ROOT / package for package in PACKAGES))
MADE_WHILE_RUNNING = {"mark.json", "events.jsonl"}

CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)?(?:#([^)\s]+))?\)")
FILE = re.compile(r"[\w./-]+(?:\.(?:py|md|toml|sh|c|json|jsonl)|/)")
MEMBER = re.compile(r"([A-Z]\w+)\.(\w+)(?:\(.*\))?")
CLASS = re.compile(r"[A-Z]\w*[a-z]\w*|_?[A-Z][A-Z_]+")  # and constants
FUNCTION = re.compile(r"([a-z_]\w*)\(\)")


# ---- the map ---------------------------------------------------------------------------------------------------------


def mapped(page: str) -> list[str]:
    """The paths that the map names: those in the first column, each below the folder in the heading above it."""
    (section,) = re.findall(r"(?ms)^## The map$(.*?)^## ", page)
    found, folder = [], ""
    for line in section.splitlines():
        if line.startswith("### "):
            (folder,) = CODE.findall(line)
        elif line.startswith("| `"):
            found += [folder + name for name in CODE.findall(line.split("|")[1])]
    return found


def is_empty(path: Path) -> bool:
    """True for what only makes a folder a package: an `__init__.py` of one docstring."""
    return path.name == "__init__.py" and path.parent.name not in ("scraper_supervisor", "scraper_worker")


def in_the_tree() -> set[str]:
    """Every module of the packages, every helper and folder of the tests, every benchmark and script."""
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not is_empty(path)]
    tests = [path for path in (ROOT / "tests").rglob("*") if path.suffix in (".py", ".sh")]
    helpers = [path for path in tests if not path.name.startswith("test_") or path.parent == ROOT / "tests"]
    others = [path for name in ("bench", "scripts") for path in (ROOT / name).iterdir() if path.is_file()]
    paths = {path.relative_to(ROOT).as_posix() for path in (*modules, *helpers, *others)}
    tiers = {path.relative_to(ROOT).parts[1] for path in tests if path.parent != ROOT / "tests"}
    return paths | {f"tests/{tier}/" for tier in tiers}


def test_the_map_names_every_module_once_and_no_other() -> None:
    named = mapped((DOCS / "architecture.md").read_text(encoding="utf-8"))
    there = in_the_tree()
    assert (there - set(named), set(named) - there) == (set(), set()), "(not on the map, not in the tree)"
    assert len(named) == len(there), "something is named twice"


def test_the_folders_of_the_map_are_packages_with_a_docstring() -> None:
    for package in PACKAGES:
        for path in filter(is_empty, (ROOT / package).rglob("__init__.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), path
            assert len(tree.body) == 1, f"{path}: what is more than a docstring belongs on the map"


def test_the_layers_on_the_page_are_those_of_the_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one["type"] == "layers")
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert "\n".join(f"    {layer}" for layer in layers) in page


# ---- names -----------------------------------------------------------------------------------------------------------


@cache
def code_of(path: Path) -> tuple[dict[str, set[str]], set[str]]:
    """A file's classes with their members (aliases and constants with none), and its functions."""
    members: dict[str, set[str]] = {}
    functions: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            members.setdefault(node.name, set()).update(members_of(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    members.setdefault(target.id, set())
    return members, functions


@cache
def code() -> tuple[dict[str, set[str]], set[str]]:
    """The same of the whole project."""
    members: dict[str, set[str]] = {}
    functions: set[str] = set()
    for path in (path for name in ("supervisor", "workers", "tests", "bench") for path in (ROOT / name).rglob("*.py")):
        for name, found in code_of(path)[0].items():
            members.setdefault(name, set()).update(found)
        functions |= code_of(path)[1]
    return members, functions


def members_of(node: ast.ClassDef) -> set[str]:
    """Methods, fields, and what is set on self."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(part.name)
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.add(part.target.id)
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            found.add(part.attr)
    return found


def is_there(name: str) -> bool:
    """False for a name of the code that the code does not have; anything else is none of ours."""
    members, functions = code()
    if FILE.fullmatch(name):
        return name in MADE_WHILE_RUNNING or any((base / name).exists() for base in BASES)
    if found := MEMBER.fullmatch(name):
        return found[2] in members.get(found[1], ())
    if found := FUNCTION.fullmatch(name):
        return found[1] in functions
    return CLASS.fullmatch(name) is None or name in members


def without_the_map(page: str) -> str:
    return re.sub(r"(?ms)^## The map$.*?(?=^## )", "", page)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_is_there(name: str) -> None:
    text = without_the_map((DOCS / name).read_text(encoding="utf-8"))
    assert [found for found in CODE.findall(text) if not is_there(found)] == []


def test_a_word_lives_where_the_glossary_says() -> None:
    rows = re.findall(r"(?m)^\| .+ \| `([^`|]+)`(?: `(\w+)`)? \|$", (DOCS / "glossary.md").read_text(encoding="utf-8"))
    assert len(rows) > 40
    for file, name in rows:
        path = ROOT / PACKAGES[0] / file
        assert path.is_file(), file
        assert not name or name in code_of(path)[0], f"{name} is not in {file}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("core/fleet.py", True),
        ("tests/core/", True),
        ("core/gone.py", False),
        ("Fleet.step", True),
        ("Fleet.stride", False),
        ("Nobody.step", False),
        ("Fleet", True),
        ("Nobody", False),
        ("STAYS", True),
        ("_BEGINS", True),
        ("STAYED", False),
        ("conclude()", True),
        ("nothing_of_the_kind()", False),
        ("item.done", True),
    ],
)
def test_a_name_that_is_not_there_is_seen(name: str, there: bool) -> None:
    assert is_there(name) == there


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in path:
            continue
        goal = (page.parent / path) if path else page
        assert goal.exists(), f"{page.name}: {path}"
        assert not anchor or anchor in anchors(goal), f"{page.name}: {path}#{anchor}"
