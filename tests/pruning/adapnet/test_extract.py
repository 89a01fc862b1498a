"""Clusters and counts from recorded maps whose patterns are known."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from compressor.pruning.adapnet import subspace
from compressor.pruning.adapnet.clusters import EXEMPLARS
from compressor.pruning.adapnet.extract import choose_maps, extract
from compressor.pruning.adapnet.maps import Part, show
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.subspace import new_autoencoder
from compressor.pruning.adapnet.unit import Unit

# With some twenty maps of each pattern the default share of coefficients leaves too few neighbours to hold together.
SETTINGS = AdapNetSettings(dict_size=96)


@pytest.fixture(autouse=True)
def most_coefficients_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """These patterns are few and clear; the paper's share of the coefficients would split them."""
    monkeypatch.setattr(subspace, "affinity", partial(subspace.affinity, alpha=0.9))


CPU = torch.device("cpu")
NOBODY = torch.zeros(8, dtype=torch.bool)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def patterns(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """`count` maps of each of four patterns, one in every corner of the map, with noise: (4, count, size, size)."""
    half = size // 2
    maps = 0.05 * torch.rand(4, count, size, size, generator=generator)
    for kind in range(4):
        corner = (slice(half * (kind // 2), half * (kind // 2 + 1)), slice(half * (kind % 2), half * (kind % 2 + 1)))
        maps[kind][:, corner[0], corner[1]] += 0.5 + torch.rand(count, half, half, generator=generator)
    return maps


def record_(unit: Unit, generator: torch.Generator) -> None:
    """A period in which filter i shows pattern i % 4 only, filters 6 and 7 nothing."""
    recording = unit.start_recording(24)
    for _ in range(8):
        shown = patterns(4, unit.size, generator).transpose(0, 1)[:, torch.arange(8) % 4]
        shown[:, 6:] = 0.0
        images = torch.randint(4, (8, 3), generator=generator)
        recording.add(show(shown, images, unit.size, Part(0, 4)), NOBODY)


def new_units(sizes: list[int], generator: torch.Generator) -> list[Unit]:
    units = [Unit(f"conv{i}", list(range(8)), size, new_autoencoder(generator, CPU)) for i, size in enumerate(sizes)]
    for unit in units:
        record_(unit, generator)
    return units


def test_patterns_become_clusters_and_filters_fall_into_theirs(generator: torch.Generator) -> None:
    units = new_units([8, 16, 8], generator)
    found = extract(units, 10, SETTINGS, generator)
    assert list(found) == ["conv0", "conv1", "conv2"]
    for unit in units:
        assert unit.table.shape == (8, len(found[unit.name].centres))
        assert unit.table.sum(1).tolist() == [24.0] * 6 + [0.0] * 2  # all that fired, and nothing else
        main = unit.table[:6].argmax(1).tolist()
        assert main[:2] == main[4:6] and len(set(main[:4])) == 4
        assert found[unit.name].centres.shape[0] == 4
        assert float((unit.table[:6] / 24).amax(1).mean()) > 0.95
        assert unit.boundaries == 1


def test_exemplars_carry_the_clusters_to_the_next_period(generator: torch.Generator) -> None:
    (unit,) = new_units([8], generator)
    extract([unit], 10, SETTINGS, generator)
    main, clusters = unit.table.argmax(1), unit.clusters
    for _ in range(2):
        record_(unit, generator)
        extract([unit], 10, SETTINGS, generator)
    assert unit.clusters >= clusters
    assert torch.equal(unit.table[:6].argmax(1), main[:6])
    assert torch.bincount(unit.owners, minlength=unit.clusters).max() <= EXEMPLARS
    assert unit.table.sum().item() == 3 * 6 * 24
    assert len(unit.points) == len(unit.idle) == unit.clusters


def test_counts_of_all_periods_are_added_up(generator: torch.Generator) -> None:
    (unit,) = new_units([8], generator)
    extract([unit], 10, SETTINGS, generator)
    for period in (1, 2):
        before = unit.table.clone()
        record_(unit, generator)
        extract([unit], 10, SETTINGS, generator)
        new = unit.table[:, : before.shape[1]] - before
        assert float(new.min()) >= 0 and torch.equal(new, new.round())  # counts
        assert unit.table.sum(1).tolist() == [(period + 1) * 24.0] * 6 + [0.0] * 2


@pytest.mark.parametrize("size", [64, 96, 128])
def test_the_dictionary_is_as_large_as_asked(size: int, generator: torch.Generator) -> None:
    (unit,) = new_units([8], generator)  # 144 maps fire
    found = extract([unit], 10, replace(SETTINGS, dict_size=size), generator)
    assert len(found["conv0"].points) == size == int(unit.points.sum())
    exemplars = len(unit.exemplars)
    record_(unit, generator)
    found = extract([unit], 10, replace(SETTINGS, dict_size=size), generator)
    assert len(found["conv0"].points) == size + exemplars


def test_too_few_maps_change_nothing(generator: torch.Generator) -> None:
    (unit,) = new_units([8], generator)
    assert unit.recording is not None
    unit.recording.fired[:, 4:] = False
    assert extract([unit], 10, SETTINGS, generator) == {}
    assert unit.clusters == 0 and unit.boundaries == 0 and float(unit.autoencoder["steps"]) == 0
    unit.recording = None
    assert extract([unit], 10, SETTINGS, generator) == {}


def test_the_same_generator_gives_the_same_tables() -> None:
    tables = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(4)
        units = new_units([8, 8], generator)
        extract(units, 10, SETTINGS, generator)
        tables.append([unit.table for unit in units])
    assert all(torch.equal(one, other) for one, other in zip(*tables))


@pytest.mark.parametrize(("filters", "count", "each"), [(8, 64, 8), (8, 60, None), (100, 64, 1), (4, 256, 24)])
def test_the_dictionary_takes_as_many_maps_of_every_filter(
    filters: int, count: int, each: int | None, generator: torch.Generator
) -> None:
    fired = torch.ones(filters, 24, dtype=torch.bool)
    chosen = choose_maps(fired, count, generator)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, filters * 24)
    per_filter = torch.bincount(chosen // 24, minlength=filters)
    assert int(per_filter.max()) == (each or 8)
    if each == 8 or each == 24:
        assert int(per_filter.min()) == each


def test_the_dictionary_takes_only_maps_that_fired(generator: torch.Generator) -> None:
    fired = torch.rand(10, 24, generator=generator) < 0.2
    chosen = choose_maps(fired, 64, generator)
    assert bool(fired.flatten()[chosen].all())


def test_units_of_one_map_size_train_together(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call trains all autoencoders of a size: they are independent, and one for each would take longer."""
    batches = []
    train_ = subspace.train_
    monkeypatch.setattr(subspace, "train_", lambda *given: (batches.append(len(given[1])), train_(*given)))
    extract(new_units([8, 16, 8], generator), 10, SETTINGS, generator)
    assert sorted(batches) == [1, 2]
