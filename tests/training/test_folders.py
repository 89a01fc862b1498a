"""Image folders: layouts, odd files, and that the large ones give what the small ones give."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.errors import DataError, FileError
from compressor.runs.settings import ModelSettings
from compressor.runs.subject import open_subject
from compressor.training import folders
from compressor.training.batching import Augmentation
from compressor.training.classes import fit_to_model
from compressor.training.data import Data, open_data
from compressor.training.evaluate import evaluate
from compressor.training.sets import Draws, ImageSet
from compressor.training.settings import DataSettings, TrainSettings
from compressor.training.streaming import FolderSet
from compressor.vision.preparation import Preparation
from tests.training.test_decoding import png_header

CPU = torch.device("cpu")


def write_images(place: Path, count: int, size: tuple[int, int] = (12, 12), seed: int = 0) -> None:
    place.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng([seed, *place.name.encode()])
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)).save(place / f"{number:03}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 10 training and 3 test images of 12x12."""
    for name in ("cat", "dog"):
        write_images(tmp_path / "train" / name, 10)
        write_images(tmp_path / "test" / name, 3, seed=1)
    return tmp_path


def opened(root: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool, **keywords: object) -> Data:
    if streamed:
        monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 0)
    return open_data(f"folder:{root}", DataSettings(**keywords))


def test_folder_is_split_by_class(root):
    data = open_data(f"folder:{root}")
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 6]
    assert data.input_shape == (3, 12, 12)
    assert data.problems == []
    first = np.asarray(Image.open(root / "test" / "cat" / "000.png")).transpose(2, 0, 1)
    assert np.array_equal(data.test.images[0].numpy(), first)


def test_validation_folder_is_used_beside_a_test_folder(root):
    write_images(root / "val" / "cat", 2)
    write_images(root / "val" / "dog", 4)
    data = open_data(f"folder:{root}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 6, 6]


def test_validation_folder_alone_gives_the_final_number(root):
    (root / "test").rename(root / "val")
    data = open_data(f"folder:{root}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 6]
    assert "final number" in data.notes[0]


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
def test_bad_images_are_left_out_and_named(root, monkeypatch, streamed):
    (root / "train" / "cat" / "text.png").write_text("no image")
    whole = (root / "train" / "dog" / "000.png").read_bytes()
    (root / "train" / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "dog" / "bomb.png").write_bytes(png_header(10_000, 9_000))
    data = opened(root, monkeypatch, streamed)
    assert data.input_shape == (3, 12, 12)
    seen = sum(len(y) for part in (data.train, data.validation) for _, y in data.passing(part, 8))
    assert seen == 20
    reasons = {Path(path).name: reason for path, reason in data.problems}
    assert reasons.keys() == {"text.png", "cut.png", "bomb.png"}
    assert reasons["text.png"] == "not a PNG image"
    assert "over the limit" in reasons["bomb.png"]
    assert len(data.problems) == 3


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
def test_bad_image_stops_where_that_is_asked_for(root, monkeypatch, streamed):
    (root / "test" / "cat" / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png: not a PNG image.*`bad_images` skip"):
        data = opened(root, monkeypatch, streamed, bad_images="stop")
        list(data.passing(data.test))


def test_files_of_other_kinds_are_counted_in_a_note(root):
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / ".DS_Store").write_text("x")
    data = open_data(f"folder:{root}")
    assert any("1 files that are not named as images are left out (1 .txt)" in note for note in data.notes)


def test_empty_class_is_noted_and_kept(root):
    (root / "train" / "emu").mkdir()
    data = open_data(f"folder:{root}")
    assert data.classes == ("cat", "dog", "emu")
    assert any("'emu' is empty" in note for note in data.notes)


def test_class_that_only_the_test_set_has_is_refused(root):
    write_images(root / "test" / "emu", 1)
    with pytest.raises(DataError, match="classes that train/ lacks: emu"):
        open_data(f"folder:{root}")


def test_class_that_only_the_training_set_has_keeps_labels_right(root):
    for file in (root / "test" / "cat").iterdir():
        file.unlink()
    (root / "test" / "cat").rmdir()
    assert open_data(f"folder:{root}").test.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: None, "no train/"),
        (lambda root: (root / "train").mkdir(), "neither test/ nor val/"),
        (lambda root: [(root / name).mkdir() for name in ("train", "test")], "no class folders"),
        (lambda root: [(root / name / "cat").mkdir(parents=True) for name in ("train", "test")], "holds no images"),
    ],
    ids=["nothing", "train only", "no classes", "no images"],
)
def test_wrong_layout_says_what_is_expected(tmp_path, make, says):
    make(tmp_path)
    with pytest.raises(DataError, match=says) as caught:
        open_data(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_folder_of_unreadable_images_is_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "a.jpg").write_text("x")
    with pytest.raises(DataError, match="none of 1 images"):
        open_data(f"folder:{tmp_path}")


def test_links_in_circles_end(root):
    (root / "train" / "cat" / "again").symlink_to(root / "train" / "cat", target_is_directory=True)
    assert len(open_data(f"folder:{root}").train) == 18


def test_sizes_that_differ_are_resized_with_a_note(root):
    write_images(root / "train" / "cat", 1, (30, 20))
    data = open_data(f"folder:{root}")
    assert data.input_shape == (3, 224, 224)
    assert any("differ in size" in note for note in data.notes)
    assert any("smaller than 224x224 are enlarged" in note for note in data.notes)


def test_grey_is_read_for_a_model_that_takes_grey(root):
    data = open_data(f"folder:{root}", input_shape=(1, 12, 12))
    assert data.train.images.shape[1:] == (1, 12, 12)
    assert len(data.preparation.mean) == 1


def test_streamed_set_gives_what_the_set_in_memory_gives(root, monkeypatch):
    memory = open_data(f"folder:{root}")
    streamed = opened(root, monkeypatch, True)
    assert isinstance(memory.train, ImageSet)
    assert isinstance(streamed.train, FolderSet)
    assert torch.equal(memory.train.labels, streamed.train.labels)
    images = torch.cat([x for x, _ in streamed.train.read(torch.arange(18).split(5), CPU)])
    assert torch.equal(images, memory.train.images)
    assert any("read from the files" in note for note in streamed.notes)


def test_streamed_batches_do_not_depend_on_where_the_epoch_was_taken_up(root, monkeypatch):
    data = opened(root, monkeypatch, True)
    settings = TrainSettings(batch_size=4)
    whole = list(data.training(settings, 1, 0, CPU))
    rest = list(data.training(settings, 1, 2, CPU))
    assert len(whole) == 4
    for (x, y), (again_x, again_y) in zip(whole[2:], rest, strict=True):
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)


def test_streamed_reading_leaves_the_global_generator_alone(root, monkeypatch):
    data = opened(root, monkeypatch, True)
    before = torch.get_rng_state()
    list(data.train.read(torch.arange(18).split(5), CPU, Draws(Augmentation(4, True), 0, 0)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def kept(tmp_path_factory, monkeypatch) -> Path:
    """Where decoded images are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder := tmp_path_factory.mktemp("cache")))
    return folder / "compressor" / "decoded"


WINDOWS = Draws(Augmentation(4, True), 0, 0)


def test_images_are_decoded_once_where_they_are_kept_on_disk(root, monkeypatch, kept):
    plain = opened(root, monkeypatch, True)
    data = opened(root, monkeypatch, True, decode_cache=1.0)
    assert any(note.startswith("decode cache: 0.00 GB in") and "100% of the images" in note for note in data.notes)

    def windows() -> torch.Tensor:
        return torch.cat([x for x, _ in data.train.read(torch.arange(18).split(5), CPU, WINDOWS)])

    def whole(given: Data) -> torch.Tensor:
        return torch.cat([x for x, _ in given.test.read(torch.arange(6).split(4), CPU)])

    first, wanted = windows(), whole(plain)
    assert torch.equal(whole(data), wanted)
    for file in root.glob("t*/*/*.png"):  # nothing but what is kept can give them now
        taken = file.stat()
        file.write_bytes(b"\0" * taken.st_size)
        os.utime(file, ns=(taken.st_atime_ns, taken.st_mtime_ns))
    assert torch.equal(windows(), first) and torch.equal(whole(data), wanted)
    again = open_data(f"folder:{root}", DataSettings(decode_cache=1.0), input_shape=(3, 12, 12))  # another run
    assert torch.equal(whole(again), wanted) and len(list(kept.iterdir())) == 2


def test_windows_of_kept_images_are_those_of_the_files(tmp_path, monkeypatch, kept):
    """Smooth images, so that a second resizing changes little."""
    ramp = np.add.outer(np.linspace(0, 160, 60), np.linspace(0, 90, 90))
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.stack([ramp, ramp[::-1], ramp + 5], 2).astype(np.uint8)).save(
                tmp_path / split / name / "0.png"
            )
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 0)
    found = []
    for cache in (None, 1.0):
        data = open_data(f"folder:{tmp_path}", DataSettings(decode_cache=cache), input_shape=(3, 32, 32))
        found.append(torch.cat([x for x, _ in data.train.read([torch.arange(2)] * 3, CPU, WINDOWS)]).float())
    assert float((found[0] - found[1]).abs().mean()) < 1.5 and not torch.equal(found[0][0], found[0][2])


def test_what_is_kept_is_bounded_and_what_was_damaged_is_made_again(root, monkeypatch, kept):
    wanted = torch.cat([x for x, _ in opened(root, monkeypatch, True).test.read([torch.arange(6)], CPU)])
    data = opened(root, monkeypatch, True, decode_cache=4e-6)  # GB
    assert 0 < sum(file.stat().st_size for file in kept.iterdir()) <= 4000
    assert any("% of the images" in note and "100%" not in note for note in data.notes)
    for _ in range(2):
        assert torch.equal(torch.cat([x for x, _ in data.test.read([torch.arange(6)], CPU)]), wanted)
    for file in kept.iterdir():
        held = bytearray(file.read_bytes())
        held[20::50] = bytes(255 - each for each in held[20::50])
        file.write_bytes(held)
    data = opened(root, monkeypatch, True, decode_cache=4e-6)
    assert torch.equal(torch.cat([x for x, _ in data.test.read([torch.arange(6)], CPU)]), wanted)


def test_a_changed_file_is_decoded_anew(root, monkeypatch, kept):
    data = opened(root, monkeypatch, True, decode_cache=1.0)
    list(data.test.read([torch.arange(6)], CPU))
    write_images(root / "test" / "cat", 3, seed=7)
    wanted = torch.cat([x for x, _ in opened(root, monkeypatch, True).test.read([torch.arange(6)], CPU)])
    data = opened(root, monkeypatch, True, decode_cache=1.0)
    assert torch.equal(torch.cat([x for x, _ in data.test.read([torch.arange(6)], CPU)]), wanted)


def test_a_cache_without_room_is_one_line(root, monkeypatch, kept):
    kept.parent.mkdir(parents=True)
    kept.write_text("in the way")
    with pytest.raises(FileError, match="cannot be written .*: leave `decode_cache` out"):
        opened(root, monkeypatch, True, decode_cache=1.0)


def test_labels_follow_the_models_names_in_a_streamed_set(root, monkeypatch):
    data = fit_to_model(opened(root, monkeypatch, True), 3, classes=("dog", "emu", "cat"))
    assert sorted(set(data.train.labels.tolist())) == [0, 2]
    assert [y.tolist() for _, y in data.passing(data.test, 6)] == [[2, 2, 2, 0, 0, 0]]


def test_set_that_vanishes_is_one_line(root, monkeypatch):
    data = opened(root, monkeypatch, True)
    for file in (root / "train").rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"none of 4 images can be read, such as .*: there is no such file"):
        list(data.training(TrainSettings(batch_size=4), 0, 0, CPU))


def test_killed_worker_is_one_line(root, monkeypatch):
    data = opened(root, monkeypatch, True)
    parent = os.getpid()

    def die(*arguments: object) -> None:
        assert os.getpid() != parent
        signal.raise_signal(signal.SIGKILL)

    monkeypatch.setattr("compressor.training.streaming.decode", die)
    with pytest.raises(DataError, match="worker that reads images died"):
        list(data.train.read(torch.arange(18).split(5), CPU))


def test_examples_are_spread_over_the_classes(root):
    data = open_data(f"folder:{root}")
    x = data.examples(data.test, 2)
    assert x.shape == (2, 3, 12, 12)
    first, last = data.passing(data.test, 1), list(data.passing(data.test, 1))[-1]
    assert torch.equal(x[0], next(first)[0][0])
    assert torch.equal(x[1], last[0][0])


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat_while_a_streamed_epoch_passes(tmp_path):
    write_images(tmp_path / "train" / "cat", 8, (96, 96))
    paths = sorted((tmp_path / "train" / "cat").iterdir()) * 750
    streamed = FolderSet.of(paths, [0] * len(paths), (3, 96, 96), Preparation.usual(96, 96), lambda path, reason: None)
    decoded = len(paths) * 3 * 96 * 96
    seen = []
    for images, _ in streamed.read(torch.arange(len(paths)).split(50), CPU):
        assert len(images) == 50
        seen.append(resident_bytes())
    growth = max(seen) - seen[len(seen) // 5]  # workers and their queues are at work by then
    assert growth < decoded / 8, f"{growth / 2**20:.0f} MiB more, of {decoded / 2**20:.0f} that were read"


NET = """
import torch
from torch import nn
INPUT_SHAPE = (3, 8, 8)
class Brightest(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
    def forward(self, x):
        red, green = x.mean((2, 3))[:, :2].unbind(1)
        scores = torch.zeros(len(x), 6)
        scores[:, 4], scores[:, 1] = red, green
        return scores * self.scale
def build():
    return Brightest()
"""


@pytest.fixture
def folder(tmp_path):
    """Red images in `red`, green ones in `green`; the network's outputs for them are 4 and 1."""
    for part, count in (("train", 10), ("test", 4)):
        for name, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0))):
            place = tmp_path / "images" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), colour).save(place / f"{number}.png")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def opened_with(folder, numbers=None):
    loading = DataSettings(classes=None if numbers is None else str(numbers))
    model = ModelSettings(arch=f"{folder / 'net.py'}:build")
    return open_subject(model, f"folder:{folder / 'images'}", loading, "cpu")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"red": 4, "green": 1}),
        json.dumps({"4": "red", "1": "green", "0": "blue"}),
        json.dumps({"4": ["n4", "red"], "1": ["n1", "green"]}),
        "blue\ngreen\n\nblack\nred\nwhite\n",
    ],
    ids=["name to index", "index to name", "index to names", "lines"],
)
def test_accuracy_is_that_of_the_outputs_which_the_file_names(text, folder):
    (folder / "numbers").write_text(text)
    subject = opened_with(folder, folder / "numbers")
    assert evaluate(subject.module, subject.data.test, subject.data).top1 == 1.0
    assert subject.opened.classes[4] == "red" and subject.opened.classes[1] == "green"
    assert "2 of the model's 6 classes, numbered by `classes`" in " ".join(subject.notes)


def test_without_the_file_the_number_of_classes_has_to_agree(folder):
    with pytest.raises(DataError, match="has 2 classes, the model has 6 outputs: .* `classes`"):
        opened_with(folder)


@pytest.mark.parametrize(
    ("held", "message"),
    [({"red": 4}, "no number for 'green'"), ({"red": 4, "green": 6}, "gives 'green' an output beyond the last")],
    ids=["missing", "beyond"],
)
def test_numbers_that_do_not_fit_are_one_line(held, message, folder):
    (folder / "numbers").write_text(json.dumps(held))
    with pytest.raises(DataError, match=message):
        opened_with(folder, folder / "numbers")
