"""Tables fit a terminal of 80 columns and say why something is missing."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console, RenderableType
from torch import Tensor, nn

from compressor.profiling.costs import profile
from compressor.report.manifest import ExitFacts, Manifest
from compressor.report.measurements import LayerCost, Profile
from compressor.report.report import Report
from compressor.report.tables import (
    before_after_table,
    exits_table,
    filters_table,
    frozen_table,
    layers_table,
    profile_table,
)
from compressor.vision import door as vision
from tests.report.reports import LONG, bare_report, full_report, timing


def printed(table: RenderableType, width: int = 80) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def wide_profile() -> Profile:
    row = LayerCost(LONG, "ConvTranspose2dWithALongName", ((1, 2048, 112, 112),), ((1, 2048, 112, 112),), 10**12, 10**9)
    return Profile(
        macs=10**12,
        macs_thop=None,
        params=10**9,
        layers=(row,) * 3,
        uncounted={"aten::linalg_inv_ex": 3, "mylib::strange": 1},
        activation_bytes=10**7,
        latency_ms={"torch": timing(3.0), "onnxruntime": None},
        file_bytes=1234,
        reasons={"macs_thop": "thop failed: x", "latency_ms.onnxruntime": "the export was refused"},
    )


@pytest.mark.parametrize(
    "table",
    [
        *(draw(full_report()) for draw in (before_after_table, filters_table, frozen_table)),
        *(draw(bare_report()) for draw in (before_after_table, filters_table, frozen_table)),
        profile_table(wide_profile()),
        layers_table(wide_profile()),
    ],
    ids=["before", "filters", "frozen", "bare before", "bare filters", "bare frozen", "profile", "layers"],
)
def test_every_table_fits_80_columns_and_loses_nothing(table: RenderableType) -> None:
    text = printed(table)
    assert max(map(len, text.splitlines()), default=0) <= 80
    assert "…" not in text and "..." not in text


def test_before_after_shows_the_row_of_the_demo() -> None:
    lines = [line.split() for line in printed(before_after_table(full_report())).splitlines()]
    assert ["MACs", "313.2", "MMAC", "156.6", "MMAC", "0.50x"] in lines
    assert ["test", "top-1", "93.21", "%", "92.81", "%", "-0.40", "pp"] in lines
    assert ["latency", "ONNX", "Runtime", "1.20", "ms", "–"] in lines


def test_missing_values_have_their_reason_below() -> None:
    text = printed(before_after_table(full_report()))
    assert "MACs (thop): thop failed: no such hook" in text
    assert "latency ONNX Runtime: the export was refused" in text
    assert "latency: median of repeated runs, batch 1, 2 threads" in text


def test_equal_reasons_are_said_once() -> None:
    assert printed(before_after_table(bare_report())).count("not measured") == 1


def test_filters_shows_what_changed_and_counts_the_rest() -> None:
    text = printed(filters_table(full_report()))
    names = [line.split()[0] for line in text.splitlines()]
    assert "layer1.0.conv1" in names and "conv1" not in names
    assert "1 of 8 layers unchanged" in text


def test_a_package_in_int8_says_what_it_takes_and_what_float32_would() -> None:
    manifest = Manifest(
        kind="plain", input={}, outputs=("logits",), exits=(ExitFacts(0, "model", 10**6, 400_000, 3),),
        quantization={"calibrated_on": "128 training images", "note": "for x86 with VNNI"},
        files={"model.onnx": {"bytes": 50_000}, "weights.bin": {"bytes": 400_000}, "run.py": {"bytes": 9_000}},
    )  # fmt: skip
    text = " ".join(printed(exits_table(manifest)).split())
    assert "graph and weights take 450.0 kB, in float32 the weights alone 1.600 MB" in text
    timed, known = replace(manifest.exits[0], float_ms=1.5), {**manifest.quantization, "float32_bytes": 1_700_000}
    text = " ".join(printed(exits_table(replace(manifest, exits=(timed,), quantization=known))).split())
    assert "graph and weights take 450.0 kB, in float32 1.700 MB" in text
    assert "before quantization it takes 1.50 ms, measured in turn" in text


def test_names_with_brackets_are_shown_as_they_are() -> None:
    report = Report(**{**vars(bare_report()), "frozen": {"blocks[bold]": "no [rule]"}})
    text = printed(frozen_table(report))
    assert "blocks[bold]" in text and "no [rule]" in text


def test_profile_names_what_was_not_counted() -> None:
    text = printed(profile_table(wide_profile()), width=200)
    assert "counted as zero MACs: aten::linalg_inv_ex (3), mylib::strange (1)" in text
    assert "latency torch, batch 16" in text and "latency ONNX Runtime: the export was refused" in text


def test_layers_table_ends_in_the_totals() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.fc(x))

    lines = [line.split() for line in printed(layers_table(profile(Net(), torch.zeros(1, 4)))).splitlines()]
    assert ["fc", "Linear", "2", "8", "MAC", "10"] in lines
    assert lines[-1] == ["total", "8", "MAC", "10"]


def test_a_real_network_fits_too() -> None:
    cost = profile(vision.build("resnet18"), torch.zeros(1, 3, 224, 224))
    assert max(map(len, printed(layers_table(cost)).splitlines())) <= 80
