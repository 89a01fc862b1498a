"""Surgery against the masked original, on every way of tying channels: prune, merge, insert, optimizer, attributes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.graph import Channels, capture
from compressor.surgery import Insert, Merge, Plan, Prune, operate_
from compressor.surgery.structure import apply_, describe
from tests.equivalence import duplicate_, half_plan, masked_outputs, move, outputs, randomise_, relative_error, same_map
from tests.networks import NETWORKS, Grouped, Plain, Residual

TOLERANCE = 1e-10  # in float64


def made(name: str) -> tuple[nn.Module, object, Channels]:
    network = NETWORKS[name]()
    example = move(network.example(), torch.float64)
    randomise_(network)
    return network, example, capture(network, example)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_prune_equals_masked_original(name, share):
    model, example, channels = made(name)
    plan = half_plan(channels, share=share)
    before, reference = outputs(model, example), masked_outputs(model, example, channels, plan.removed)
    updated = operate_(model, plan, channels)
    assert relative_error(outputs(model, example), reference) < TOLERANCE
    assert relative_error(before, reference) > 1e-4  # the control: masking does change the output
    assert sum(p.numel() for p in model.parameters()) == channels.params(plan.removed) == updated.params()
    again = capture(model, example)
    assert again.macs() == channels.macs(plan.removed) == updated.macs()
    assert same_map(updated, again) is None


@pytest.mark.parametrize("name", NETWORKS)
def test_training_mode_runs_after_a_prune(name):
    model, example, channels = made(name)
    operate_(model, half_plan(channels), channels)
    model.train()
    outputs(model, example)


@pytest.mark.parametrize("name", NETWORKS)
def test_merging_equal_channels_leaves_output(name):
    model, example, channels = made(name)
    pairs = {group.name: duplicate_(model, channels, group.name) for group in channels.free if group.prune_only is None}
    if not pairs:
        assert all(group.prune_only for group in channels.free)
        return
    before = outputs(model, example)
    plan = Plan(tuple(Merge(group, *pair, "equal") for group, pair in pairs.items()))
    updated = operate_(model, plan, channels)
    assert relative_error(outputs(model, example), before) < TOLERANCE
    assert same_map(updated, capture(model, example)) is None


@pytest.mark.parametrize("columns", ["zero", "split"])
@pytest.mark.parametrize("name", NETWORKS)
def test_inserting_a_copy_leaves_output_and_pruning_it_gives_the_model_back(name, columns):
    model, example, channels = made(name)
    free = [group for group in channels.free if group.prune_only is None]
    before, weights = outputs(model, example), copy.deepcopy(model.state_dict())
    plan = Plan(tuple(Insert(group.name, int(group.ids[0]), "copy", columns=columns) for group in free))
    updated = operate_(model, plan, channels)
    assert relative_error(outputs(model, example), before) < TOLERANCE
    assert same_map(updated, capture(model, example)) is None
    if columns == "zero":
        known = {identity for ids in channels.identities.values() for identity in ids.tolist()}
        new = {g.name: [i for i in g.ids.tolist() if i not in known] for g in updated.groups}
        operate_(model, Plan(tuple(Prune(g, tuple(ids), "back") for g, ids in new.items() if ids)), updated)
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["Plain", "Depthwise", "Grouped", "Residual"])
def test_given_rows_become_the_newcomer(name):
    model, _, channels = made(name)
    group = next(group for group in channels.free if group.prune_only is None)
    place = next(place for place in group.places if place.role == "row" and place.tensor.endswith("weight"))
    weight = dict(model.named_parameters())[place.tensor]
    where = torch.from_numpy(channels.positions(place, [int(group.ids[0])])[0])
    row = -weight.detach().index_select(place.dim, where)
    updated = operate_(model, Plan((Insert(group.name, int(group.ids[0]), "inverse", {place.tensor: row}),)), channels)
    newcomer = int(updated.group(group.name).ids[1])
    here = torch.from_numpy(updated.positions(place, [newcomer])[0])
    assert torch.equal(weight.detach().index_select(place.dim, here), row)


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.Adam])
def test_optimizer_state_follows_and_steps(build):
    model = Residual().train()
    options = {"momentum": 0.9} if build is torch.optim.SGD else {}
    optimizer = build(model.parameters(), lr=0.01, **options)
    channels = capture(model, model.example())

    def step() -> None:
        optimizer.zero_grad()
        model(model.example()).square().mean().backward()
        optimizer.step()

    step()
    group = channels.group("a1")
    kept = model.a1.weight.detach().clone()
    state = {k: v.clone() for k, v in optimizer.state[model.a1.weight].items() if v.ndim}
    plan = Plan((Prune("a1", (int(group.ids[1]),), "t"), Insert("stem", int(channels.group("stem").ids[0]), "t")))
    operate_(model, plan, channels, optimizer)
    rows = torch.tensor([0, 2, 3, 4])
    for parameter in model.parameters():
        for value in optimizer.state[parameter].values():
            assert value.ndim == 0 or value.shape == parameter.shape
    columns = torch.tensor([0, 2, 3, 4, 5, 6])  # the newcomer stands at 1
    assert torch.equal(model.a1.weight.detach()[:, columns], kept[rows])
    for key, before in state.items():
        after = optimizer.state[model.a1.weight][key]
        assert torch.equal(after[:, columns], before[rows])
        assert not after[:, 1].any()
    step()


def test_mean_compensation_keeps_the_mean_of_what_readers_compute():
    model, example, channels = made("Plain")
    inner = torch.relu(model.norm(model.a(example)))
    pooled = nn.functional.max_pool2d(inner, 2)
    group = channels.group("a")
    with torch.no_grad():  # a channel that is constant in space is replaced exactly
        model.norm.weight[2], model.norm.bias[2] = 0, 0.7
        model.b.padding = (0, 0)
        before = nn.functional.conv2d(
            nn.functional.max_pool2d(torch.relu(model.norm(model.a(example))), 2), model.b.weight
        )
    assert pooled.shape[1] == 6
    shifted = copy.deepcopy(model)
    shifted.b.bias = nn.Parameter(torch.zeros(8, dtype=torch.float64))
    shifted.d = nn.Linear(10, 4).double()
    shifted.b.padding = (1, 1)
    again = capture(shifted, example)
    operate_(shifted, Plan((Prune("a", (int(again.group("a").ids[2]),), "t", means=(0.7,)),)), again)
    with torch.no_grad():
        shifted.b.padding = (0, 0)
        after = shifted.b(nn.functional.max_pool2d(torch.relu(shifted.norm(shifted.a(example))), 2))
    assert relative_error([after], [before]) < TOLERANCE
    assert group.size == 6


def test_compensation_goes_into_the_running_mean_where_there_is_no_bias():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    example = torch.randn(2, 3, 4, 4)
    channels = capture(model, example)
    column = model[1].weight.detach()[:, 1, 0, 0].clone()
    operate_(model, Plan((Prune("0", (int(channels.group("0").ids[1]),), "t", means=(2.0,)),)), channels)
    assert torch.allclose(model[2].running_mean, -2.0 * column)


def test_attributes_stay_true():
    model, _, channels = made("Depthwise")
    operate_(model, half_plan(channels), channels)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            assert module.weight.shape == shape
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_mean)


def test_parameters_keep_identity_grad_flag_and_format():
    model = Residual().to(memory_format=torch.channels_last)
    model.a1.weight.requires_grad_(False)
    before = dict(model.named_parameters())
    channels = capture(model, model.example())
    operate_(model, half_plan(channels), channels)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert not model.a1.weight.requires_grad
    assert model.a2.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda c: Plan((Prune("head", (int(c.group("head").ids[0]),), "t"),)), "head cannot be edited: output"),
        (lambda c: Plan((Prune("a1", (-5,), "t"),)), "names a channel twice, or one that it does not have"),
        (lambda c: Plan((Prune("a1", tuple(c.group("a1").ids.tolist()), "t"),)), "would leave a1 without channels"),
        (lambda c: Plan((Prune("nowhere", (1,), "t"),)), "no group is named 'nowhere'"),
    ],
    ids=["frozen", "unknown-channel", "empty", "unknown-group"],
)
def test_impossible_plans_are_refused_and_change_nothing(plan, message):
    model = Residual()
    channels = capture(model, model.example())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Exception, match=message):
        operate_(model, plan(channels), channels)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_merging_what_can_only_be_pruned_is_refused():
    model = NETWORKS["Normalised"]()
    channels = capture(model, model.example())
    ids = channels.group("c").ids.tolist()
    with pytest.raises(ModelError, match="can only be pruned"):
        operate_(model, Plan((Merge("c", ids[0], ids[1], "t"),)), channels)


@pytest.mark.parametrize("name", NETWORKS)
def test_structure_rebuilds_the_edited_network(name):
    model, example, channels = made(name)
    operate_(model, half_plan(channels), channels)
    fresh = NETWORKS[name]()
    apply_(fresh, describe(NETWORKS[name](), model))
    fresh.load_state_dict(model.state_dict())
    assert relative_error(outputs(fresh.double().eval(), example), outputs(model, example)) == 0


def test_a_wrong_cut_is_noticed():
    """The control of the reference itself: other channels masked than pruned must show."""
    model, example, channels = made("Residual")
    plan = half_plan(channels, seed=0)
    reference = masked_outputs(model, example, channels, half_plan(channels, seed=1).removed)
    operate_(model, plan, channels)
    assert relative_error(outputs(model, example), reference) > 1e-3


def test_groups_divide_after_every_prune():
    model = Grouped()
    channels = capture(model, model.example())
    operate_(model, half_plan(channels), channels)
    assert model.b.out_channels % model.b.groups == 0 == model.b.in_channels % model.b.groups
    assert np.prod(model.a.weight.shape) > 0


def test_edits_in_half_precision_and_on_meta():
    for model in (Plain().half(), Plain().to(torch.bfloat16), Plain().to("meta")):
        channels = capture(model, torch.randn(2, 3, 8, 8, dtype=model.a.weight.dtype))
        updated = operate_(model, half_plan(channels), channels)
        assert model.a.weight.shape[0] == updated.group("a").size == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("offloaded", [False, True])
def test_a_model_on_a_gpu_stays_there_and_equals_the_masked_original(offloaded):
    network = randomise_(Residual()).cuda()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    example = network.example().double().cuda()
    network(example).square().mean().backward()
    optimizer.step()
    if offloaded:
        for state in optimizer.state.values():
            state["momentum_buffer"] = state["momentum_buffer"].cpu()
    channels = capture(network, example)
    plan = half_plan(channels)
    reference = masked_outputs(network, example, channels, plan.removed)
    operate_(network, plan, channels, optimizer)
    assert relative_error(outputs(network, example), reference) < TOLERANCE
    assert all(tensor.is_cuda for tensor in network.state_dict().values())
    for parameter, state in optimizer.state.items():
        assert state["momentum_buffer"].shape == parameter.shape
        assert state["momentum_buffer"].is_cuda != offloaded
