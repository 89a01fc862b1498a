"""Rounding weighed: two prunings of one network, which itself stays as it was."""

import torch

from compressor.graph import capture
from compressor.methods.settings import PruneSettings
from compressor.pipeline.rounding import chosen_multiple, weigh_rounding
from tests.exporting.nets import small_net


def test_both_ways_are_measured_and_the_network_stays() -> None:
    model, example = small_net(), torch.zeros(1, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    channels = capture(model, example)
    found = weigh_rounding(model, example, channels, PruneSettings(ratio=0.6, round_to=8))
    assert (found.plain.multiple, found.rounded.multiple) == (1, 8)
    assert found.rounded.macs > found.plain.macs, "of 16 channels 7 stay as they come, 8 rounded"
    assert found.plain.latency_ms > 0 and found.rounded.latency_ms > 0
    assert "multiples of 8" in found.words and found.section().tables[0].rows[1][0] == "8"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_auto_is_what_the_machine_likes() -> None:
    assert chosen_multiple(PruneSettings()).round_to in (8, 16)
