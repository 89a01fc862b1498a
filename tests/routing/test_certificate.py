"""A threshold with a promise: the last of a fixed order that an exact test lets pass."""

import itertools

import numpy as np
import pytest
import torch

from compressor.certify import Paired, p_value
from compressor.routing.certificate import THRESHOLDS, certified_point
from compressor.routing.costs import Costs
from compressor.routing.observing import Observation

COSTS = Costs(whole=100, fixed=(40, 100), routed=(42, 102), early_exit=(41, 101), router=2)


def population(images, seed=0, hard=0.3):
    """Two depths: the first is wrong where the router is unsure, more often the harder the images are."""
    source = torch.Generator().manual_seed(seed)
    sure, chance = (torch.rand(images, generator=source) for _ in range(2))
    shallow = chance > hard * (1 - sure) ** 2
    deep = torch.rand(images, generator=source) > 0.02
    entropy = torch.zeros(images, 2)
    return Observation(torch.stack([shallow, deep], 1), entropy, sure[:, None], ()), deep


def classes(images):
    return torch.randint(3, (images,), generator=torch.Generator().manual_seed(1))


def found(images, drop, seed=0, **given):
    seen, before = population(images, seed, **given)
    return certified_point(seen, COSTS, before, classes(images), ("a", "b", "c"), drop=drop, confidence=0.95)


def test_thresholds_go_from_all_layers_to_the_first_exit():
    assert all(a > b for a, b in itertools.pairwise(THRESHOLDS)) and THRESHOLDS[0] > 1 and THRESHOLDS[-1] == 0


@pytest.mark.parametrize("drop", [0.005, 0.01, 0.03])
def test_the_threshold_is_the_last_that_the_test_lets_pass(drop):
    seen, before = population(4000)
    point, certificate = found(4000, drop)

    def p(threshold):
        right = torch.where(seen.suffices[:, 0] >= threshold, seen.right[:, 0], seen.right[:, 1])
        return p_value(Paired.of(before.tolist(), right.tolist()), drop)

    at = THRESHOLDS.index(pytest.approx(point.setting, abs=1e-6))
    assert p(THRESHOLDS[at]) <= 0.05 < p(THRESHOLDS[at + 1])
    assert all(p(threshold) <= 0.05 for threshold in THRESHOLDS[: at + 1])
    assert certificate.kept and certificate.drop <= drop and 42 < point.macs < 102
    assert certificate.observed <= certificate.drop


def test_more_may_be_lost_the_cheaper_it_gets_and_more_images_help():
    macs = [found(4000, drop)[0].macs for drop in (0.003, 0.01, 0.05)]
    assert macs == sorted(macs, reverse=True) and macs[0] > macs[-1]
    assert found(8000, 0.01)[0].macs < found(1000, 0.01)[0].macs


def test_too_few_images_promise_nothing_and_say_how_many_would():
    point, certificate = found(300, 0.002)
    assert not certificate.kept and point.shares == (0.0, 1.0)
    assert certificate.words().startswith(
        "No promise of at most 0.2 points of top-1 can be made on 300 images at 95% confidence, so all layers run; "
        "with as many lost as here, 0.00 points, 1,507 would do, and at most 1.00 points can be promised on these."
    )


def test_the_sentence_has_all_that_an_average_hides():
    _, certificate = found(4000, 0.03)
    words = certificate.words()
    assert words.startswith(
        "Loses at most 3 points of top-1 on images like these, with 95% confidence (n = 4,000, exact"
    )
    assert certificate.worst_drop >= certificate.observed and f"{certificate.agreement:.1%}" in words


def test_a_network_that_lost_too_much_by_its_training_says_so():
    seen, before = population(4000)
    worse = Observation(seen.right & (torch.rand(4000, 1) > 0.1), seen.entropy, seen.suffices, ())
    _, certificate = certified_point(worse, COSTS, before, classes(4000), ("a", "b", "c"), drop=0.01, confidence=0.95)
    assert not certificate.kept and "on these it loses" in certificate.words()


@pytest.mark.parametrize("runs", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_promises_are_broken_in_one_of_twenty_at_most(runs):
    """On fresh images of the same kind, by many of them."""
    fresh, before = population(200_000, seed=99)
    broken = 0
    for seed in range(runs):
        point, _ = found(3000, 0.01, seed)
        right = torch.where(fresh.suffices[:, 0] >= point.setting, fresh.right[:, 0], fresh.right[:, 1])
        broken += Paired.of(before.tolist(), right.tolist()).drop > 0.01
    assert broken / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
