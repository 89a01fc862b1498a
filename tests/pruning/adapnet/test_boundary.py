"""What a boundary decides for one group whose tables are made by hand: which filters each of its parts may touch."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.graph import Channels, capture
from compressor.pruning.adapnet import method, prune
from compressor.pruning.adapnet.boundary import UNIFORM
from compressor.pruning.adapnet.clusters import Clustering
from compressor.pruning.adapnet.maps import moments
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.unit import Unit
from compressor.surgery import Edit, Insert, Merge, Plan, Prune

FILTERS, CONCEPTS = 8, 4


# Every filter that is uniform may go, every two that look alike may merge.
@pytest.fixture(autouse=True)
def all_that_is_uniform_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and the distance of concepts keep no filter back."""
    monkeypatch.setattr(prune, "GAMMA1", 2.0)
    monkeypatch.setattr(prune, "GAMMA3", 2.0)


SETTINGS = AdapNetSettings(beta_start=0.5, min_share=0.0, max_width=2.0)
UNIFORM_ROW = [25.0] * CONCEPTS
SPECIAL_ROWS = [[97.0 if concept == i % CONCEPTS else 1.0 for concept in range(CONCEPTS)] for i in range(FILTERS)]
GROUP = "0"


class Stage:
    """A method with one judged group, and what a boundary would plan for it."""

    def __init__(self, settings: AdapNetSettings = SETTINGS, norm: type[nn.Module] | None = None) -> None:
        torch.manual_seed(0)
        between = [norm(1, FILTERS)] if norm is not None else []
        last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)]
        self.model = nn.Sequential(
            nn.Conv2d(2, FILTERS, 3, padding=1), *between, nn.ReLU(), nn.Conv2d(FILTERS, 5, 3), nn.ReLU(), *last
        )
        self.channels: Channels = capture(self.model, torch.zeros(2, 2, 6, 6))
        self.method = AdapNet(settings, classes=3, steps_per_epoch=20, seed=0)
        self.method.adopt(self.model, self.channels)
        self.unit: Unit = self.method.units[GROUP]
        self.unit.table = torch.tensor(SPECIAL_ROWS, dtype=torch.float64)
        self.unit.concepts = list(range(CONCEPTS))
        self.unit.idle = torch.zeros(CONCEPTS, dtype=torch.int64)
        self.unit.points = torch.ones(CONCEPTS, dtype=torch.float64)
        self.unit.start_recording(24)

    def alike(self, *pairs: tuple[int, int, float]) -> None:
        """The cosines of recorded maps: 0.1 but for these."""
        assert self.unit.recording is not None
        cosines = torch.full((FILTERS, FILTERS), 0.1).fill_diagonal_(1.0)
        for one, other, value in pairs:
            cosines[one, other] = cosines[other, one] = value
        self.unit.recording.cosines, self.unit.recording.images = cosines, 1

    def silent(self, *filters: int) -> None:
        """These have shown nothing for two periods, this one included; the others fire."""
        assert self.unit.recording is not None
        self.unit.recording.filled, self.unit.recording.peak = 24, torch.ones(FILTERS)
        self.unit.silent = torch.zeros(FILTERS, dtype=torch.int64)
        self.unit.recording.peak[list(filters)], self.unit.silent[list(filters)] = 0.0, 1

    def plans(self, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
        """Every plan, each of them refused; the maps' clusters are taken as found, and all are concepts already."""
        found = Clustering(torch.eye(CONCEPTS), torch.eye(CONCEPTS), torch.arange(CONCEPTS))
        monkeypatch.setattr(method, "extract", lambda *_: {GROUP: found})
        monkeypatch.setattr(Unit, "spare_", lambda *_: None)
        return list(self.method.plans(self.model, lambda: self.channels))

    def edits(self, monkeypatch: pytest.MonkeyPatch) -> list[Edit]:
        return [edit for plan in self.plans(monkeypatch) for edit in plan.edits if edit.group == GROUP]

    def positions(self, edit: Edit) -> tuple[int, ...]:
        return tuple(self.unit.ids.index(identity) for identity in edit.channels)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_filter_that_is_to_go_is_not_merged(freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(replace(SETTINGS, freeze=freeze, insert=False, prune_cap=0.1, merge_cap=1.0))
    stage.unit.table[2] = torch.tensor(UNIFORM_ROW)
    stage.unit.table[3] = torch.tensor(UNIFORM_ROW)
    stage.alike((2, 3, 0.99), (2, 5, 0.95), (4, 5, 0.9))
    edits = stage.edits(monkeypatch)
    assert [stage.positions(edit) for edit in edits if isinstance(edit, Merge)] == [(4, 5)]
    assert stage.unit.frozen.tolist() == [freeze and i == 2 for i in range(FILTERS)]
    assert [stage.positions(edit) for edit in edits if isinstance(edit, Prune)] == ([] if freeze else [(2,)])
    assert stage.method.removed == [int(freeze)]  # what is refused does not count


def test_protected_filters_and_those_with_little_data_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(replace(SETTINGS, insert=False, merge_cap=1.0))
    stage.unit.protect[0] = 2  # counted down to 1 before it is looked at
    stage.unit.table[3] *= 39 / 100
    stage.alike((0, 1, 0.99), (2, 3, 0.95), (6, 7, 0.9))
    assert [stage.positions(edit) for edit in stage.edits(monkeypatch)] == [(6, 7)]


def test_a_group_that_can_only_be_pruned_is_neither_merged_nor_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(SETTINGS, norm=nn.GroupNorm)
    assert stage.channels.group(GROUP).prune_only is not None
    stage.unit.table[:] = torch.tensor(UNIFORM_ROW)  # asks for another filter
    stage.alike((0, 1, 0.99))
    assert not stage.edits(monkeypatch)
    free = Stage(SETTINGS)
    free.unit.table[:] = torch.tensor(UNIFORM_ROW)
    free.alike((6, 7, 0.99))
    assert [edit.kind for edit in free.edits(monkeypatch)] == ["merge", "insert"]  # the control


def test_a_coupled_group_is_not_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    stage.unit.table[:] = torch.tensor(UNIFORM_ROW)
    stage.method.coupled = frozenset({GROUP})
    assert not [edit for edit in stage.edits(monkeypatch) if isinstance(edit, Insert)]


@pytest.mark.parametrize("seed", range(4))
def test_a_new_filter_comes_of_one_that_is_neither_frozen_nor_short_of_data(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(replace(SETTINGS, beta_start=1.0, merge=False))  # nothing is frozen by this boundary
    stage.method.generator.manual_seed(seed)
    stage.unit.table[:] = torch.tensor(UNIFORM_ROW)
    stage.unit.table[5] /= 100
    stage.unit.frozen[:] = torch.arange(FILTERS) % 5 != 0  # all but 0 and 5
    edits = [edit for edit in stage.edits(monkeypatch) if isinstance(edit, Insert)]
    assert [stage.positions(edit) for edit in edits] == [(0,)]


@pytest.mark.parametrize(("width", "grows"), [(1.0, False), (1.124, False), (1.125, True)])
def test_a_group_grows_to_its_widest_and_no_further(width: float, grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(replace(SETTINGS, beta_start=1.0, merge=False, max_width=width))  # 8 filters: 9 are an eighth more
    stage.unit.table[:] = torch.tensor(UNIFORM_ROW)
    assert bool(stage.edits(monkeypatch)) == grows


def test_frozen_filters_that_never_fire_go_once_and_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(replace(SETTINGS, insert=False, merge=False))
    stage.silent(1, 3, 6)
    stage.unit.frozen[[1, 4]] = True
    stage.unit.protect[6] = 1
    edits = stage.edits(monkeypatch)
    assert [stage.positions(edit) for edit in edits] == [(1,), (4,), (3,)]
    assert [edit.why == UNIFORM + "; frozen for one period" for edit in edits] == [True, True, False]
    assert stage.method.removed == [0]  # every plan is refused


def test_silence_is_counted_from_the_last_time_that_a_filter_fired(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(replace(SETTINGS, insert=False, merge=False))
    stage.silent(1, 2)
    stage.unit.silent[5] = 7
    stage.edits(monkeypatch)
    assert stage.unit.silent.tolist() == [0, 2, 2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("share", "gone"), [(0.0, 6), (0.5, 4), (1.0, 0)])
def test_filters_that_never_fire_leave_the_group_its_least(
    share: float, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(replace(SETTINGS, insert=False, merge=False, min_share=share))
    stage.silent(*range(FILTERS))
    assert len(stage.edits(monkeypatch)) == gone


def test_all_filters_but_the_least_may_go_each_with_its_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(replace(SETTINGS, insert=False, merge=False))
    given = stage.model[:2](torch.rand(16, 2, 6, 6)).detach()
    stage.method.means.begin(stage.channels)
    stage.method.means.add("2.weight", moments(given, 1))
    stage.unit.frozen[:7] = True
    edits = stage.edits(monkeypatch)
    assert [stage.positions(edit) for edit in edits] == [(i,) for i in range(7)]
    for place, edit in enumerate(edits):
        assert isinstance(edit, Prune) and edit.means is not None
        assert edit.means[0] == pytest.approx(float(given[:, place].mean()), abs=1e-5)


def test_the_longest_share_that_may_be_pruned_is_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(replace(SETTINGS, insert=False, merge=False, prune_cap=0.3))
    stage.unit.table[:] = torch.tensor(UNIFORM_ROW)
    assert not stage.edits(monkeypatch)
    assert int(stage.unit.frozen.sum()) == math.ceil(0.3 * FILTERS) == stage.method.removed[0]
    assert all(set(numbers) == {"p_value", "beta", "kse", "gamma1"} for numbers in stage.unit.reasons.values())


def test_what_was_frozen_a_period_ago_is_not_counted_again() -> None:
    stage = Stage()
    stage.unit.frozen[[1, 2]] = True
    gone = [stage.unit.ids[i] for i in (1, 2, 5)]
    edits = [Prune(GROUP, (identity,), UNIFORM) for identity in gone]
    assert stage.unit.follow_(edits, [identity for identity in stage.unit.ids if identity not in gone]) == 1


def test_a_refused_removal_is_protected_and_no_longer_frozen() -> None:
    stage = Stage()
    stage.unit.frozen[[1, 2]] = True
    stage.unit.reasons[stage.unit.ids[1]] = {"p_value": 0.9}
    stage.unit.spare_([Prune(GROUP, (stage.unit.ids[1],), UNIFORM)])
    assert stage.unit.frozen.tolist() == [i == 2 for i in range(FILTERS)]
    assert stage.unit.protect.tolist() == [3 * (i == 1) for i in range(FILTERS)]
    assert not stage.unit.reasons


def test_a_refused_merge_protects_both_and_an_insertion_nobody() -> None:
    stage = Stage()
    ids = stage.unit.ids
    stage.unit.spare_([Merge(GROUP, ids[1], ids[4], "alike"), Insert(GROUP, ids[2], "needed")])
    assert stage.unit.protect.tolist() == [3 * (i in (1, 4)) for i in range(FILTERS)]
