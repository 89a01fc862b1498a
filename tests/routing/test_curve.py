"""Curves and thresholds against loops over made-up observations."""

import itertools

import numpy as np
import pytest
import torch

from compressor.certify import Paired, p_value
from compressor.errors import UsageError
from compressor.graph.trace import trace
from compressor.profiling.costs import count_macs
from compressor.routing.curve import (
    THRESHOLDS,
    Costs,
    Point,
    certified_point,
    cheapest,
    choose,
    choose_in_time,
    costs,
    early_exit_at,
    early_exit_points,
    fixed_points,
    mean_ms,
    point_at,
    routed_points,
    thinned,
)
from compressor.routing.observing import Observation
from tests.routing.nets import NETWORKS, SHAPE, images, routed


@pytest.mark.parametrize("heads", ["own", "shared"])
@pytest.mark.parametrize("router", ["gates", "image", "argmax"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_path_costs_are_what_runs(network, router, heads):
    net = routed(network, router=router, heads=heads).eval()
    counted = costs(net)
    for depth in range(net.depths):
        limits = [2.0] * (net.depths - 1)
        limits[depth:] = [-2.0] * (net.depths - 1 - depth)
        net.set_threshold_(limits)
        assert net.route(images(1))[1].tolist() == [depth]
        ran = count_macs(trace(net, images(1))).total
        assert ran == counted.routed[depth]


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_whole_and_first_depth_are_known_by_hand(network):
    counted = costs(routed(network, heads="shared", router="argmax"))
    first = next(iter(network.units.values()))
    assert counted.whole == counted.fixed[-1] == sum(network.units.values()) + network.head
    assert counted.fixed[0] == first + network.head
    assert counted.routed[0] == counted.fixed[0] + counted.router


def test_early_exit_pays_for_every_head_on_its_way():
    net = routed(heads="own")
    counted = costs(net)
    heads = [64 * channels // 4 * 10 for channels in (4, 6)]  # maps are pooled to 4x4
    assert counted.early_exit[0] == counted.fixed[0]
    assert counted.early_exit[1] == counted.fixed[1] + heads[0]
    assert counted.early_exit[2] == counted.fixed[2] + sum(heads)
    gates = [16 * (channels + 10 + 3) + 16 for channels in (4, 6)]
    assert counted.router == sum(gates)
    assert counted.routed[1] == counted.early_exit[1] + sum(gates)


def test_counting_leaves_the_network_alone():
    net = routed().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    costs(net)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.layout.input_shape == SHAPE


COSTS = Costs(whole=100, fixed=(20, 60, 100), routed=(21, 62, 103), early_exit=(20, 61, 102), router=3)


def seen(images: int = 50) -> Observation:
    source = torch.Generator().manual_seed(0)
    suffices = torch.rand(images, 2, generator=source)
    right = torch.rand(images, 3, generator=source) < torch.tensor([0.6, 0.8, 0.9])
    entropy = torch.rand(images, 3, generator=source) * 2
    return Observation(right, entropy, suffices, ())


def by_hand(observed: Observation, leaves: torch.Tensor, costs: tuple[int, ...]) -> tuple[float, float]:
    macs, right = 0, 0
    for image in range(len(observed)):
        depth = next((d for d in range(2) if leaves[image, d]), 2)
        macs += costs[depth]
        right += int(observed.right[image, depth])
    return macs / len(observed), right / len(observed)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8, 2.0])
def test_router_point_against_a_loop(threshold):
    observed = seen()
    point = point_at(observed, COSTS, threshold)
    assert (point.macs, point.top1) == pytest.approx(by_hand(observed, observed.suffices >= threshold, COSTS.routed))
    assert sum(point.shares) == pytest.approx(1)


def test_an_image_exactly_at_the_routers_threshold_leaves():
    observed = seen()
    for image, depth in ((0, 0), (7, 1), (20, 0)):
        threshold = float(observed.suffices[image, depth])
        expected = by_hand(observed, observed.suffices >= threshold, COSTS.routed)
        point = point_at(observed, COSTS, threshold)
        assert (point.macs, point.top1) == pytest.approx(expected)
        assert point.macs != pytest.approx(by_hand(observed, observed.suffices > threshold, COSTS.routed)[0])


def test_every_depth_may_have_a_threshold_of_its_own():
    observed, thresholds = seen(), torch.tensor([0.7, 0.2])
    point = point_at(observed, COSTS, thresholds.tolist())
    assert (point.macs, point.top1) == pytest.approx(by_hand(observed, observed.suffices >= thresholds, COSTS.routed))
    assert point.setting == pytest.approx(0.7)


def test_an_image_exactly_as_sure_as_asked_exits_early():
    observed = seen()
    for image, depth in ((0, 0), (7, 1), (20, 0)):
        limit = float(observed.entropy[image, depth])
        point = early_exit_at(observed, COSTS, limit)
        expected = by_hand(observed, observed.entropy[:, :2] <= limit, COSTS.early_exit)
        assert (point.macs, point.top1) == pytest.approx(expected)
        assert point.macs != pytest.approx(by_hand(observed, observed.entropy[:, :2] < limit, COSTS.early_exit)[0])


def points(*rows: tuple[float, float]) -> list[Point]:
    """Of multiply-adds and top-1; half of the images leave at each of two depths."""
    return [Point("router", 0.5, macs, top1, (0.5, 0.5)) for macs, top1 in rows]


def test_of_equally_accurate_points_the_cheapest_is_taken():
    given = points((30, 0.7), (40, 0.9), (50, 0.9), (60, 0.8), (90, 0.95))
    for order in (given, given[::-1]):
        assert choose(order, COSTS, target_macs=0.6, max_drop=0.0).macs == 40
        assert choose(order, COSTS, target_macs=60, max_drop=0.0).macs == 40
        assert choose(order, COSTS, target_macs=None, max_drop=0.0).macs == 90
        assert choose(order, COSTS, target_macs=None, max_drop=0.0501).macs == 40
        assert choose_in_time(order, (1.0, 2.0), 5.0).macs == 90
    for order in (given[:4], given[3::-1]):
        assert choose_in_time(order, (1.0, 2.0), 5.0).macs == 40


def test_targets_up_to_one_are_shares_and_exactly_met_ones_count():
    given = points((40, 0.7), (100, 0.9))
    assert choose(given, COSTS, target_macs=1, max_drop=0.0).macs == 100
    assert choose(given, COSTS, target_macs=0.4, max_drop=0.0).macs == 40
    assert choose(given, COSTS, target_macs=99.9, max_drop=0.0).macs == 40
    assert choose_in_time(given, (1.0, 3.0), 2.0).macs == 100
    assert cheapest(given, 0.9).macs == 100 and cheapest(given, 0.7).macs == 40 and cheapest(given, 0.91) is None


def test_early_exit_points_against_a_loop():
    observed = seen()
    for point in thinned(early_exit_points(observed, COSTS), 5):
        leaves = observed.entropy[:, :2] <= point.setting
        assert (point.macs, point.top1) == pytest.approx(by_hand(observed, leaves, COSTS.early_exit))


def test_curves_reach_from_the_cheapest_depth_to_the_whole():
    observed = seen()
    for points, expected in (
        (routed_points(observed, COSTS), COSTS.routed),
        (early_exit_points(observed, COSTS), (20, 61, 102)),
    ):
        assert points[0].macs == expected[0]
        assert points[-1].macs == expected[-1]
        assert [point.macs for point in points] == sorted({point.macs for point in points})


def test_fixed_points_are_the_depths_themselves():
    observed = seen()
    points = fixed_points(observed, COSTS)
    assert [point.macs for point in points] == [20, 60, 100]
    assert [point.top1 for point in points] == pytest.approx(observed.right.double().mean(0).tolist())


def test_target_takes_the_most_accurate_point_within_it():
    points = routed_points(seen(), COSTS)
    chosen = choose(points, COSTS, target_macs=0.6, max_drop=0.0)
    assert chosen.macs <= 60
    assert chosen.top1 == max(point.top1 for point in points if point.macs <= 60)
    assert choose(points, COSTS, target_macs=60, max_drop=0.0) == chosen


def test_without_target_the_cheapest_point_that_loses_little_is_taken():
    points = routed_points(seen(), COSTS)
    best = max(point.top1 for point in points)
    assert choose(points, COSTS, target_macs=None, max_drop=0.05) == cheapest(points, best - 0.05)
    assert choose(points, COSTS, target_macs=None, max_drop=0.99).macs == 21


def test_target_that_no_route_meets_names_the_nearest():
    with pytest.raises(
        UsageError, match=r"no route costs .*20\.0%.*the cheapest takes .*21\.0%.*`target_macs`"
    ) as error:
        choose(routed_points(seen(), COSTS), COSTS, target_macs=0.2, max_drop=0.0)
    assert "\n" not in str(error.value)


def test_thinning_keeps_the_ends():
    points = routed_points(seen(500), COSTS)
    few = thinned(points, 7)
    assert len(few) <= 7
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert thinned(points[:3], 7) == points[:3]


@pytest.mark.parametrize("target", [2.0, 2.7, 4.9])
def test_within_milliseconds_no_point_is_more_accurate(target):
    """Depths whose times are in another order than their MACs would have them."""
    observed, times = seen(), (1.0, 5.0, 4.0)
    points = routed_points(observed, COSTS)
    chosen = choose_in_time(points, times, target)
    by_loop = sum(times[depth] * share for depth, share in enumerate(chosen.shares))
    assert mean_ms(chosen, times) == pytest.approx(by_loop) and by_loop <= target
    assert all(point.top1 <= chosen.top1 for point in points if mean_ms(point, times) <= target)


def test_too_few_milliseconds_are_refused_with_what_is_possible():
    with pytest.raises(UsageError, match="the fastest takes 1 ms here, the whole network 4 ms"):
        choose_in_time(routed_points(seen(), COSTS), (1.0, 5.0, 4.0), 0.5)


TWO_COSTS = Costs(whole=100, fixed=(40, 100), routed=(42, 102), early_exit=(41, 101), router=2)


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
    return certified_point(seen, TWO_COSTS, before, classes(images), ("a", "b", "c"), drop=drop, confidence=0.95)


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
    _, certificate = certified_point(
        worse, TWO_COSTS, before, classes(4000), ("a", "b", "c"), drop=0.01, confidence=0.95
    )
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
