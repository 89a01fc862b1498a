"""Promises: against scipy's tails, a slow version of the bets, and simulations of networks with early exits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compressor import certify
from compressor.certify import Paired, bound, certified, images_needed, p_value, worst_class

DROPS = (0.002, 0.01, 0.02)


@given(images=st.integers(1, 3000), share=st.floats(0, 0.05))
def test_where_few_may_be_lost_it_is_scipys_exact_test(images, share):
    lost, drop = int(share * images), min(7.9 / images, 0.5)
    expected = stats.binomtest(lost, images, drop, alternative="less").pvalue
    assert p_value(Paired(images, lost), drop) == pytest.approx(expected)


def slow_tail(images, difference, drop, share):
    """The same probability image by image: the distribution of lost less won, convolved."""
    found = {0: 1.0}
    for _ in range(images):
        new: dict[int, float] = {}
        for value, probability in found.items():
            for step, chance in ((1, drop + share), (-1, share), (0, 1 - drop - 2 * share)):
                new[value + step] = new.get(value + step, 0.0) + probability * chance
        found = new
    return sum(probability for value, probability in found.items() if value <= difference)


@given(
    lost=st.integers(0, 12), won=st.integers(0, 12), drop=st.floats(0.1, 0.3), share=st.just(0.0) | st.floats(1e-6, 0.3)
)
def test_the_tail_is_that_of_single_images(lost, won, drop, share):
    images = 80
    assert certify._tail(Paired(images, lost, won), drop, share) == pytest.approx(
        slow_tail(images, lost - won, drop, share), abs=1e-9
    )


@given(
    images=st.integers(800, 4000), drop=st.floats(0.01, 0.05), won=st.floats(0, 0.02), below=st.floats(0.05, 1),
    shares=st.tuples(st.floats(1e-6, 0.05), st.floats(1e-6, 0.05)),
)  # fmt: skip
def test_the_tail_grows_with_the_share_won_where_a_promise_may_be_kept(images, drop, won, below, shares):
    """So that the largest share alone is looked at: wherever fewer are lost than the promise leaves."""
    wins = int(won * images)
    paired = Paired(images, wins + int((1 - below) * drop * images), wins)
    small, large = sorted(shares)
    one, other = certify._tail(paired, drop, small), certify._tail(paired, drop, large)
    assert one <= other * (1 + 1e-6) + 1e-9 or one > 0.05 < other


def test_a_bound_is_where_the_test_turns():
    for paired in (Paired(3000, 12, 6), Paired(400, 1, 0), Paired(2000, 40, 38)):
        found = bound(paired)
        assert p_value(paired, found) <= 0.05 < p_value(paired, found - 2e-5)
    assert bound(Paired(0, 0)) == pytest.approx(1.0) and bound(Paired(1, 1, 0)) == pytest.approx(1.0)


def test_how_many_images_would_do():
    assert images_needed(0.002) == 1497
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


def draw(images, random):
    """One data set: of every candidate how many images are lost and won."""
    sure, chance = random.random(images), random.random(images)
    lost, won = chance < 0.24 * sure**3, chance > 1 - 0.06 * sure**3
    at = np.searchsorted(SHARES, sure)
    counts = [np.cumsum(np.bincount(at[each], minlength=len(SHARES))) for each in (lost, won)]
    return [Paired(images, int(a), int(b)) for a, b in zip(*counts, strict=True)]


def simulated(images, drop, runs):
    """How often the promise is broken, how often without a certificate, and how much dearer it is (shares)."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(runs):
        found = draw(images, random)
        count = certified(found, drop)
        naive = max((number + 1 for number, each in enumerate(found) if each.drop <= drop), default=0)
        rows.append((TRULY[count] > drop, TRULY[naive] > drop, MACS[count] - MACS[naive]))
    return np.mean(rows, axis=0)


def most(runs):
    """One in twenty, and two standard errors of the simulation."""
    return 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_a_promise_is_broken_in_one_draw_of_twenty_at_most():
    broken, without, dearer = simulated(2000, 0.01, 150)
    assert broken <= most(150) < 0.3 < without and 0 < dearer < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("images", [500, 2000, 6000])
@pytest.mark.parametrize("drop", DROPS)
def test_a_promise_holds_in_a_thousand_draws(images, drop):
    broken, without, dearer = simulated(images, drop, 1000)
    print(f"n={images} X={drop}: broken {broken:.3f}, uncertified {without:.3f}, dearer by {dearer:.3f} of the MACs")
    assert broken <= most(1000)
