"""Which blocks go first, and what takes their place, against slow versions."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from compressor.graph.blocks import find_blocks
from compressor.profiling.costs import macs_of
from compressor.pruning import blocks
from compressor.pruning.blocks import Shortening, Step, options
from compressor.surgery.blocks import replace_blocks_
from compressor.surgery.edits import Bypass, Fold
from tests.graph.test_blocks import Around
from tests.routing.nets import Block, Residual


def macs(block) -> float:
    return macs_of(block.part, block.given)


def saving(block, convolution) -> float:
    return macs(block) - macs_of(block.replaced(convolution), block.given)


def images(count: int = 2, channels: int = 4) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    return [torch.randn(32, channels, 8, 8, generator=source) for _ in range(count)]


def shortening(model: nn.Module, inputs: list[torch.Tensor]) -> Shortening:
    found = find_blocks(model.eval(), inputs[0]).found
    return Shortening(model, found, options(found, saving, macs), inputs)


def moved(model: nn.Module, edits, inputs: list[torch.Tensor]) -> float:
    """By definition: the mean square that outputs moved by, in shares of their variance over images."""
    edited = copy.deepcopy(model)
    replace_blocks_(edited, edits, inputs[0])
    with torch.no_grad():
        was, now = (torch.cat([each(x) for x in inputs]).double().numpy() for each in (model, edited))
    return ((now - was) ** 2).mean() / ((was - was.mean(0)) ** 2).mean()


def stack(scales) -> nn.Sequential:
    """Residual blocks whose branches give so much, and a mean."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(4, 4, 1) for _ in scales), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for block, scale in zip(model, scales, strict=False):
        nn.init.constant_(block.norm2.weight, scale)
    return model.eval()


def test_an_option_saves_a_quarter_of_its_block_at_least():
    found = find_blocks(Residual().eval(), torch.randn(2, 1, 8, 8)).found
    all_of = options(found, saving, macs)
    assert {option.block for option in all_of} == {"blocks.0", "blocks.1", "blocks.2"}
    for option in all_of:
        block = found[option.block]
        spent = macs_of(block.convolution(option.kernel), block.given) if option.kernel else 0
        branch = macs(block) - (macs_of(block.ending(block.shortcut), block.given))
        assert option.saved == branch - spent > macs(block) / 4
    assert options(found, lambda block, convolution: macs(block) / 4, macs) == []


def test_what_gives_least_goes_first():
    order = shortening(stack([1.0, 0.01, 3.0, 0.1]), images())
    steps = order.until(2 * 64 * 9 * 4 * 4)
    assert {step.option.block for step in steps} == {"1"}
    steps = order.until(4 * 64 * 9 * 4 * 4)
    assert {"1", "3"} <= {step.option.block for step in steps} <= {"0", "1", "3"}
    assert order.until(1) == steps[:1]


def test_all_there_is_where_more_is_asked_for():
    order = shortening(stack([1.0, 0.5]), images(1))
    steps = order.until(1e9)
    assert [(type(edit), edit.group) for edit in order.plain(steps)] == [(Bypass, "0"), (Bypass, "1")]
    assert steps[-1].saved == 2 * 2 * 64 * 9 * 4 * 4


def test_how_far_outputs_move_is_told_by_definition():
    model, inputs = stack([0.3, 0.2]), images(2)
    order = shortening(model, inputs)
    edits, told = order.edits(order.until(1), "MACs")
    assert told == pytest.approx(moved(model, edits, inputs), rel=1e-4)
    assert edits[0].numbers["moved"] > 0 and "MACs" in edits[0].why


def test_outputs_that_are_always_the_same_do_not_move_by_what_is_rounded():
    model = nn.Sequential(*stack([0.3, 0.2]), nn.Linear(4, 3)).eval()
    nn.init.constant_(model[-1].weight, 1e-7)
    order = shortening(model, images(2))
    assert order.edits(order.until(1), "MACs")[1] < 1e-3


def test_every_step_is_measured_in_the_network_as_it_stands():
    """What a block is worth alone says little of it without another."""
    torch.manual_seed(0)
    model = stack([2.0, 2.0, 0.8])
    inputs = images(2)
    found = find_blocks(model, inputs[0]).found
    bypasses = [option for option in options(found, saving, macs) if option.kernel == 0]
    order = Shortening(model, found, bypasses, inputs)
    for count, step in enumerate(order.until(1e9), 1):
        assert step.moved == pytest.approx(moved(model, order.plain(order.steps[:count]), inputs), rel=1e-4)
    first = min(bypasses, key=lambda option: moved(model, [Bypass(option.block, "")], inputs))
    assert order.steps[0].option == first and len(order.steps) == 3


@pytest.mark.parametrize("room", [0, 3 * 32 * 4 * 8 * 8, 1 << 28])  # for nothing, for one block of two batches, for all
def test_what_blocks_gave_need_not_be_computed_again(room, monkeypatch):
    """Steps, convolutions in them, do not depend on how much of it is stored."""
    model, inputs = stack([2.0, 2.0, 0.8, 0.5]), images(2)
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "_STORED", room)
        found = shortening(model, inputs)
        steps = found.until(1e9)
    for count, step in enumerate(steps, 1):
        last = {each.option.block: each for each in steps[:count]}
        if not any(each.option.kernel for each in last.values()):
            assert step.moved == pytest.approx(moved(model, found.plain(steps[:count]), inputs), rel=1e-4)
    assert [(step.option, step.moved) for step in steps] == [
        (step.option, pytest.approx(step.moved, rel=1e-6)) for step in shortening(model, inputs).until(1e9)
    ]


def test_the_branch_of_a_residual_block_is_fitted_without_its_shortcut():
    """A branch without activation is one convolution exactly, whatever is added to it."""
    torch.manual_seed(0)
    model = nn.Sequential(Around(nn.Sequential(nn.Conv2d(4, 32, 1), nn.Conv2d(32, 4, 1))), nn.Flatten()).eval()
    inputs = images(4)
    order = shortening(model, inputs)
    (one,) = (option for option in options(order.blocks, saving, macs) if option.kernel == 1)
    (fold,), told = order.edits([Step(one, 0, 0)], "")
    assert told < 1e-6 and moved(model, [fold], inputs) < 1e-6


def linear(inputs: int, outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(inputs, 16, 3, 2, 1), nn.Conv2d(16, outputs, 1)
    row = nn.Sequential(first, nn.BatchNorm2d(16), second, nn.BatchNorm2d(outputs))
    for norm in (row[1], row[3]):
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.weight)
    return nn.Sequential(row, nn.Flatten()).eval()


def test_two_convolutions_without_activation_are_one_exactly():
    """Padding comes first, so that both kernels are one at the borders, too."""
    model, inputs = linear(4, 6), images(8)
    order = shortening(model, inputs)
    (fold,), told = order.edits(order.until(1), "MACs")
    assert isinstance(fold, Fold) and fold.kernel == 3
    assert told < 1e-6 and moved(model, [fold], inputs) < 1e-6


def test_a_fold_solves_least_squares():
    """On all rows and without a pull that matters, as numpy does; where an activation bends, with what is left over."""
    torch.manual_seed(0)
    row = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, 5, 1))
    model, inputs = nn.Sequential(row, nn.Flatten()).eval(), images(8)
    order = shortening(model, inputs)
    (fold,), _ = order.edits(order.until(1), "MACs")
    x = torch.cat(inputs).permute(0, 2, 3, 1).reshape(-1, 4).numpy()
    with torch.no_grad():
        y = row(torch.cat(inputs)).permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    solved, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    found = np.r_[fold.values.weight[:, :, 0, 0].T.numpy(), fold.values.bias.numpy()[None]]
    np.testing.assert_allclose(found, solved, atol=2e-3)


def test_a_later_fold_makes_up_for_what_earlier_blocks_lost():
    """Its targets are of the network as it came, with the shortcut of the network as it stands taken off."""
    model, inputs = stack([0.3, 1.0]), images(8)
    order = shortening(model, inputs)
    by = {(option.block, option.kernel): option for option in options(order.blocks, saving, macs)}
    both = [Step(by["0", 0], 0, 0), Step(by["1", 3], 0, 0)]
    (_, fold), told = order.edits(both, "")
    (alone,), _ = order.edits(both[1:], "")
    assert told < moved(model, [Bypass("0", ""), alone], inputs)
    assert told == pytest.approx(moved(model, [Bypass("0", ""), fold], inputs), rel=1e-4)


def test_the_model_is_not_changed():
    model = stack([1.0, 0.1])
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    order = shortening(model, images(1))
    order.edits(order.until(1e9), "MACs")
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
