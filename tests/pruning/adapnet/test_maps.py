"""Recording of feature maps against one map at a time."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from compressor.pruning.adapnet.maps import (
    Part,
    Recording,
    cosine_sums,
    draw_images,
    map_size,
    maps_per_batch,
    prepare,
    show,
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(2, 2, 8), (8, 8, 8), (7, 9, 16), (28, 28, 32), (32, 32, 32), (112, 112, 32)]
)
def test_map_size_is_the_next_power_of_two_within_8_and_32(height: int, width: int, expected: int) -> None:
    assert map_size(height, width) == expected


@pytest.mark.parametrize("size", [8, 16])
def test_prepare_equals_one_map_at_a_time(generator: torch.Generator, size: int) -> None:
    maps = torch.randn(6, 8, 8, generator=generator)
    maps[1:3] = maps[1:3].relu()
    maps[4] = 0.0
    maps[5] = 1e-7
    made, fired = prepare(maps, size)
    for one, result, lit in zip(maps, made, fired):
        shifted = one - min(float(one.min()), 0.0)
        assert bool(lit) == (float(shifted.max()) > 1e-6)
        if not lit:
            assert not result.any()
            continue
        scaled = shifted / shifted.max()
        expected = scaled if size == 8 else F.interpolate(scaled[None, None], (size, size), mode="bilinear")[0, 0]
        torch.testing.assert_close(result, expected)


def test_prepare_shrinks_without_missing_what_lies_between_samples() -> None:
    maps = torch.zeros(1, 64, 64)
    maps[0, 30, 29] = 1.0
    made, _ = prepare(maps, 8)
    assert float(made.max()) > 0


def test_maps_that_are_not_finite_do_not_count_as_fired() -> None:
    maps, fired = prepare(torch.full((1, 4, 4), torch.nan), 8)
    assert not fired.any() and not maps.any()


@pytest.mark.parametrize("cut", [1, 7, 18])
def test_parts_of_a_batch_show_together_what_it_shows(generator: torch.Generator, cut: int) -> None:
    activations = torch.randn(20, 4, 8, 8, generator=generator).relu()
    images = draw_images(4, 6, 20, generator)
    whole = show(activations, images, 8, Part(0, 20))
    first, rest = show(activations[:cut], images, 8, Part(0, 20)), show(activations[cut:], images, 8, Part(cut, 20))
    assert torch.equal(first.maps + rest.maps, whole.maps) and torch.equal(first.fired + rest.fired, whole.fired)
    torch.testing.assert_close(first.cosines + rest.cosines, whole.cosines)
    assert torch.equal(torch.maximum(first.peak, rest.peak), whole.peak)
    assert first.images == rest.images == whole.images


def test_cosine_sums_equal_pairs_one_by_one(generator: torch.Generator) -> None:
    maps = torch.randn(3, 4, 5, 6, generator=generator)
    maps[0, 1] = 0.0
    expected = torch.zeros(4, 4)
    for image in maps:
        for i in range(4):
            for j in range(4):
                norms = max(float(image[i].norm()), 1e-8) * max(float(image[j].norm()), 1e-8)
                expected[i, j] += (image[i] * image[j]).sum() / norms
    torch.testing.assert_close(cosine_sums(maps), expected, atol=1e-5, rtol=0)


def recorded(generator: torch.Generator, batches: int = 2) -> tuple[Recording, list[torch.Tensor], list[torch.Tensor]]:
    recording = Recording(4, 3 * batches, 8, torch.device("cpu"))
    frozen = torch.tensor([False, False, True, False])
    activations, images = [], []
    for _ in range(batches):
        activations.append(torch.randn(10, 4, 8, 8, generator=generator).relu())
        activations[-1][:, 3] = 0.0
        images.append(draw_images(4, 3, 10, generator))
        recording.add(show(activations[-1], images[-1], 8, Part(0, 10)), frozen)
    return recording, activations, images


def test_recording_holds_the_chosen_maps_of_every_filter(generator: torch.Generator) -> None:
    recording, activations, images = recorded(generator)
    assert recording.filled == recording.maps.shape[1]
    for batch in range(2):
        for filter in range(3):
            for k in range(3):
                one = activations[batch][images[batch][filter, k], filter]
                torch.testing.assert_close(
                    recording.maps[filter, 3 * batch + k].float(), one / one.max(), atol=1e-3, rtol=0
                )
    expected = sum(cosine_sums(a) for a in activations) / 20
    torch.testing.assert_close(recording.similarity(), expected.double())


def test_recording_counts_neither_frozen_filters_nor_silent_ones(generator: torch.Generator) -> None:
    recording, _, _ = recorded(generator)
    assert recording.fired.sum(1).tolist() == [6, 6, 0, 0]
    assert recording.dead().tolist() == [False, False, False, True]


def test_nothing_recorded_means_nothing_dead() -> None:
    assert not Recording(4, 6, 8, torch.device("cpu")).dead().any()


def test_selecting_filters_keeps_rows_and_pairs_together(generator: torch.Generator) -> None:
    recording, _, _ = recorded(generator)
    maps, similarity = recording.maps.clone(), recording.similarity()
    recording.select_(torch.tensor([0, 2]))
    assert torch.equal(recording.maps, maps[[0, 2]])
    assert torch.equal(recording.similarity(), similarity[[0, 2]][:, [0, 2]])
    assert recording.fired.shape == (2, 6) and recording.peak.shape == (2,)


@pytest.mark.parametrize(("filters", "expected"), [(64, 3), (11, 3), (10, 4), (2, 16)])
def test_narrow_layers_give_more_maps_of_each_filter(filters: int, expected: int) -> None:
    assert maps_per_batch(filters, 3, 8, 256) == expected


def test_draws_are_the_generators_alone() -> None:
    make: Callable[[], Any] = lambda: draw_images(5, 3, 100, torch.Generator().manual_seed(3))  # noqa: E731
    assert torch.equal(make(), make())


def test_a_recording_survives_a_checkpoint(generator: torch.Generator) -> None:
    recording, _, _ = recorded(generator)
    file = io.BytesIO()
    torch.save(recording.state_dict(), file)
    file.seek(0)
    again = Recording(4, 6, 8, torch.device("cpu"))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again.maps, recording.maps) and again.filled == recording.filled
    assert torch.equal(again.similarity(), recording.similarity())
