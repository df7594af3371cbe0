"""What the hold policy does on good days and on bad ones: false aborts, and how soon an outage is held and aborted.

Run: `python bench/abort.py days [--days N] [--only NAME]` or `python bench/abort.py outages [--rounds N]`. All take
`--set KEY=VALUE` for keys of `[abort]`, so that a rule is judged before it is used. `record FILE [--only NAME]` writes
the attempts of one simulated day as events that `abort replay FILE` reads; `cost` tells what a vote costs. The policy
is the supervisor's own; workers, items and the site are simulated (`tests/core/policy/holds/farm.py`): 8 workers, an
attempt each 2 s, 10% of the attempts failing where nothing else is said.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.core.policy.holds.farm import ERROR, Farm, Fault, blips, drifting, healthy, out, poisoned  # noqa: E402

from scraper_supervisor.core.config.settings import AbortSettings  # noqa: E402
from scraper_supervisor.core.formats.timestamps import timestamp  # noqa: E402
from scraper_supervisor.core.policy.holds.policy import HoldPolicy  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    Site = Callable[[float, str, str | None, str], Fault | None]

DAY = 86_400.0
FIFTY = {f"group-{number}": (1, [f"{letter}{number}.test" for letter in "abcdef"]) for number in range(8)}
TARGETS = [f"{number}.test" for number in range(24)]
TWO = {"dead": (4, ["dead.test"]), "well": (4, ["well.test"])}


def one_dead(seed: int) -> Site:
    """Everything of one group fails from the second hour on; of the other as ever."""
    well = healthy(seed)
    return lambda now, group, target, key: ERROR if group == "dead" and now > 3600 else well(now, group, target, key)


DAYS: dict[str, tuple[Callable[[int], Site], dict[str, Any] | None]] = {
    "independent failures": (healthy, None),
    "drifting hourly, 2-18%": (drifting, None),
    "24 blips of 10-30 s": (lambda seed: out(blips(seed), healthy(seed)), None),
    "10% of items poisoned": (poisoned, None),
    "57 scopes at once": (healthy, FIFTY),
    "one group dead, one well": (one_dead, TWO),
}


def upper_bound(events: int, trials: int, confidence: float = 0.95) -> float:
    """The exact (Clopper-Pearson) upper bound of a share, one-sided."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chance = sum(comb(trials, k) * middle**k * (1 - middle) ** (trials - k) for k in range(events + 1))
        low, high = (middle, high) if chance > 1 - confidence else (low, middle)
    return high


def days(args: argparse.Namespace, settings: AbortSettings) -> None:
    """Simulated days on which nothing is to be aborted, but for the one dead group."""
    print(f"== false aborts in {args.days} simulated days each, from seed {args.seed} ==")
    for name, (site, groups) in DAYS.items():
        if args.only not in name:
            continue
        begin, aborts, holds, attempts = time.monotonic(), 0, 0, 0
        for seed in range(args.seed, args.seed + args.days):
            farm = Farm(site(seed), groups, settings=settings, seed=seed).run(DAY)
            aborts += any(one.action == "aborted" and one.name.group != "dead" for one in farm.rulings)
            holds += sum(one.action == "held" and one.name.group != "dead" for one in farm.rulings)
            attempts += sum(farm.outcomes.values())
        bound, took = upper_bound(aborts, args.days), time.monotonic() - begin
        print(
            f"{name:28} {aborts:4} of {args.days} days, 95% upper bound {bound:.2%}, "
            f"{holds / args.days:6.2f} holds a day, {attempts / args.days:9.0f} items ended a day, {took:.0f} s",
            flush=True,
        )


def votes_to_hold(settings: AbortSettings, rate: float, seed: int) -> int:
    """How many votes of a scope that was well are cast at this rate before it is held."""
    policy, before, after = HoldPolicy(settings, {}), healthy(seed), healthy(f"{seed} {rate}", rate)
    for number in range(20_000):
        site = before if number < 2000 else after
        policy.vote(number * 0.25, "g", str(number), failed=site(0, "g", None, "") is not None, target="a.test")
        if any(ruling.action == "held" for ruling in policy.evaluate(number * 0.25)):
            return number - 1999
    return 20_000


def outages(args: argparse.Namespace, settings: AbortSettings) -> None:
    """How soon what is really wrong is held and aborted, and what an outage of a minute costs."""
    print(f"== outages, medians of {args.rounds} rounds ==")
    for rate in (0.5, 0.9, 1.0):
        seen = [votes_to_hold(settings, rate, seed) for seed in range(args.rounds)]
        print(f"a shift to {rate:4.0%}: held after {statistics.median(seen):.0f} votes (most {max(seen)})")
    held, aborted = [], []
    for seed in range(args.rounds):
        farm = Farm(out([(600, DAY)], healthy(seed)), settings=settings, seed=seed).run(900)
        held.append((farm.first("held", 600) or DAY) - 600)
        aborted.append((farm.first("aborted", 600) or DAY) - 600)
    print(
        f"a full outage: held after {statistics.median(held):.1f} s, "
        f"aborted after {min(aborted):.0f}-{max(aborted):.0f} s, median {statistics.median(aborted):.1f} s"
    )
    five = {"g": (8, [f"{letter}.test" for letter in "abcde"])}
    told: Counter[tuple[str, str]] = Counter()
    for seed in range(args.rounds):
        farm = Farm(out([(600, DAY)], healthy(seed), where="c.test"), five, settings=settings, seed=seed).run(1200)
        told.update((one.action, str(one.name)) for one in farm.rulings if one.action != "evaluated")
    print(f"one target of five dead: {dict(told)}")
    first = []
    for seed in range(args.rounds):
        farm = Farm(poisoned(seed, 0.6), settings=settings, seed=seed).run(7200)
        first.append(farm.first("aborted") or DAY)
    print(f"60% of the items fail for hours: aborted after {statistics.median(first):.0f} s (most {max(first):.0f} s)")
    minute(args, settings)


def minute(args: argparse.Namespace, settings: AbortSettings) -> None:
    """One target goes away for 60 s under 50 workers."""
    during, failed, ratio, back = [], [], [], []
    for seed in range(args.rounds):
        site = out([(600, 660)], healthy(seed))
        farm = Farm(site, {"g": (50, ["a.test"])}, settings=settings, seed=seed, watched=True).run(900)
        calm = Farm(healthy(seed), {"g": (50, ["a.test"])}, settings=settings, seed=seed, watched=True).run(900)
        per_second = len(calm.begun) / 900
        since = farm.first("held", 600) or 660
        during.append(sum(since <= begun < 660 for begun, _ in farm.begun) / (660 - since) / per_second)
        failed.append(farm.outcomes["failed"] - calm.outcomes["failed"])
        done, calm_done = len(farm.ends), len(calm.ends)
        ratio.append((len(farm.begun) / done) / (len(calm.begun) / calm_done))
        ends = Counter(int(end) for end, _ in farm.ends)
        per_done = calm_done / 900
        window = 5  # seconds over which throughput is measured
        back.append(
            next(s for s in range(240) if sum(ends[660 + s + k] for k in range(window)) >= 0.9 * per_done * window)
        )
    print(
        f"60 s away under 50 workers: traffic while held {statistics.median(during):.1%} of normal, attempts an item "
        f"{statistics.median(ratio):.3f} of healthy, {max(failed)} more items failed, 90% of the throughput after "
        f"{statistics.median(back):.0f} s"
    )


def record(args: argparse.Namespace, settings: AbortSettings) -> None:
    """Write the first of the chosen days as an events file."""
    name, (site, groups) = next(one for one in DAYS.items() if args.only in one[0])
    farm = Farm(site(args.seed), groups, settings=settings, seed=args.seed, watched=True).run(DAY)
    with args.file.open("wb") as file:
        for now, group, target, key, fault in farm.attempts:
            failure = None
            if fault is not None:
                failure = {"kind": fault.kind, "category": "external", "signature": "simulated", "message": "simulated"}
                failure |= {"status": fault.status, "retry_after": fault.retry_after}
            outcome = "done" if fault is None else "retry"
            data = {"key": key, "attempt": 1, "outcome": outcome, "target": target, "seconds": farm.seconds}
            event = {"time": timestamp(now), "event": "item_finished", "group": group}
            file.write(msgspec.json.encode({**event, "data": {**data, "failure": failure}}) + b"\n")
    print(f"{len(farm.attempts)} attempts of a day of {name}: {args.file}")


def cost(args: argparse.Namespace, settings: AbortSettings) -> None:
    """What a vote costs: the least of some rounds, since a busy machine only ever takes longer."""
    number, keys = 100_000, [str(number) for number in range(100_000)]
    for rate in (0.0, 0.1):
        dice = healthy(0, rate)
        failed = [dice(0, "g", None, "") is not None for _ in range(number)]
        least = float("inf")
        for _ in range(args.rounds):
            policy = HoldPolicy(settings, {"g": settings})
            begin = time.process_time()
            for index in range(number):
                policy.vote(index * 0.01, "g", keys[index], failed=failed[index], target=TARGETS[index % 24])
            least = min(least, time.process_time() - begin)
        print(f"a vote, {rate:3.0%} failing: {least / number * 1e6:.2f} µs (of an item on the core: bench/core.py)")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("days", "outages", "record", "cost"))
    parser.add_argument("file", type=Path, nargs="?", default=Path("events.jsonl"), help="what record writes")
    parser.add_argument("--days", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only the days whose name has this in it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of [abort]")
    args = parser.parse_args()
    wanted = dict(one.split("=", 1) for one in args.set)
    settings = msgspec.convert(wanted, AbortSettings, strict=False)
    {"days": days, "outages": outages, "record": record, "cost": cost}[args.what](args, settings)


if __name__ == "__main__":
    main()
