"""What reaches the network: normalised, shaped, shuffled and augmented as a function of the place in the run."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from compressor.training.batching import Augmentation, augment, choose_augmentation, fit_shape
from compressor.training.data import with_input_shape
from compressor.training.numerics import generator
from compressor.training.settings import TrainSettings
from compressor.vision.preparation import Preparation
from tests.training.small import small_data

CPU = torch.device("cpu")


def test_batches_are_the_normalised_set_in_its_order():
    data = small_data()
    x = torch.cat([x for x, _ in data.passing(data.train, 40)])
    y = torch.cat([y for _, y in data.passing(data.train, 40)])
    expected = (data.train.images / 255 - data.preparation.mean[0]) / data.preparation.std[0]
    assert torch.allclose(x, expected, atol=1e-6)
    assert torch.equal(y, data.train.labels)


def test_epoch_is_a_shuffle_without_repetition():
    data = small_data(train=100)
    settings = TrainSettings(batch_size=32, augment="none")
    x = torch.cat([x for x, _ in data.training(settings, 0, 0, CPU)]).flatten(1)
    assert len(x) == 96  # the last 4 make no full batch
    assert len(x.unique(dim=0)) == 96


def test_order_depends_on_seed_and_epoch_only():
    data = small_data()

    def labels(seed: int, epoch: int) -> list[int]:
        settings = TrainSettings(batch_size=32, seed=seed)
        return torch.cat([y for _, y in data.training(settings, epoch, 0, CPU)]).tolist()

    assert labels(0, 0) == labels(0, 0)
    assert len({tuple(labels(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_batches_do_not_depend_on_where_the_epoch_was_taken_up():
    data = small_data()
    settings = TrainSettings(batch_size=16, augment="crop+flip")
    whole = list(data.training(settings, 3, 0, CPU))
    rest = list(data.training(settings, 3, 4, CPU))
    for (x, y), (again_x, again_y) in zip(whole[4:], rest, strict=True):
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)


def test_set_smaller_than_a_batch_is_one_batch():
    data = small_data(train=20)
    assert data.steps(TrainSettings(batch_size=64)) == 1
    assert [len(y) for _, y in data.training(TrainSettings(batch_size=64), 0, 0, CPU)] == [20]


def test_channels_last_is_a_matter_of_layout_only():
    data = with_input_shape(small_data(), (3, 16, 16))
    settings = TrainSettings(batch_size=32)
    for (x, _), (last, _) in zip(
        data.training(settings, 0, 0, CPU),
        data.training(replace(settings, channels_last=True), 0, 0, CPU),
    ):
        assert torch.allclose(x, last, atol=1e-6)
        assert last.is_contiguous(memory_format=torch.channels_last)


def test_crop_is_a_shift_with_black_and_every_shift_occurs():
    images = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(2000, 2, 4, 4)
    out = augment(images, Augmentation(padding=1), generator(CPU, 0))
    padded = functional.pad(images[0], (1, 1, 1, 1))
    shifts = torch.stack([padded[:, top : top + 4, left : left + 4] for top in range(3) for left in range(3)])
    matches = (out[:, None] == shifts[None]).flatten(2).all(2)
    assert (matches.sum(1) == 1).all()
    # Uniform over the 9: a binomial of 2000 draws stays within 5 standard deviations (14).
    assert ((matches.sum(0) - 2000 / 9).abs() < 70).all()


def test_flip_mirrors_about_half():
    images = torch.arange(4, dtype=torch.uint8).expand(1000, 1, 2, 4)
    out = augment(images, Augmentation(flip=True), generator(CPU, 0))
    flipped = (out == images.flip(3)).flatten(1).all(1)
    assert ((out == images).flatten(1).all(1) ^ flipped).all()
    assert 420 < int(flipped.sum()) < 580


def test_no_augmentation_draws_nothing():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    source = generator(CPU, 0)
    before = source.get_state()
    assert augment(images, Augmentation(), source) is images
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize(
    ("name", "suits", "expected"),
    [
        ("auto", "none", Augmentation()),
        ("auto", "crop+flip", Augmentation(4, True)),
        ("crop", "none", Augmentation(4, False)),
        ("none", "crop+flip", Augmentation()),
    ],
)
def test_augmentation_by_name(name, suits, expected):
    assert choose_augmentation(name, suits) == expected


def test_28_pixels_are_framed_to_32():
    images = torch.rand(2, 1, 28, 28) + 1
    out = fit_shape(images, (3, 32, 32), Preparation((0.5,), (0.5,), frame=4))
    assert torch.equal(out[:, :, 2:30, 2:30], images.expand(-1, 3, -1, -1))
    assert int((out == 0).sum()) == 2 * 3 * (32 * 32 - 28 * 28)


def test_resizing_keeps_a_plain_colour():
    plain = Preparation((0.5,), (0.5,), crop_pct=0.9, interpolation="bicubic")
    assert torch.equal(fit_shape(torch.full((1, 3, 8, 8), 7.0), (1, 32, 20), plain), torch.full((1, 1, 32, 20), 7.0))
