"""What capture finds on each way of tying channels, and that it leaves the model alone."""

import copy

import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.graph import capture
from tests.equivalence import same_map
from tests.networks import NETWORKS, Plain, Residual


@pytest.mark.parametrize("name", NETWORKS)
def test_free_groups_are_the_stated_ones(name):
    network = NETWORKS[name]()
    channels = capture(network, network.example())
    assert {group.name: group.size for group in channels.free} == network.FREE
    for group, word in network.FROZEN.items():
        assert word in channels.frozen[group]


def test_capture_leaves_model_unchanged():
    model = Residual().train()
    before = copy.deepcopy(model.state_dict())
    mode = {name: module.training for name, module in model.named_modules()}
    capture(model, model.example())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert mode == {name: module.training for name, module in model.named_modules()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_capture_twice_gives_the_same_map():
    model = Residual()
    assert same_map(capture(model, model.example()), capture(model, model.example())) is None


def test_kept_layers_are_frozen_on_request():
    model = Residual()
    channels = capture(model, model.example(), keep=["a1"])
    assert channels.frozen["a1"] == "kept by request"
    assert {group.name for group in channels.free} == {"stem", "b1"}


def test_layers_that_are_not_trained_stay_in_the_map():
    model = Residual()
    reference = capture(model, model.example())
    model.stem.requires_grad_(False)
    model.a1.requires_grad_(False)
    assert same_map(reference, capture(model, model.example())) is None
    plain = model.requires_grad_(False)
    assert same_map(reference, capture(plain, model.example())) is None


def test_wrong_input_is_one_clear_line():
    model = Plain()
    with pytest.raises(ModelError, match=r"does not run on an input of shape 2x5x8x8 .*`input`") as caught:
        capture(model, torch.randn(2, 5, 8, 8))
    assert "\n" not in str(caught.value)


def test_model_that_needs_values_is_captured_on_real_data():
    class Valued(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.b(x * 2 if float(x.mean()) >= 0 else x)

    assert [group.name for group in capture(Valued(), torch.randn(2, 3, 8, 8)).free] == ["a"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_meta_modules_are_captured(dtype):
    model = Residual()
    reference = capture(model, model.example())
    assert same_map(reference, capture(model.to(dtype), model.example().to(dtype))) is None
    assert same_map(reference, capture(model.to("meta"), model.example().to(dtype))) is None


def test_cost_is_counted_on_the_operators_that_run():
    model = Plain()  # 3x3 convolutions on 8x8 and 4x4 maps, then two linear layers
    channels = capture(model, model.example())
    assert channels.macs() == 64 * 9 * 3 * 6 + 16 * 9 * 6 * 8 + 128 * 10 + 10 * 4
    assert channels.params() == sum(parameter.numel() for parameter in model.parameters())


class Several(nn.Module):
    """Goes another way where it is given more than one image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.more, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.register_buffer("shift", torch.zeros(1, 8, 1, 1))

    def forward(self, x):
        x = self.a(x)
        return self.b(self.more(x) + self.shift if len(x) > 1 else x)


def test_what_only_several_images_use_is_followed_whatever_else_is_not_used():
    channels = capture(Several().eval(), torch.randn(1, 3, 4, 4))
    assert "more" in channels.group("a").producers and not channels.notes


class Held(nn.Module):
    """A linear layer, and a buffer."""

    def __init__(self, buffer: torch.Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("odd", buffer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.linear(x)
        return scores


BUFFERS = {
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(2, 3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "sparse_coo": lambda: torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.filterwarnings("ignore:.*(quantiz|nested|Nested).*")
def test_the_layout_of_a_tensor_is_named(kind: str) -> None:
    with pytest.raises(ModelError, match=f"odd is {kind}; layers can be edited only where weights are dense"):
        capture(Held(BUFFERS[kind]()), torch.randn(1, 4))


@pytest.mark.filterwarnings("ignore:.*(quantiz|deprecated|TypedStorage).*")
def test_packed_weights_and_no_weights_are_told_apart() -> None:
    packed = nn.Sequential(torch.ao.nn.quantized.Linear(4, 2), nn.ReLU())
    with pytest.raises(ModelError, match="no parameters: its weights are quantized: prune first, then quantize"):
        capture(packed, torch.randn(1, 4))
    with pytest.raises(ModelError, match="no parameters: nothing can be edited"):
        capture(nn.Sequential(nn.ReLU()), torch.randn(1, 4))
