"""What a benchmark promises, held against what it saw."""

from __future__ import annotations


class Targets:
    """Collects figures and says at the end which of them are met."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._missed = 0

    def at_least(self, name: str, value: float, bound: float) -> None:
        """A figure that should be large."""
        self._add(name, value, f"at least {bound:g}", value >= bound)

    def at_most(self, name: str, value: float, bound: float) -> None:
        """A figure that should be small."""
        self._add(name, value, f"at most {bound:g}", value <= bound)

    def _add(self, name: str, value: float, target: str, met: bool) -> None:
        self._missed += not met
        self._lines.append(f"  {'met   ' if met else 'MISSED'}  {name}: {value:.3g} (target: {target})")

    def report(self) -> int:
        """Print them; the exit code."""
        print("== targets ==")
        print("\n".join(self._lines) or "  none")
        return 1 if self._missed else 0
