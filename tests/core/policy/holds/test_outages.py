"""The hold policy in a simulated farm: outages are held within seconds and aborted when they stay, blips are not."""

import pytest
from tests.core.policy.holds.farm import Farm, Fault, blips, drifting, healthy, out, poisoned

FIVE = {"g": (8, [f"{letter}.test" for letter in "abcde"])}
DAY = 86_400.0


@pytest.mark.parametrize("seed", range(3))
def test_a_full_outage_is_held_within_10_s_and_aborted_within_60_to_90_s(seed):
    farm = Farm(out([(600, DAY)], healthy(seed)), seed=seed).run(900)
    assert farm.first("held") - 600 < 10
    assert 60 <= farm.first("aborted") - 600 <= 90


@pytest.mark.parametrize("seed", range(3))
def test_one_dead_target_of_five_is_held_and_aborted_alone(seed):
    farm = Farm(out([(600, DAY)], healthy(seed), where="c.test"), FIVE, seed=seed, watched=True).run(1200)
    assert {ruling.name.key for ruling in farm.rulings} == {"c.test"}
    assert farm.actions("target")[-1] == "aborted"
    late = [target for begun, target in farm.begun if begun > 900]
    assert "c.test" not in late
    assert len(late) >= 0.95 * 300 * 4, "the others have all workers"


def test_blips_are_held_and_nothing_is_aborted():
    farm = Farm(out(blips(1, a_day=6, day=6 * 3600.0), healthy(1)), seed=1).run(6 * 3600.0)
    assert farm.actions().count("held") == farm.actions().count("resumed") == 6
    assert "aborted" not in farm.actions()


@pytest.mark.untraced
@pytest.mark.slow
@pytest.mark.parametrize("site", [healthy, drifting, poisoned])
def test_hours_of_what_is_normal_raise_no_alarm(site):
    assert Farm(site(3), seed=3).run(4 * 3600.0).rulings == []


def test_a_dead_group_beside_a_healthy_one_goes_down_alone():
    well = healthy(2)
    site = out([(60, DAY)], well, where="dead.test")
    farm = Farm(site, {"dead": (4, ["dead.test"]), "well": (4, ["well.test"])}, seed=2).run(1200)
    assert {ruling.name.group for ruling in farm.rulings} == {"dead"}
    assert farm.first("aborted") < 160


@pytest.mark.parametrize("seed", range(2))
def test_a_target_that_fails_60_percent_is_aborted_by_its_window_whatever_its_probes_say(seed):
    farm = Farm(poisoned(seed, 0.6), seed=seed).run(3600)
    assert farm.actions().count("resumed") >= 3
    assert 300 <= farm.first("aborted") < 360


def test_a_site_that_says_come_back_in_half_an_hour_is_held_for_that_long():
    well, busy = healthy(4), Fault("blocked", 429, 1800.0)
    farm = Farm(lambda now, *rest: busy if 600 <= now < 2300 else well(now, *rest), seed=4, watched=True).run(3600)
    (held,) = [ruling for ruling in farm.rulings if ruling.action == "held"]
    assert (held.time, held.name.group) == (600.0, None)
    assert "aborted" not in farm.actions()
    assert 2400 <= farm.first("resumed") <= 2410
    assert not [begun for begun, _ in farm.begun if 602 < begun < 2399]


def test_an_outage_of_a_minute_costs_no_item_and_little_traffic():
    site = out([(600, 660)], healthy(5))
    farm = Farm(site, {"g": (50, ["a.test"])}, seed=5, watched=True).run(800)
    held = farm.first("held")
    assert farm.actions().count("resumed") == 1
    assert sum(held <= begun < 660 for begun, _ in farm.begun) < 0.1 * 25 * (660 - held)
    assert farm.outcomes["failed"] <= 2  # 10% of the attempts fail anyway, five in a row now and then
    back = [end for end, _ in farm.ends if 675 <= end < 680]
    assert len(back) >= 0.9 * 0.9 * 25 * 5


def test_a_network_that_is_away_is_held_as_a_whole():
    groups = {name: (4, [f"{name}{number}.test" for number in range(3)]) for name in "gh"}
    farm = Farm(out([(600, 660)], healthy(6)), groups, seed=6).run(900)
    assert [one.name.scope for one in farm.rulings if one.action == "held"] == ["global"]
    assert farm.actions()[-1] == "resumed"
