"""AdapNet as a whole on digits: what happens, in which order, and that it can be repeated and resumed."""

import copy
import io
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.graph.capture import capture
from compressor.pruning.adapnet import boundary
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.surgery import Insert, Merge, Prune
from tests.equivalence import same_map
from tests.pruning.adapnet.running import Running, small_net

SETTINGS = AdapNetSettings(lsep=10, max_epochs=6, dict_size=96)


def run(settings: AdapNetSettings = SETTINGS, seed: int = 0, steps: int = 40) -> Running:
    torch.manual_seed(seed)
    running = Running(settings, small_net(8), seed)
    running.train(steps)
    return running


@pytest.fixture(scope="module")
def done() -> Running:
    return run(steps=100)


@pytest.fixture(scope="module")
def whole() -> Running:
    return run(steps=50)


@pytest.mark.parametrize(("dict_size", "maps"), [(96, (3, 3, 3, 3)), (200, (4, 4, 3, 3)), (400, (7, 7, 4, 4))])
def test_narrow_groups_record_as_many_maps_as_fill_the_dictionary(dict_size: int, maps: tuple[int, ...]) -> None:
    """Of 8, 8, 16 and 16 filters, in 8 batches: 64 or 128 maps for each that a filter gives."""
    running = Running(replace(SETTINGS, dict_size=dict_size), small_net(8))
    with running.method.watch(running.model, running.channels).on(running.model):
        recordings = [unit.recording for unit in running.method.units.values()]
    assert [recording.maps.shape[1] for recording in recordings if recording is not None] == [8 * each for each in maps]


def test_filters_count_as_removed_when_they_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(SETTINGS, small_net(8))
    method = running.method
    method.adopt(running.model, running.channels)
    unit = next(iter(method.units.values()))
    monkeypatch.setattr(boundary, "candidates", lambda *_: {unit.ids[0]: {}, unit.ids[2]: {}})
    monkeypatch.setattr(boundary, "merges", lambda *_: [])
    method.removed = [0]
    looked = boundary.Looked(running.model, running.channels, method.means, SETTINGS, method.generator)
    assert not list(method._reductions([unit], looked))
    assert method.removed == [2] and unit.frozen.nonzero().flatten().tolist() == [0, 2]


def test_a_run_prunes_merges_and_inserts(done: Running) -> None:
    assert set(done.kinds()) == {"prune", "merge", "insert"}
    assert done.channels.params() < capture(small_net(8), done.images[:2]).params()
    assert same_map(done.channels, capture(done.model, done.images[:2])) is None


def test_every_edit_says_when_and_by_what_numbers_it_was_decided(done: Running) -> None:
    expected = {
        "prune": {"p_value", "beta", "kse", "gamma1"},
        "merge": {"cosine", "gamma2", "chebyshev", "gamma3"},
        "insert": {"p1", "p2", "sum_p1", "sum_p2", "concepts"},
    }
    for plan in done.plans:
        for row in plan.rows():
            assert row["why"] and 0 <= row["period"] < 10
            assert set(row["numbers"]) == expected[row["kind"]]
            numbers = row["numbers"]
            if row["kind"] == "prune":
                assert numbers["p_value"] > numbers["beta"] and numbers["kse"] < numbers["gamma1"] == 0.6
            elif row["kind"] == "merge":
                assert numbers["cosine"] > numbers["gamma2"] and numbers["chebyshev"] < numbers["gamma3"] == 0.8
            else:
                assert max(numbers["p1"], numbers["p2"]) > 0 and numbers["concepts"] >= 4


def test_limits_of_a_period_hold(done: Running) -> None:
    for plan in done.plans:
        merged = Counter(edit.group for edit in plan.edits if isinstance(edit, Merge))
        inserted = Counter(edit.group for edit in plan.edits if isinstance(edit, Insert))
        assert max([*merged.values(), *inserted.values()], default=0) <= 1  # a twentieth of so few is one
    for unit in done.method.units.values():
        assert 2 <= unit.filters <= unit.original


def assert_same(one: Running, other: Running) -> None:
    assert [list(plan.rows()) for plan in one.plans] == [list(plan.rows()) for plan in other.plans]
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])


def test_the_same_seed_gives_the_same_edits_and_weights(whole: Running) -> None:
    assert_same(run(steps=50), whole)


@pytest.mark.parametrize(("flag", "gone"), [("merge", "merge"), ("insert", "insert")])
def test_ablations_leave_their_part_out(flag: str, gone: str) -> None:
    assert gone not in run(replace(SETTINGS, **{flag: False})).kinds()


def pruning_only(**changes: object) -> AdapNetSettings:
    """Settings under which filters are frozen soon, and nothing else happens."""
    return replace(replace(SETTINGS, beta_start=0.05, merge=False, insert=False), **changes)  # type: ignore[arg-type]


def test_frozen_filters_stand_still_for_one_period_and_are_then_cut() -> None:
    torch.manual_seed(0)
    running = Running(pruning_only(), small_net(8))
    while not running.method.frozen:
        running.train(1)
    frozen = running.method.frozen
    period, before = running.method.period, len(running.plans)

    def rows() -> list[torch.Tensor]:
        tensors = dict(running.model.named_parameters())
        return [
            tensors[place.tensor].detach()[running.channels.positions(place, ids).ravel()].clone()
            for name, ids in frozen.items()
            for place in running.channels.group(name).places
            if place.role == "row" and place.tensor in tensors
        ]

    kept = rows()
    for _ in range(9):
        running.train(1)
        assert all(torch.equal(one, other) for one, other in zip(rows(), kept))
    assert running.method.period == period and len(running.plans) == before
    running.train(1)
    cut = {(edit.group, *edit.channels) for edit in running.plans[before].edits if isinstance(edit, Prune)}
    assert cut == {(name, identity) for name, ids in frozen.items() for identity in ids}
    assert all(edit.means is not None for edit in running.plans[before].edits if isinstance(edit, Prune))


def test_without_freezing_filters_go_in_the_period_in_which_they_were_chosen() -> None:
    running = run(pruning_only(freeze=False))
    assert "prune" in running.kinds() and running.method.frozen == {}
    assert sum(running.method.removed) == len(running.kinds())


def test_the_end_of_the_phase_spares_what_is_still_frozen() -> None:
    torch.manual_seed(0)
    running = Running(pruning_only(), small_net(8))
    while not running.method.frozen:
        running.train(1)
    running.method.release()
    assert running.method.frozen == {}
    before = len(running.plans)
    running.method.settings = replace(running.method.settings, prune_cap=0.0)
    running.train(10)
    assert len(running.plans) == before


def test_a_new_filter_is_spared_at_exactly_the_next_two_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    spared: Counter[tuple[int, int]] = Counter()  # by identity, which another may take once it is gone, and birth
    asked = boundary.prune.candidates

    def watching(table, concepts, eligible, *more):  # type: ignore[no-untyped-def]
        unit = next(unit for unit in running.method.units.values() if unit.table is table)
        for identity, free in zip(unit.ids, eligible.tolist()):
            if not free:
                spared[identity, running.born[identity]] += 1
        return asked(table, concepts, eligible, *more)

    monkeypatch.setattr(boundary.prune, "candidates", watching)
    torch.manual_seed(0)
    running = Running(SETTINGS, small_net(8))
    running.train(100)
    old_enough = [born for born in running.born.items() if born[1] + 2 < 10]
    assert old_enough and all(spared[born] == 2 for born in old_enough)


def test_deciding_changes_nothing_in_the_model_and_leaves_no_hook() -> None:
    torch.manual_seed(0)
    running = Running(SETTINGS, small_net(8))
    running.train(49)
    with running.method.watch(running.model, running.channels).on(running.model) as watch:
        running._step()
        assert running.method.step_done(watch.take())
    before = copy.deepcopy(running.model.state_dict())
    first = next(iter(running.method.plans(running.model, lambda: running.channels)))
    assert first.edits
    for name, value in running.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in running.model.modules())


@pytest.mark.parametrize("at", [35, 30], ids=["within a period", "between periods"])
def test_a_resumed_run_is_the_run_it_would_have_been(at: int, whole: Running) -> None:
    torch.manual_seed(0)
    broken = Running(SETTINGS, small_net(8))
    broken.train(at)
    file = io.BytesIO()
    torch.save(broken.method.state_dict(), file)
    file.seek(0)
    resumed = copy.copy(broken)
    resumed.method = AdapNet(SETTINGS, classes=10, steps_per_epoch=resumed.epoch_steps, seed=99)
    resumed.method.load_state_dict(torch.load(file, weights_only=True), resumed.model, resumed.channels)
    resumed.train(50 - at)
    assert_same(resumed, whole)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv2, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(8 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.conv2(self.relu(self.conv1(x))))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def test_coupled_channels_are_pruned_and_merged_and_never_inserted() -> None:
    torch.manual_seed(0)
    running = Running(SETTINGS, Residual())
    running.train(80)
    kinds = Counter((edit.group, edit.kind) for plan in running.plans for edit in plan.edits)
    assert kinds["stem", "merge"] + kinds["stem", "prune"] > 0
    assert kinds["stem", "insert"] == 0
    assert same_map(running.channels, capture(running.model, running.images[:2])) is None
