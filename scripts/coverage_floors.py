#!/usr/bin/env python3
"""Hold what the tests have covered against the floors in tests/coverage_floors.toml, package by package.

    scripts/coverage_floors.py [--raise]

A package's share is that of its lines and branches together, in percent, sub-packages included. One below its floor
fails. One that is a point or more above asks for a higher floor, and `--raise` writes it: floors only rise.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ROOT / "tests" / "coverage_floors.toml"
SLACK = 0.3  # percent that a run may cover less than another: what threads and signals reach differs


def shares() -> dict[str, float]:
    """Package to percent of lines and branches that were covered, for every package and all above it."""
    measured = Coverage()
    measured.load()
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        measured.json_report(outfile=report.name)
        files = json.load(report)["files"]
    there: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    for name, file in files.items():
        parts = (ROOT / name).relative_to(ROOT).parts[1:-1]
        summary = file["summary"]
        for depth in range(1, len(parts) + 1):
            package = ".".join(parts[:depth])
            there[package] += summary["num_statements"] + summary["num_branches"]
            covered[package] += summary["covered_lines"] + summary["covered_branches"]
    return {package: 100 * covered[package] / total for package, total in sorted(there.items()) if total}


def main() -> int:
    """Print each package's share beside its floor; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raise", action="store_true", dest="lift", help="write the floors that may rise")
    lift = parser.parse_args().lift
    text = FLOORS.read_text()
    floors: dict[str, float] = tomllib.loads(text)["floors"]
    found = shares()
    problems = []
    for package, floor in floors.items():
        share = found.get(package)
        if share is None:
            problems.append(f"{package} has a floor in {FLOORS.name}, and is no package that was measured")
            continue
        remark = ""
        if share < floor:
            remark = "  too low"
            problems.append(f"{package} is covered to {share:.2f} %, below its floor of {floor} %: test what is new")
        elif share >= floor + 1:
            higher = math.floor(10 * (share - SLACK)) / 10
            remark = f"  raise its floor to {higher}: scripts/coverage_floors.py --raise"
            text = re.sub(rf'(?m)^("{re.escape(package)}" = ).*$', rf"\g<1>{higher}", text)
        print(f"{package:45} {share:6.2f} %  floor {floor:5} %{remark}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if lift:
        FLOORS.write_text(text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
