"""Which output stands for which class folder."""

import json

import pytest
from PIL import Image

from compressor.errors import DataError, FileError
from compressor.runs.settings import ModelSettings
from compressor.runs.subject import open_subject
from compressor.training.class_numbers import read_class_numbers
from compressor.training.evaluate import evaluate
from compressor.training.settings import DataSettings

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


def opened(folder, numbers=None):
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
    subject = opened(folder, folder / "numbers")
    assert evaluate(subject.module, subject.data.test, subject.data).top1 == 1.0
    assert subject.opened.classes[4] == "red" and subject.opened.classes[1] == "green"
    assert "2 of the model's 6 classes, numbered by --classes" in " ".join(subject.notes)


def test_without_the_file_the_number_of_classes_has_to_agree(folder):
    with pytest.raises(DataError, match="has 2 classes, the model has 6 outputs: .* --classes"):
        opened(folder)


@pytest.mark.parametrize(
    ("held", "message"),
    [({"red": 4}, "no number for 'green'"), ({"red": 4, "green": 6}, "gives 'green' an output beyond the last")],
    ids=["missing", "beyond"],
)
def test_numbers_that_do_not_fit_are_one_line(held, message, folder):
    (folder / "numbers").write_text(json.dumps(held))
    with pytest.raises(DataError, match=message):
        opened(folder, folder / "numbers")


@pytest.mark.parametrize("text", ['{"red": "four"}', '{"red": -1, "green": 0}', '{"1": 2.5}', "{", '{"-1": "red"}'])
def test_files_of_another_form_are_one_line(text, tmp_path):
    (tmp_path / "numbers").write_text(text)
    with pytest.raises(FileError, match="does not say which output"):
        read_class_numbers(tmp_path / "numbers")
    with pytest.raises(FileError, match="cannot be read"):
        read_class_numbers(tmp_path)
