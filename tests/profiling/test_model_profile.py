"""The cost of a model by layer: rows, sums, and what is left as it was."""

import json

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.graph import capture
from compressor.graph.trace import trace
from compressor.profiling.model_profile import peak_activation_bytes, profile
from compressor.vision import door as vision


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


def test_the_model_is_untouched() -> None:
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
