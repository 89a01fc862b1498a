"""Data sets by their specs: what is read, how it is split, what a wrong one says."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from compressor.errors import CompressorError, DataError, UsageError
from compressor.training.data import cross_entropy, open_data, with_input_shape
from compressor.training.sets import ImageSet, split_indices
from compressor.training.settings import DataSettings
from compressor.training.streaming import PHOTOGRAPHS
from compressor.vision.preparation import Preparation
from tests.training.small import small_data


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(raw: Path, packed: bool = False, train: int = 60, test: int = 20) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        for name, array in (
            (f"{part}-images-idx3-ubyte", draw.integers(0, 256, (count, 28, 28))),
            (f"{part}-labels-idx1-ubyte", np.arange(count) % 10),
        ):
            content = idx_bytes(array)
            if packed:
                (raw / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (raw / name).write_bytes(content)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_further_outputs_count_three_tenths_each(smoothing):
    """The weight of GoogLeNet's two (Szegedy et al. 2015, section 5), for the loss and its gradient."""
    given = [torch.randn(4, 10, requires_grad=True) for _ in range(3)]
    y = torch.arange(4)
    loss, right = cross_entropy(lambda _: tuple(given), torch.zeros(4, 1), y, smoothing)
    found = torch.autograd.grad(loss, given, retain_graph=True)
    losses = [functional.cross_entropy(each, y, label_smoothing=s) for each, s in zip(given, (smoothing, 0, 0))]
    assert loss.item() == pytest.approx((losses[0] + 0.3 * losses[1] + 0.3 * losses[2]).item())
    wanted = torch.autograd.grad(sum(losses), given)
    torch.testing.assert_close(found, (wanted[0], 0.3 * wanted[1], 0.3 * wanted[2]))
    assert right == (given[0].argmax(1) == y).sum()


def test_digits_has_three_disjoint_parts_of_all_1797_images():
    data = open_data("digits")
    parts = [data.train, data.validation, data.test]
    assert sum(len(part) for part in parts) == 1797
    # 16 grey levels of 64 pixels: equal images do not occur.
    images = torch.cat([part.images for part in parts]).flatten(1)
    assert len(images.unique(dim=0)) == 1797
    assert data.input_shape == (1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.max() == 255


def test_split_takes_the_share_of_every_class():
    data = open_data("digits", DataSettings(validation=0.1))
    train, validation = (part.labels.bincount() for part in (data.train, data.validation))
    assert ((validation / (train + validation) - 0.1).abs() < 0.01).all()


def test_seed_moves_the_validation_set_but_not_the_test_set():
    first, second, again = open_data("digits"), open_data("digits", DataSettings(seed=1)), open_data("digits")
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.images, second.validation.images)
    assert torch.equal(first.validation.images, again.validation.images)


def test_split_leaves_every_class_of_two_in_both_parts():
    labels = torch.tensor([0, 0, 1, 1, 2])
    larger, smaller = split_indices(labels, 0.1, seed=3)
    assert sorted(labels[larger].tolist()) == [0, 1, 2]
    assert sorted(labels[smaller].tolist()) == [0, 1]


def test_mean_and_deviation_are_those_of_the_training_pixels():
    data = open_data("digits")
    pixels = data.train.images.double() / 255
    assert data.preparation.mean == pytest.approx((float(pixels.mean()),))
    assert data.preparation.std == pytest.approx((float(pixels.std(correction=0)),))


@pytest.mark.parametrize("place", ["MNIST/raw", "raw", ""], ids=["torchvision", "raw", "flat"])
@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "gz"])
def test_mnist_is_found_in_every_layout(tmp_path, place, packed):
    write_mnist(tmp_path / place, packed)
    before = sorted(tmp_path.rglob("*"))
    data = open_data(f"mnist:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 10, 20)
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert data.test.labels.tolist() == [index % 10 for index in range(20)]
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written into the user's folder


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:-5], "damaged"),
        (lambda content: content + b"x", "damaged"),
        (lambda content: b"hello" + content, "not an IDX file"),
        (lambda content: content[:6], "cannot be read"),
        (lambda content: b"", "cannot be read"),
        (lambda content: struct.pack(">HBBIII", 0, 8, 3, 2**31, 2**31, 2**31), "claims"),
    ],
    ids=["short", "long", "not IDX", "header cut", "empty", "absurd size"],
)
def test_damaged_idx_file_is_named(tmp_path, damage, says):
    write_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=says) as caught:
        open_data(f"mnist:{tmp_path}")
    assert str(file) in str(caught.value)


def test_truncated_gz_is_named(tmp_path):
    write_mnist(tmp_path, packed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        open_data(f"mnist:{tmp_path}")


def test_images_and_labels_of_different_numbers_are_refused(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(59) % 10))
    with pytest.raises(DataError, match="do not belong together"):
        open_data(f"mnist:{tmp_path}")


def test_missing_idx_file_says_which(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lacks t10k-labels-idx1-ubyte"):
        open_data(f"fashion-mnist:{tmp_path}")


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's layout with 20 images a file, whose checksums take the place of the published ones."""
    from compressor.vision import door as vision

    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    draw, lists = np.random.default_rng(0), {}
    names = {"train_list": [f"data_batch_{number}" for number in range(1, 6)], "test_list": ["test_batch"]}
    for kind, files in names.items():
        for name in files:
            content = pickle.dumps({"data": draw.integers(0, 256, (20, 3072), np.uint8), "labels": [*range(10)] * 2})
            (folder / name).write_bytes(content)
            lists.setdefault(kind, []).append([name, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(vision.datasets.CIFAR10, kind, lists[kind])
    meta = pickle.dumps({"label_names": [f"class {number}" for number in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    described = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(vision.datasets.CIFAR10, "meta", described)


def test_cifar10_is_read_in_torchvisions_layout(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    data = open_data(f"cifar10:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 20)
    assert data.input_shape == (3, 32, 32)
    assert data.classes[3] == "class 3"
    # The file holds all of red, then green, then blue, row by row.
    raw = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    assert torch.equal(data.test.images.flatten(1), torch.from_numpy(raw))


def test_damaged_and_missing_cifar_differ(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes(b"cos\nsystem\n(S'echo owned'\ntR.")
    with pytest.raises(DataError, match="damaged"):
        open_data(f"cifar10:{tmp_path}")
    file.unlink()
    with pytest.raises(DataError, match=r"lacks .*data_batch_2"):
        open_data(f"cifar10:{tmp_path}")


def test_svhn_is_read_in_torchvisions_layout(tmp_path, monkeypatch):
    from scipy.io import savemat

    from compressor.vision import door as vision

    lists = {}
    for split, count in (("train", 40), ("test", 10)):
        file = tmp_path / f"{split}_32x32.mat"
        images = np.random.default_rng(1).integers(0, 256, (32, 32, 3, count), np.uint8)
        savemat(file, {"X": images, "y": np.arange(count)[:, None] % 10 + 1})
        lists[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(vision.datasets.SVHN, "split_list", lists)
    data = open_data(f"svhn:{tmp_path}")
    assert (len(data.train), len(data.test), data.input_shape) == (30, 10, (3, 32, 32))
    assert data.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # the file's 10 is the digit 0


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("imagenet:/x", "choose digits, mnist:DIR"),
        ("cifar:/x", r"did you mean cifar10"),
        ("", "choose digits"),
        ("folder", "folder:DIR"),
        ("digits:/x", "choose digits"),
    ],
)
def test_unknown_spec_lists_the_known_ones(spec, says):
    with pytest.raises(UsageError, match=says):
        open_data(spec)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "folder"])
def test_missing_folder_is_one_line(tmp_path, name):
    with pytest.raises(DataError, match="no folder") as caught:
        open_data(f"{name}:{tmp_path}/nowhere")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_told_which_is_named_alike(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "imag").touch()
    with pytest.raises(DataError, match=r"there is no folder .*image \(did you mean images\?\)$"):
        open_data(f"folder:{tmp_path / 'image'}")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_empty_folder_says_what_it_lacks(tmp_path, name):
    with pytest.raises(DataError, match=r"lacks .*`download`"):
        open_data(f"{name}:{tmp_path}")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_validation_share_outside_0_and_1_is_wrong_use(share):
    with pytest.raises(UsageError, match="between 0 and 1"):
        open_data("digits", DataSettings(validation=share))


def test_input_shape_is_told_in_a_note():
    data = open_data("digits", input_shape=(3, 32, 32))
    assert data.input_shape == (3, 32, 32)
    assert len(data.preparation.mean) == len(data.preparation.std) == 3
    assert data.notes == ["images of 1x8x8 are given to the model as 3x32x32: resized (bilinear), grey repeated"]


def test_channels_that_cannot_be_made_are_refused():
    with pytest.raises(DataError, match="1-channel"):
        with_input_shape(small_data(), (4, 8, 8))


def test_normalisation_of_the_model_wins():
    data = open_data("digits", preparation=Preparation(*PHOTOGRAPHS))
    assert data.preparation.mean == pytest.approx((sum(PHOTOGRAPHS[0]) / 3,))


def test_every_error_is_one_line(tmp_path):
    for spec in (f"folder:{tmp_path}", "nonsense", f"svhn:{tmp_path}"):
        with pytest.raises(CompressorError) as caught:
            open_data(spec)
        assert "\n" not in str(caught.value)


def test_images_stay_put_where_the_device_has_no_room(monkeypatch):
    image_set = ImageSet(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))

    def refuse(*arguments: object, **keywords: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch.Tensor, "to", refuse)
    assert image_set.on(torch.device("cuda", 0)) is image_set


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.25,)), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))])
def test_given_normalisation_is_laid_over_the_datas_and_the_models(mean, std):
    for known in (None, Preparation((0.9,), (0.9,), crop_pct=0.5)):
        data = open_data("digits", DataSettings(mean=mean, std=std), input_shape=(3, 8, 8), preparation=known)
        assert data.preparation.mean == (mean if len(mean) == 3 else mean * 3)
        assert data.preparation.std == (std if len(std) == 3 else std * 3)
        assert data.preparation.crop_pct == (1.0 if known is None else 0.5)


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ((0.5,), None, "give `mean` and `std` with 3 numbers each"),
        ((0.5, 0.5), (0.5, 0.5), "takes 3 channels"),
        ((0.5, 0.5, 0.5), (0.5, 0.5), "takes 3 channels"),
        ((123.7,), (58.4,), "123.7,123.7,123.7 is not within 0 to 1"),
        ((0.5,), (0.0,), "not above 0"),
        ((float("nan"),), (0.5,), "not within"),
        ((0.5,), (float("inf"),), "not above 0"),
    ],
)
def test_normalisation_that_does_not_fit_is_wrong_use(mean, std, says):
    with pytest.raises(UsageError, match=says):
        open_data("digits", DataSettings(mean=mean, std=std), input_shape=(3, 8, 8))


def test_a_folder_alone_is_told_how_to_write_it(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"unknown data 'images' \(did you mean folder:images\?\)"):
        open_data("images")
