"""Sub-models share the base's weights, compute what the base computes behind the cut, and survive every other step."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import FileError
from compressor.exits.detachable import make_detachable, rebuild, with_own_statistics
from compressor.exits.points import Survey
from compressor.graph import capture
from compressor.surgery import operate_
from compressor.surgery.structure import apply_, describe
from sample_models import vgg16_cifar
from tests.equivalence import half_plan, randomise_, relative_error, same_map
from tests.exits.nets import CONVOLUTIONAL, SHAPE, Plain, Residual, detachable, images, storages
from tests.training.small import cross_entropy

MODES = ("stats", "switchable", "shared")
EVERY = [  # each network once by default, one in all modes; the other pairs in the slow suite
    pytest.param(name, bn, marks=() if bn == "stats" or name == "residual" else pytest.mark.slow)
    for name, bn in itertools.product(CONVOLUTIONAL, MODES)
]


@pytest.mark.parametrize(("name", "bn"), EVERY)
def test_a_sub_model_is_its_step_down_and_the_base_behind_the_cut(name, bn):
    base = randomise_(CONVOLUTIONAL[name]())
    reference = copy.deepcopy(base)
    found = Survey(copy.deepcopy(base), SHAPE)
    model = detachable(base, bn).eval()
    x = images().double()
    for number, at in enumerate(model.at, start=1):
        behind = found.chain.segment(found.names.index(at), found.end)
        torch.testing.assert_close(model(x, exit=number), behind(model.detach(number).step_down(x)))
    torch.testing.assert_close(model(x), reference(x))
    torch.testing.assert_close(model(x, exit=0), reference(x))


def test_a_cut_is_where_its_module_begins():
    model = randomise_(detachable(Residual(), "shared"))
    x = images().double()
    inside = model.detach(2).step_down(x)
    with torch.no_grad():
        model.base.blocks[1].register_forward_pre_hook(lambda *_: (inside,))
    torch.testing.assert_close(model(x, exit=2), model(x, exit=0))


@pytest.mark.parametrize(("name", "bn"), EVERY)
def test_weights_are_stored_once(name, bn):
    model = detachable(CONVOLUTIONAL[name](), bn)
    shared = {id(parameter) for parameter in model.base.parameters()}
    own = {id(p) for part in model.submodels for p in part.step_down.parameters()}
    rest = [p for p in model.parameters() if id(p) not in shared | own]
    assert bool(rest) == (bn == "switchable" and name != "bare")
    state = model.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    assert all(name.startswith(("base.", "submodels.")) for name in state)
    assert sum(storages(model)) == sum(value.untyped_storage().nbytes() for value in state.values())


def test_memory_is_the_bases_and_the_step_downs():
    alone = sum(storages(vgg16_cifar.build(width=0.5)))
    found = detachable_vgg()
    steps = sum(sum(storages(part.step_down)) for part in found.submodels)
    assert sum(storages(found)) < 1.05 * (alone + steps)


def detachable_vgg():
    found = Survey(vgg16_cifar.build(width=0.5), (3, 32, 32))
    chosen = [point for point in found.points if point.at in ("features.7", "features.24")]
    return make_detachable(found, {point.at: point.plan for point in chosen}, "stats")


def test_detached_model_trains_the_base():
    model = detachable()
    part = model.detach(1).train()
    before = {name: value.clone() for name, value in model.base.state_dict().items()}
    part(images()).sum().backward()
    torch.optim.SGD(part.parameters(), 0.1).step()
    changed = {name for name, value in model.base.state_dict().items() if not value.equal(before[name])}
    assert changed == {"3.weight", "3.bias", "4.weight", "4.bias", "7.weight", "7.bias", "8.weight", "8.bias",
                       "12.weight", "12.bias"} - {"3.bias", "7.bias"} | changed & {"3.bias", "7.bias"}  # fmt: skip


@pytest.mark.parametrize("bn", MODES)
def test_statistics_are_whose_the_mode_says(bn):
    model = detachable(bn=bn).train()
    norm, twin = model.base[8], model.submodels[1].tail.get_submodule("8")
    model(images(), exit=2)
    assert (twin is norm) == (bn == "shared")
    assert (twin.weight is norm.weight) == (bn != "switchable")
    assert norm.running_mean.any() == (bn == "shared")
    assert twin.running_mean.any()


def test_all_models_run_while_one_layer_learns():
    model = detachable().eval()
    x = images()
    assert isinstance(model(x), torch.Tensor)
    model.base[1].train()
    outputs = model(x)
    assert isinstance(outputs, tuple) and len(outputs) == 3
    assert [len(output) for output in outputs] == [4, 4, 4]


def test_exits_that_do_not_exist():
    with pytest.raises(IndexError, match="no exit 3"):
        detachable().detach(3)


@pytest.mark.parametrize("bn", MODES)
def test_sharing_survives_copies_and_moves(bn):
    model = detachable(CONVOLUTIONAL["residual"](), bn)
    for other in (copy.deepcopy(model), copy.deepcopy(model).double(), copy.deepcopy(model).to("meta")):
        assert [n for n, _ in other.named_parameters()] == [n for n, _ in model.named_parameters()]
        assert [n for n, _ in other.named_buffers()] == [n for n, _ in model.named_buffers()]


@pytest.mark.parametrize(("name", "bn"), EVERY)
def test_rebuilt_from_plain_data(name, bn):
    model = detachable(CONVOLUTIONAL[name](), bn).train()
    for _ in range(2):
        model(images(seed=3))
    fresh = rebuild(CONVOLUTIONAL[name](), model.step())
    fresh.load_state_dict(model.state_dict())
    for number in range(model.exits + 1):
        torch.testing.assert_close(fresh.eval()(images(), exit=number), model.eval()(images(), exit=number))


@pytest.mark.parametrize("broken", [{"exits": []}, {"bn": "none"}, {"input_shape": [3, 8]}, {"exits": [{"at": "99"}]}])
def test_damaged_entry_is_a_file_error(broken):
    with pytest.raises(FileError, match="do not fit"):
        rebuild(Plain(), {**detachable().step(), **broken})


def test_a_step_down_of_another_size_is_a_file_error():
    step = detachable().step()
    step["exits"][0]["step_down"]["out_channels"] = 1 << 24
    with pytest.raises(FileError, match="does not make"):
        rebuild(Plain(), step)


@pytest.mark.parametrize(("name", "bn"), EVERY)
def test_pruning_holds_for_all_models_at_once(name, bn):
    model = randomise_(detachable(randomise_(CONVOLUTIONAL[name]()), bn))
    x = images().double()
    channels = capture(model, x)
    assert not channels.notes
    plan = half_plan(channels)
    masked = _masked(model, channels, plan.removed)
    macs = channels.macs(plan.removed)
    params = channels.params(plan.removed)
    updated = operate_(model, plan, channels)
    for number in range(model.exits + 1):
        assert relative_error([model(x, exit=number)], [masked(x, exit=number)]) < 1e-12
    assert sum(p.numel() for p in model.parameters()) == params
    fresh = capture(model, x)
    assert same_map(updated, fresh) is None and fresh.macs() == macs
    smaller = rebuild(CONVOLUTIONAL[name](), model.step()).double()
    apply_(smaller, describe(smaller, model))
    smaller.load_state_dict(model.state_dict())
    for number in range(model.exits + 1):
        torch.testing.assert_close(smaller.eval()(x, exit=number), model(x, exit=number))


def test_pruning_the_base_alone_would_break_a_sub_model():
    """The control: the promise above is not kept by chance."""
    model = randomise_(detachable(randomise_(Plain())))
    channels = capture(model.base, images().double())
    operate_(model.base, half_plan(channels), channels)
    with pytest.raises(RuntimeError):
        model(images().double(), exit=1)


def test_detaching_a_pruned_model():
    base = randomise_(Plain())
    channels = capture(base, images().double())
    operate_(base, half_plan(channels), channels)
    model = detachable(base)
    widths = [part.step_down.plan.out_channels for part in model.submodels]
    assert widths == [base[0].out_channels, base[3].out_channels] == [2, 3]
    assert model.float().eval()(images(), exit=2).shape == (4, 5)


def test_ordinary_training_reaches_every_model():
    model = detachable().train()
    cross_entropy()(model, images(), torch.tensor([0, 1, 2, 3]))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_own_statistics_in_place_of_shared_ones():
    model = detachable(bn="shared").train()
    model(images())
    own = with_own_statistics(model.eval())
    assert own.base is model.base and own.norms == "stats"
    for number in range(3):
        torch.testing.assert_close(own.eval()(images(), exit=number), model(images(), exit=number))
    own.train()(images(), exit=1)
    assert not own.base[4].running_mean.equal(own.submodels[0].tail.get_submodule("4").running_mean)


def _masked(model: nn.Module, channels, removed) -> nn.Module:
    gone = np.zeros(channels.next_id, dtype=bool)
    gone[list(removed)] = True
    masked = copy.deepcopy(model)
    tensors = dict(masked.named_parameters()) | dict(masked.named_buffers())
    for (name, dim), ids in channels.identities.items():
        where = np.flatnonzero(gone[ids])
        if len(where) and tensors[name].is_floating_point() and not name.endswith("running_var"):
            tensors[name].data.index_fill_(dim, torch.from_numpy(where), 0)
    return masked
