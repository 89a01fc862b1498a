"""Promises: against scipy's tails, a slow version of the bets, and simulations of networks with early exits."""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from compressor import certify
from compressor.certify import Paired, bound, certified, images_needed, p_value, worst_class

DROPS = (0.002, 0.01, 0.02)


def likeliest(lost, won, images, drop):
    """The share won at which these counts are likeliest where the drop is just `drop`, by search."""

    def unlikely(share):
        chances = (drop + share, share, 1 - drop - 2 * share)
        return -sum(special.xlogy(count, chance) for count, chance in zip((lost, won, images - lost - won), chances))

    found = optimize.minimize_scalar(unlikely, bounds=(0, (1 - drop) / 2), method="bounded", options={"xatol": 1e-10})
    return min((found.x, 0.0), key=unlikely)


@pytest.fixture(scope="module")
def scores():
    """Of every outcome of a few images: its share won by search, and the score that follows."""
    images, drop = 24, 0.15
    found = {}
    for lost in range(images + 1):
        for won in range(images + 1 - lost):
            spread = images * (2 * likeliest(lost, won, images, drop) + drop - drop**2)
            found[lost, won] = (lost - won - images * drop) / math.sqrt(spread)
    return images, drop, found


def test_the_score_is_that_of_the_likeliest_share(scores):
    images, drop, found = scores
    for (lost, won), expected in found.items():
        got = certify._score(np.array(float(lost)), np.array(float(won)), images, drop)
        assert float(got) == pytest.approx(expected, abs=1e-4), (lost, won)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 2), (2, 3), (3, 3)])
def test_the_test_adds_up_all_outcomes_that_speak_as_much(lost, won, scores):
    images, drop, found = scores
    as_much = [pair for pair, score in found.items() if score <= found[lost, won] + 1e-6]
    low = stats.beta.ppf(certify._BESIDE / 2, won, images - won + 1) if won else 0.0
    high = min(stats.beta.ppf(1 - certify._BESIDE / 2, won + 1, images - won), (1 - drop) / 2)
    chances = (
        sum(
            stats.multinomial.pmf((a, b, images - a - b), images, (drop + share, share, 1 - drop - 2 * share))
            for a, b in as_much
        )
        for share in np.linspace(low, high, 60)
    )
    assert p_value(Paired(images, lost, won), drop) == pytest.approx(max(chances) + certify._BESIDE, abs=2e-3)


@pytest.mark.parametrize(("images", "drop"), [(40, 0.1), (60, 0.06)])
def test_a_promise_that_just_fails_is_made_as_seldom_as_said(images, drop):
    """By all outcomes, at every share won: no more often than 1 - confidence."""
    every = ((lost, won) for lost in range(images + 1) for won in range(images + 1 - lost))
    outcomes = [(lost, won) for lost, won in every if lost - won < images * drop]
    values = np.array([p_value(Paired(images, *pair), drop) for pair in outcomes])
    counts = np.array([(lost, won, images - lost - won) for lost, won in outcomes])
    for share in np.linspace(0, (1 - drop) / 2, 80):
        chances = stats.multinomial.pmf(counts, images, (drop + share, share, 1 - drop - 2 * share))
        for risk in (0.01, 0.05, 0.1):
            assert chances[values <= risk].sum() <= risk


def test_a_bound_is_where_the_test_turns():
    for paired in (Paired(3000, 12, 6), Paired(400, 1, 0), Paired(2000, 40, 38)):
        found = bound(paired)
        assert p_value(paired, found) <= 0.05 < p_value(paired, found - 2e-5)
    assert bound(Paired(0, 0)) == pytest.approx(1.0) and bound(Paired(1, 1, 0)) == pytest.approx(1.0)


def test_how_many_images_would_do():
    assert images_needed(0.002) == 1507
    for drop in DROPS:
        needed = images_needed(drop)
        assert p_value(Paired(needed, 0), drop) <= 0.05 < p_value(Paired(needed - 1, 0), drop)
        assert certified([Paired(needed, 0)], drop) == 1 and certified([Paired(needed - 1, 0)], drop) == 0
    assert images_needed(0.01, share_lost=0.005) > images_needed(0.01)
    with pytest.raises(ValueError, match="no number of them promises"):
        images_needed(0.01, share_lost=0.01)


def test_the_first_that_fails_ends_it():
    good, bad = Paired(2000, 2), Paired(2000, 60)
    assert certified([good, good, bad, good], 0.01) == 2
    assert certified([], 0.01) == 0 and certified([bad, good], 0.01) == 0


def test_pairs_are_counted_and_impossible_ones_refused():
    assert Paired.of([True, True, False, False], [True, False, True, False]) == Paired(4, 1, 1)
    assert Paired(4, 2, 1).drop == 0.25
    with pytest.raises(ValueError, match="of 3 images"):
        Paired(3, 2, 2)


def test_the_worst_class_is_the_one_that_loses_most():
    labels = [0, 0, 0, 0, 1, 1, 2]
    larger = [True, True, True, True, True, True, False]
    smaller = [True, True, True, False, False, True, True]
    assert worst_class(labels, larger, smaller) == (1, 0.5, 2)


# An ordinary network with early exits: the surest images leave first, up to all of them, which saves 60 % of the MACs.
# Of the images as sure as the share `u` has, 0.24 u^3 are lost and 0.06 u^3 won: 6 % and 1.5 % of all at the cheap end.
SHARES = np.linspace(0, 1, 101)[1:]
LOST, WON = 0.06 * SHARES**4, 0.015 * SHARES**4
MACS = np.append(1.0, 1 - 0.6 * SHARES)
TRULY = np.append(0.0, LOST - WON)
SPREAD = np.sqrt(LOST + WON - (LOST - WON) ** 2)


def draw(images, random):
    """One data set: of every candidate how many images are lost and won."""
    sure, chance = random.random(images), random.random(images)
    lost, won = chance < 0.24 * sure**3, chance > 1 - 0.06 * sure**3
    at = np.searchsorted(SHARES, sure)
    counts = [np.cumsum(np.bincount(at[each], minlength=len(SHARES))) for each in (lost, won)]
    return [Paired(images, int(a), int(b)) for a, b in zip(*counts, strict=True)]


def simulated(images, drop, runs):
    """How often the promise is broken, how often without a certificate, and how much dearer it is (shares).

    The last is how much dearer a test would be that knew each candidate's true spread, which none can be below.
    """
    random = np.random.default_rng(0)
    rows = []
    for _ in range(runs):
        found = draw(images, random)
        count = certified(found, drop)
        naive = max((number + 1 for number, each in enumerate(found) if each.drop <= drop), default=0)
        surely = drop - stats.norm.ppf(0.95) * SPREAD / math.sqrt(images)
        known = next((number for number, each in enumerate(found) if each.drop > surely[number]), len(found))
        dearer = MACS[[count, known]] - MACS[naive]
        rows.append((TRULY[count] > drop, TRULY[naive] > drop, *dearer))
    return np.mean(rows, axis=0)


def most(runs):
    """One in twenty, and two standard errors of the simulation."""
    return 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_a_promise_is_broken_in_one_draw_of_twenty_at_most():
    broken, without, dearer, known = simulated(2000, 0.01, 150)
    assert broken <= most(150) < 0.3 < without and 0 < known < dearer < 0.07


@pytest.mark.slow
@pytest.mark.parametrize("images", [500, 2000, 6000])
@pytest.mark.parametrize("drop", DROPS)
def test_a_promise_holds_in_a_thousand_draws(images, drop):
    broken, without, dearer, known = simulated(images, drop, 1000)
    print(f"n={images} X={drop}: broken {broken:.3f}, uncertified {without:.3f}, dearer by {dearer:.3f} of the MACs")
    print(f"a test that knew the spread: {known:.3f}")
    assert broken <= most(1000)
    assert images * drop < 10 or dearer < known + 0.025
