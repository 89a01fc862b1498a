"""Multiply-adds against closed forms, torch's own counter and thop, each where it is right."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from compressor.errors import ModelError
from compressor.graph import capture
from compressor.graph.trace import trace
from compressor.profiling.costs import count_macs, peak_activation_bytes, profile, thop_macs
from compressor.report.comparison import compare
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.vision import door as vision
from tests.networks import NETWORKS, Network

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg16() -> nn.Sequential:
    """The 13 convolutions and one linear layer for 32x32 images of the pruning papers."""
    layers: list[nn.Module] = []
    channels = 3
    for entry in VGG16:
        if isinstance(entry, int):
            layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.BatchNorm2d(entry), nn.ReLU()]
            channels = entry
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


class Function(nn.Module):
    """A function as a model, with one weight so that there is something to move to the meta device."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# (what, model, input shape, multiply-adds of one image by hand)
CLOSED_FORMS: list[tuple[str, nn.Module, tuple[int, ...], int]] = [
    ("conv", nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10), 8 * 10 * 10 * 3 * 9),
    ("conv stride", nn.Conv2d(3, 8, 3, stride=2), (3, 11, 9), 8 * 5 * 4 * 3 * 9),
    ("conv dilation", nn.Conv2d(3, 8, 3, dilation=2), (3, 9, 9), 8 * 5 * 5 * 3 * 9),
    ("grouped conv", nn.Conv2d(8, 16, 1, groups=4), (8, 5, 5), 16 * 5 * 5 * 2),
    ("depthwise conv", nn.Conv2d(8, 8, (3, 1), groups=8), (8, 5, 5), 8 * 3 * 5 * 3),
    ("conv1d", nn.Conv1d(2, 3, 5), (2, 12), 3 * 8 * 2 * 5),
    ("conv3d", nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 3 * 27 * 2 * 8),
    ("transposed conv", nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 4 * 25 * 6 * 4),
    ("linear", nn.Linear(6, 4), (6,), 24),
    ("linear on tokens", nn.Linear(6, 4, bias=False), (7, 6), 7 * 24),
    ("einsum", Function(lambda x: torch.einsum("bik,bjk->bij", x, x)), (3, 5), 3 * 3 * 5),
    ("matmul", Function(lambda x: x @ x.transpose(1, 2)), (3, 5), 3 * 3 * 5),
    ("functional conv", Function(lambda x: functional.conv2d(x, x.new_zeros(2, 3, 2, 2))), (3, 4, 4), 2 * 9 * 3 * 4),
    (
        "attention",
        Function(lambda x: functional.scaled_dot_product_attention(x, x, x)),
        (2, 5, 4),
        2 * 5 * 5 * (4 + 4),
    ),
    ("lstm", Function(lambda x: nn.LSTM(3, 4, batch_first=True, device=x.device)(x)[0]), (6, 3), 6 * 4 * 4 * (3 + 4)),
    ("nothing", nn.Sequential(nn.BatchNorm2d(3), nn.Hardswish(inplace=True), nn.MaxPool2d(2)), (3, 4, 4), 0),
]


@pytest.mark.parametrize(("model", "shape", "macs"), [pytest.param(*row[1:], id=row[0]) for row in CLOSED_FORMS])
@pytest.mark.parametrize("batch", [1, 3])
def test_closed_forms(model: nn.Module, shape: tuple[int, ...], macs: int, batch: int) -> None:
    counted = count_macs(trace(model, torch.zeros(batch, *shape)))
    assert counted.total == batch * macs
    assert not counted.uncounted


def test_vgg16_is_exact() -> None:
    assert count_macs(trace(vgg16(), torch.zeros(1, 3, 32, 32))).total == 313_201_664


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "convnext_tiny", "vit_b_32", "swin_t", "googlenet"])
def test_torchs_own_counter_gives_twice_as_many_operations(name: str) -> None:
    model = vision.build(name, **({"init_weights": False} if name == "googlenet" else {})).eval()
    counted = count_macs(trace(model, torch.zeros(1, 3, 224, 224)))
    meta = model.to("meta")
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        meta(torch.zeros(1, 3, 224, 224, device="meta"))
    assert 2 * counted.total == flops.get_total_flops()
    assert not counted.uncounted


def test_the_channel_map_predicts_the_same_cost() -> None:
    model, example = vision.build("mobilenet_v3_small").eval(), torch.zeros(1, 3, 64, 64)
    assert capture(model, example).macs() == count_macs(trace(model, example)).total


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_channel_map_predicts_the_same_cost_for_every_image_of_a_batch(network: Callable[[], Network]) -> None:
    model = network().eval()
    example = model.example()
    batch = next(leaf.shape[0] for leaf in tree_leaves(example))
    assert batch * capture(model, example).macs() == count_macs(trace(model, example)).total


def test_attention_on_real_tensors_is_counted_too() -> None:
    """torch's flop counter has no rule for the CPU's attention operator and reports zero."""

    class Real(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.device.type == "cpu" and x.sum().item() == 0  # fails on shapes alone: traced with data
            return functional.scaled_dot_product_attention(x, x, x)

    counted = count_macs(trace(Real(), torch.zeros(1, 2, 5, 4)))
    assert counted.total == 2 * 5 * 5 * 8 and not counted.uncounted


def test_operators_without_a_rule_are_named() -> None:
    model = Function(lambda x: torch.fft.fft2(x).real + torch.linalg.inv(x))
    counted = count_macs(trace(model, torch.zeros(1, 3, 3)))
    assert counted.total == 0
    assert "aten::linalg_inv_ex" in counted.uncounted and any("_fft_" in name for name in counted.uncounted)
    assert all(calls >= 1 for calls in counted.uncounted.values())


def test_someone_elses_operator_of_a_known_name_is_named() -> None:
    library = torch.library.Library("profiling_test", "DEF")
    library.define("relu(Tensor x) -> Tensor")
    library.impl("relu", lambda x: x.clone(), "CompositeExplicitAutograd")
    library.impl("relu", lambda x: torch.empty_like(x), "Meta")
    model = Function(lambda x: torch.ops.profiling_test.relu(x))
    assert count_macs(trace(model, torch.zeros(1, 2))).uncounted == {"profiling_test::relu": 1}


def test_each_operator_is_attributed_to_the_innermost_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    assert count_macs(trace(model, torch.zeros(2, 4))).by_module == {"0": 32, "1.1": 16}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_counts_what_the_trace_does(name: str) -> None:
    model = NETWORKS[name]().eval()
    images = len(tree_leaves(model.example())[0])
    assert capture(model, model.example()).macs() * images == count_macs(trace(model, model.example())).total


def test_the_map_counts_products_with_vectors_and_attention() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.scale, self.head = nn.Linear(5, 6), nn.Parameter(torch.randn(6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            x = functional.scaled_dot_product_attention(x[None], x[None], x[None], scale=0.5)[0]
            return self.head(x) * torch.mv(x, self.scale)[:, None]

    model = Products()
    channels, counted = capture(model, torch.zeros(1, 5)), count_macs(trace(model, torch.zeros(1, 5)))
    assert counted.total == 5 * 6 + 2 * 6 + 6 + 6 * 2 == channels.macs()
    assert channels.macs(channels.free[0].ids[:2]) == 5 * 4 + 2 * 4 + 4 + 4 * 2


class NeedsValues(nn.Module):
    """Cannot run on shapes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float(x.sum().item())


class HasItsOwn(nn.Module):
    """Uses the name under which thop hangs its counter into a module."""

    def __init__(self) -> None:
        super().__init__()
        self.total_ops = 3

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_vgg16_has_the_figure_of_the_papers() -> None:
    macs, reason = thop_macs(vgg16(), torch.zeros(1, 3, 32, 32))
    assert reason is None
    # The exact count and two operations for each of the values that go through a batch norm, over 13 of them.
    assert macs is not None and round(macs / 1e9, 4) == 0.3143


def test_plain_layers_agree_with_the_exact_count() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    assert thop_macs(model, torch.zeros(1, 3, 4, 4)) == (8 * 4 * 27 + 32 * 4, None)


def test_a_model_that_needs_values_is_counted_on_a_real_copy() -> None:
    assert thop_macs(NeedsValues(), torch.ones(1, 4)) == (8, None)


def test_failures_become_reasons(capfd: pytest.CaptureFixture[str]) -> None:
    macs, reason = thop_macs(HasItsOwn(), torch.zeros(1, 2))
    assert macs is None and reason is not None and reason.startswith("thop failed: ") and "\n" not in reason
    assert thop_macs(nn.Linear(2, 2), {"input": torch.zeros(1, 2)})[1] == "thop takes inputs by position only"
    assert capfd.readouterr() == ("", "")


def test_the_model_is_untouched() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    before = copy.deepcopy(model.state_dict())
    thop_macs(model, torch.zeros(1, 1, 3, 3))
    assert list(model.state_dict()) == list(before) and model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks or hasattr(layer, "total_ops") for layer in model.modules())


def test_no_figure_where_a_layer_stands_in_several_places():
    layer = nn.Linear(4, 4)
    macs, reason = thop_macs(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 4))
    assert macs is None and "several places" in reason
    activation = nn.ReLU()
    assert thop_macs(nn.Sequential(layer, activation, nn.Linear(4, 4), activation), torch.zeros(1, 4))[0] is not None


class PartlyCalled(nn.Module):
    """Half its work is in a layer, half in a function on the same weights' shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.weight = nn.Parameter(torch.ones(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.conv(x), self.weight, padding=1)


def test_what_thop_leaves_out_is_said_beside_its_figure() -> None:
    found = profile(PartlyCalled(), torch.zeros(1, 4, 8, 8))
    assert found.macs_thop is not None and found.macs == 2 * found.macs_thop
    assert "50.0%" in found.reasons["macs_thop"]
    report = Report("prune", {}, 0, {}, "", Measurements.of(found), Measurements.of(found))
    assert any("50.0%" in remark for remark in compare(report.before, report.after).remarks)


def test_a_figure_that_is_whole_has_no_remark() -> None:
    found = profile(vgg16(), torch.zeros(1, 3, 32, 32))
    assert found.macs_thop is not None and "macs_thop" not in found.reasons


def test_a_graph_without_layers_has_no_figure() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    graph = torch.export.export(model, (torch.zeros(1, 1, 8, 8),)).module()
    found = profile(graph, torch.zeros(1, 1, 8, 8))
    assert found.macs_thop is None and "none of this model's layers" in found.reasons["macs_thop"]


class Mixed(nn.Module):
    """A layer called twice, a shared weight, a functional product, a layer never called."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.twice.weight
        self.scale = nn.Parameter(torch.ones(4, 2))
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.tied(self.twice(self.twice(x)))) @ self.scale


class Squeezing(nn.Module):
    """Cannot run on one image alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.squeeze(), x.squeeze().transpose(1, 2))


def test_rows_name_every_cost_once() -> None:
    cost = profile(Mixed(), torch.zeros(3, 4))
    rows = {row.name: row for row in cost.layers}
    assert {name: (row.kind, row.macs, row.params) for name, row in rows.items()} == {
        "(model)": ("Mixed", 8, 8),
        "twice": ("Linear", 32, 16),
        "tied": ("Linear", 16, 0),
        "unused": ("Linear", 0, 12),
    }
    assert rows["twice"].input_shapes == ((1, 4),) and rows["unused"].input_shapes == ()
    assert (cost.macs, cost.params) == (56, 36)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vit_b_32"])
def test_rows_sum_to_the_totals(name: str) -> None:
    model = vision.build(name)
    cost = profile(model, torch.zeros(1, 3, 224, 224))
    assert sum(row.macs for row in cost.layers) == cost.macs
    assert sum(row.params for row in cost.layers) == cost.params == sum(p.numel() for p in model.parameters())
    assert len({row.name for row in cost.layers}) == len(cost.layers)


def test_costs_are_per_image_whatever_the_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    one, five = (profile(model, torch.zeros(batch, 3, 6, 6)) for batch in (1, 5))
    assert one == five
    assert one.macs == 4 * 16 * 27


def test_a_model_that_needs_its_batch_is_divided_by_it() -> None:
    assert profile(Squeezing(), torch.zeros(4, 3, 5, 1)).macs == 3 * 3 * 5


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8), 64 * 8 * 27),
        (nn.Conv1d(3, 8, 3), (3, 9), 7 * 8 * 9),
        (nn.ConvTranspose2d(3, 8, 3), (3, 8, 8), 64 * 3 * 8 * 9),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 1)), (3, 8, 8), 36 * 3 * 9 + 36 * 12),
        (nn.Linear(7, 5), (7,), 35),
    ],
)
def test_an_image_without_a_batch_is_one_image(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    cost = profile(model.eval(), torch.zeros(shape))
    assert cost.macs == macs == capture(model, torch.zeros(shape)).macs()
    assert cost.macs_thop is None and "batches" in cost.reasons["macs_thop"]


def test_a_profile_leaves_the_model_untouched() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout()).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    profile(model, torch.ones(2, 1, 3, 3))
    assert [layer.training for layer in model.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_missing_has_a_reason_and_json_takes_it() -> None:
    cost = profile(nn.Linear(2, 2), {"input": torch.zeros(1, 2)}, layers=False)
    assert cost.macs_thop is None and cost.latency_ms is None and cost.layers == ()
    assert {"macs_thop", "latency_ms", "file_bytes"} <= set(cost.reasons)
    assert json.loads(json.dumps(cost.to_json()))["macs"] == 4


def test_a_model_of_which_thop_knows_nothing_gets_no_zero() -> None:
    cost = profile(Squeezing(), torch.zeros(4, 3, 5, 1))
    assert cost.macs_thop is None and "thop knows none" in cost.reasons["macs_thop"]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ModelError, match="does not run on an input of shape 1x2x6x6"):
        profile(nn.Conv2d(3, 4, 3), torch.zeros(1, 2, 6, 6))


class Finding(nn.Module):
    """A detector in small: a layer for every pixel, and one for those pixels alone that are bright."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.body, self.head = way, nn.Conv2d(1, 4, 1, bias=False), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pixels, bright = self.body(x).flatten(2)[0].T, x.flatten() > 0
        if self.way == "mask":
            return self.head(pixels[bright])
        if self.way == "numbers":
            return self.head(pixels[bright.nonzero()[:, 0]].relu())
        if self.way == "written":  # into something that has all of them
            pixels = pixels.clone()
            pixels[bright] = 0.0
        scores = self.head(pixels)
        return scores if self.way != "last" else scores[bright]


@pytest.mark.parametrize(("way", "rows"), [("mask", 3), ("numbers", 3), ("written", 16), ("last", 16), ("", 16)])
def test_macs_that_depend_on_what_is_found_are_said_to(way: str, rows: int) -> None:
    x = torch.cat([torch.ones(3), -torch.ones(13)]).view(1, 1, 4, 4)
    cost = profile(Finding(way), x)
    assert cost.macs == 64 + rows * 8
    share = f"{rows * 8 / cost.macs:.1%} of them depend on how much the network finds in the example, such as boxes"
    assert cost.reasons.get("macs") == (share if rows == 3 else None)


class Residual(nn.Module):
    """The input waits for two layers: three tensors live when the second one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 1)
        self.second = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Views(nn.Module):
    """Views cost nothing; they keep alive what they look at."""

    def forward(self, x: Tensor) -> Tensor:
        doubled = x * 2
        row = doubled.flatten(1).view(-1, 1, x[0].numel())[:, 0].expand(-1, -1)
        return row + 1


MAP = 2 * 4 * 4 * 4  # bytes of one feature map: two channels of 4 x 4 values


@pytest.mark.parametrize(
    ("model", "maps"),
    [
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)), 2),
        (nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)), 3),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True), nn.Flatten()), 2),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten()), 2),
        (Residual(), 3),
        (Views(), 2),
        (nn.Identity(), 1),
    ],
    ids=["chain", "wide middle", "in place", "not in place", "residual", "views", "identity"],
)
def test_the_largest_sum_of_living_tensors(model: nn.Module, maps: int) -> None:
    assert peak_activation_bytes(trace(model, torch.zeros(1, 2, 4, 4))) == maps * MAP


def test_memory_grows_with_batch_and_type() -> None:
    model = nn.Conv2d(2, 2, 1)
    assert peak_activation_bytes(trace(model, torch.zeros(5, 2, 4, 4))) == 10 * MAP
    assert peak_activation_bytes(trace(model.half(), torch.zeros(1, 2, 4, 4, dtype=torch.float16))) == MAP
