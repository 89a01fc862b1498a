"""Multiply-adds of every path, against what really ran for one image."""

import pytest
import torch

from compressor.graph.trace import trace
from compressor.profiling.macs import count_macs
from compressor.routing.costs import costs
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
