"""Rounding weighed: two prunings of one network, which itself stays as it was."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import prune_
from compressor.graph import capture
from compressor.methods.oneshot import rank
from compressor.methods.settings import PruneSettings
from compressor.pipeline.prune import prune
from compressor.pipeline.rounding import chosen_multiple, weigh_rounding
from compressor.pipeline.settings import ModelSettings, OutputSettings, PruneJob
from compressor.reporting import units
from tests.exporting.nets import small_net

DIGITS = Path(__file__).parents[2] / "sample_models" / "digits_cnn.safetensors"


def test_both_ways_are_measured_and_the_network_stays() -> None:
    model, example = small_net(), torch.zeros(1, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    channels = capture(model, example)
    settings = PruneSettings(method="l1", ratio=0.6, allocate="uniform", round_to=8)
    found = weigh_rounding(model, example, channels, settings, rank(model, channels, settings))
    assert (found.plain.multiple, found.rounded.multiple) == (1, 8)
    assert found.rounded.macs > found.plain.macs, "of 16 channels 7 stay as they come, 8 rounded"
    assert found.plain.latency_ms > 0 and found.rounded.latency_ms > 0
    assert "multiples of 8" in found.words and found.section().tables[0].rows[1][0] == "8"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_auto_is_what_the_machine_likes() -> None:
    assert chosen_multiple(PruneSettings(round_to="auto")).round_to in (8, 16)
    assert chosen_multiple(PruneSettings(round_to=3)).round_to == 3


def test_widths_of_a_module_in_memory_suit_the_machine() -> None:
    model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.Flatten(), nn.Linear(48 * 16, 4))
    prune_(model, torch.zeros(1, 3, 8, 8), ratio=0.6, round_to="auto")
    assert [layer.out_channels for layer in (model[0], model[2])] in ([24, 24], [32, 32], [16, 16])


def job(folder: Path, *, latency: bool) -> PruneJob:
    output = OutputSettings(str(folder), latency=latency, onnx=False)
    return PruneJob(ModelSettings(str(DIGITS)), output, PruneSettings(ratio=0.52, round_to="auto"))


def test_without_timing_the_multiple_is_told(tmp_path: Path) -> None:
    told: list[object] = []
    report = prune(job(tmp_path / "run", latency=False), told.append)
    assert any("widths become multiples of" in getattr(event, "text", "") for event in told)
    assert all(size.after % 8 == 0 for size in report.layers if size.after != size.before)
    assert report.settings["round_to"] == "auto" and not report.sections


@pytest.mark.slow
def test_the_report_says_what_rounding_cost_and_gained(tmp_path: Path) -> None:
    report = prune(job(tmp_path / "run", latency=True))
    [section] = report.sections
    assert section.title == "Rounding"
    (one, plain, *_), (multiple, rounded, *_) = section.tables[0].rows
    assert one == "1" and multiple in ("8", "16")
    assert rounded == units.macs(report.after.macs) and plain != rounded
    assert "times as fast as with widths as they come" in (tmp_path / "run" / "report.html").read_text()
