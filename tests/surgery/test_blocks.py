"""Blocks replaced in place, and again on a new build."""

import copy

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import FileError, ModelError
from compressor.graph import capture
from compressor.graph.blocks import Values
from compressor.graph.tensors import named_tensors
from compressor.graph.trace import trace
from compressor.loading.arch import parse_arch
from compressor.loading.opening import OpenedModel
from compressor.runs.models import load, save_model, transformed
from compressor.surgery import Plan, Prune, operate_
from compressor.surgery.blocks import gated, rebuild, replace_blocks_, step_of
from compressor.surgery.edits import Bypass, Fold
from tests.routing.nets import Residual

ARCH = "tests/routing/nets.py:Residual"
EDITS = [Bypass("blocks.0", ""), Fold("blocks.1", 3, ""), Bypass("blocks.2", "")]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Residual()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return model.eval()


def example() -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def fold_values(kernel: int) -> Values:
    return Values(torch.randn(6, 4, kernel, kernel), torch.randn(6), torch.randn(6), torch.rand(6))


def test_a_bypassed_block_is_one_whose_branch_gives_zero():
    model, masked = network(), network()
    replace_blocks_(model, EDITS, example())
    for block in masked.blocks:
        nn.init.zeros_(block.norm2.weight)
        nn.init.zeros_(block.norm2.bias)
    assert torch.equal(model(example()), masked(example()))
    assert not torch.equal(network()(example()), model(example()))


def test_a_fold_computes_what_its_weights_say():
    model, whole = network(), network()
    values = fold_values(3)
    weight, bias = values[:2]
    replace_blocks_(model, [Fold("blocks.1", 3, "", values)], example())
    x = torch.randn(2, 4, 4, 4)
    wanted = nn.functional.conv2d(x, weight, bias, 2, 1) + whole.blocks[1].down(x)
    assert torch.allclose(model.blocks[1](x), wanted.relu(), atol=1e-6)


def test_layers_that_stay_are_the_same_objects_and_train():
    model = network().train()
    kept = {name: each for name, each in model.named_parameters() if not name.startswith(("blocks.0", "blocks.2"))}
    replace_blocks_(model, EDITS, example())
    after = dict(model.named_parameters())
    gone = {name for name in kept if name.startswith(("blocks.1.conv", "blocks.1.norm"))}
    assert all(after[name] is kept[name] for name in kept.keys() - gone)
    new = {f"blocks.1.fitted.{name}" for name in ("0.weight", "1.weight", "1.bias")}
    assert after.keys() == kept.keys() - gone | new
    assert all(module.training for module in model.modules())
    in_evaluation = network()
    replace_blocks_(in_evaluation, EDITS, example())
    assert not any(module.training for module in in_evaluation.modules())
    model(example()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_result_is_a_network_as_any_other():
    """Its channels can be pruned, it can be copied, and more of its blocks can go."""
    model = network()
    replace_blocks_(model, EDITS[:1], example())
    channels = capture(model, example())
    group = next(group for group in channels.free if group.size > 1)
    operate_(model, Plan((Prune(group.name, (int(group.ids[0]),), ""),)), channels)
    replace_blocks_(model, EDITS[1:], example())
    assert torch.equal(copy.deepcopy(model)(example()), model(example()))


@pytest.mark.parametrize("pruned", [False, True])
def test_a_checkpoint_opens_again_and_gives_the_same(tmp_path, pruned):
    model = network()
    opened = OpenedModel(model, arch=parse_arch(ARCH), input_shape=(1, 8, 8))
    changed = copy.deepcopy(model)
    edits = [Bypass("blocks.0", ""), Fold("blocks.1", 1, "", fold_values(1))]
    replace_blocks_(changed, edits, example())
    opened = transformed(opened, changed, step_of(edits, example()))
    if pruned:
        channels = capture(changed, example())
        group = next(group for group in channels.free if group.size > 1)
        operate_(changed, Plan((Prune(group.name, (int(group.ids[0]),), ""),)), channels)
    save_model(opened, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", arch=ARCH)
    assert torch.equal(again(example()), changed(example()))
    assert again.state_dict().keys() == changed.state_dict().keys()


@pytest.mark.parametrize(
    "edit", [Bypass("stem", ""), Bypass("blocks", ""), Fold("nowhere", 1, ""), Fold("linear", 3, "")], ids=str
)
def test_what_is_no_block_is_refused_and_nothing_changed(edit):
    model = network()
    before = dict(model.named_modules())
    with pytest.raises(ModelError, match=edit.group):
        replace_blocks_(model, [Bypass("blocks.0", ""), edit], example())
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize(
    "step",
    [
        {},
        {"edits": [["blocks.0", 0]]},
        {"edits": [["blocks.7", 0]], "input_shape": [1, 8, 8]},
        {"edits": [["blocks.0", 5]], "input_shape": [1, 8, 8]},
        {"edits": [["blocks.0", 0], ["blocks.0", 1]], "input_shape": [1, 8, 8]},
        {"edits": [["blocks.0"]], "input_shape": [1, 8, 8]},
        {"edits": [["blocks.0", 0]], "input_shape": [1 << 40, 8, 8]},
        {"edits": [["blocks.0", 0]], "input_shape": [3, 8, 8]},
    ],
    ids=str,
)
def test_a_damaged_step_is_one_line(step):
    with pytest.raises(FileError, match="do not fit its network"):
        rebuild(network(), {"kind": "blocks", **step})


def test_gates_make_both_networks_of_the_same_operators():
    model = network()
    edits = [Bypass("blocks.0", ""), Fold("blocks.1", 3, "", fold_values(3))]
    whole, masked, changed = gated(model, edits, example())
    replaced = copy.deepcopy(model)
    replace_blocks_(replaced, edits, example())
    assert torch.equal(whole(example()), model(example()))
    assert torch.allclose(masked(example()), replaced(example()), atol=1e-6)
    assert [op.func for op in trace(whole, example()).ops] == [op.func for op in trace(masked, example()).ops]
    one, other = named_tensors(whole), named_tensors(masked)
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    names = ("fitted.0.weight", *(f"fitted.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")))
    assert differing == changed == {"blocks.0.gate.open", *(f"blocks.1.{name}" for name in ("gate.open", *names))}
