"""thop's figure, and its silence."""

import copy

import pytest
import torch
from torch import Tensor, nn

from compressor.profiling.model_profile import profile
from compressor.profiling.thop_count import thop_macs
from compressor.report.comparison import compare
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from tests.profiling.test_macs import vgg16


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
