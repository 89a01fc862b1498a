"""One group's state: it stays in step under random edits and survives a checkpoint."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.pruning.adapnet.maps import Part, show
from compressor.pruning.adapnet.subspace import new_autoencoder
from compressor.pruning.adapnet.unit import Unit

CPU = torch.device("cpu")


def new_unit(filters: int = 5, clusters: int = 4) -> Unit:
    """A unit in which every filter can be told by its row (10 times its channel) and every cluster by its exemplars."""
    unit = Unit("conv", list(range(filters)), 8, new_autoencoder(torch.Generator().manual_seed(0), CPU))
    unit.table = 10.0 * torch.arange(filters).double()[:, None].expand(-1, clusters).clone()
    unit.owners = torch.arange(clusters).repeat_interleave(3)
    unit.exemplars = unit.owners[:, None, None].expand(-1, 8, 8).half()
    unit.points, unit.idle = torch.arange(clusters).double(), torch.arange(clusters)
    unit.concepts = [1, 3]
    return unit


EDITS = st.lists(st.tuples(st.sampled_from(["prune", "merge", "insert"]), st.integers(0, 99)), max_size=20)


@settings(max_examples=40, deadline=None)
@given(EDITS)
def test_every_row_stays_with_its_channel_under_random_edits(edits: list[tuple[str, int]]) -> None:
    unit = new_unit()
    expected = {i: 10.0 * i for i in range(5)}
    for step, (kind, a) in enumerate(edits):
        if kind == "insert":
            unit.insert_(a % (unit.filters + 1), 100 + step, protect=3)
            expected[100 + step] = 0.0
            assert unit.protect[a % unit.filters] == 3
        elif kind == "prune" and unit.filters > 2:
            del expected[unit.ids[a % unit.filters]]
            unit.prune_([a % unit.filters])
        elif kind == "merge" and unit.filters > 2:
            keep, drop = sorted([a % unit.filters, (a + 1) % unit.filters])
            kept, dropped = unit.ids[keep], unit.ids[drop]
            unit.merge_(keep, drop)
            expected[kept] = (expected[kept] + expected.pop(dropped)) / 2
    assert {channel: float(row[0]) for channel, row in zip(unit.ids, unit.table)} == pytest.approx(expected)
    assert len(unit.table) == len(unit.protect) == len(unit.frozen) == len(unit.silent) == unit.filters == len(unit.ids)


def test_edits_keep_the_running_periods_maps_in_step() -> None:
    unit = new_unit()
    recording = unit.start_recording(6)
    recording.maps += torch.arange(5)[:, None, None, None].half()
    unit.prune_([1, 3])
    assert recording.maps[:, 0, 0, 0].tolist() == [0, 2, 4]


def test_a_merged_filter_is_as_protected_and_as_alive_as_either() -> None:
    unit = new_unit()
    unit.protect, unit.silent = torch.tensor([0, 2, 0, 0, 0]), torch.tensor([3, 0, 0, 0, 0])
    unit.merge_(0, 1)
    assert unit.protect.tolist() == [2, 0, 0, 0] and unit.silent.tolist() == [0, 0, 0, 0]


def test_forgetting_a_cluster_keeps_the_others_exemplars() -> None:
    unit = new_unit()
    unit.forget_clusters_([0, 2])
    assert unit.concepts == [0, 1] and unit.clusters == 2
    assert unit.owners.tolist() == [0, 0, 0, 1, 1, 1]
    assert unit.exemplars[:, 0, 0].tolist() == [1, 1, 1, 3, 3, 3]
    assert unit.points.tolist() == [1, 3] and unit.idle.tolist() == [1, 3]


@pytest.mark.parametrize("recording", [False, True])
def test_the_state_survives_a_checkpoint_of_plain_types_and_tensors(recording: bool) -> None:
    unit = new_unit()
    unit.prune_([2])
    if recording:
        shown = show(torch.rand(4, 4, 8, 8), torch.zeros(4, 3, dtype=torch.int64), 8, Part(0, 4))
        unit.start_recording(6).add(shown, torch.zeros(4, dtype=torch.bool))
    file = io.BytesIO()
    torch.save(unit.state_dict(), file)
    file.seek(0)
    again = Unit("conv", [9], 16, new_autoencoder(torch.Generator().manual_seed(7), CPU))
    again.load_state_dict(torch.load(file, weights_only=True))
    before, after = unit.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name])
