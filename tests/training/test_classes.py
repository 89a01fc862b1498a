"""Which output of a model each class of the data has; files of numbers on real folders are in test_folders.py."""

import pytest
import torch
from torch import nn

from compressor.errors import DataError, FileError
from compressor.training.classes import count_outputs, fit_to_model, read_class_numbers
from compressor.training.data import with_input_shape
from tests.training.small import small_data, small_net


def test_number_of_classes_must_be_the_models():
    with pytest.raises(DataError, match="10 classes, the model has 7 outputs"):
        fit_to_model(small_data(), 7)


def test_class_names_are_matched_by_name():
    data = small_data()
    names = ("ten", *reversed(data.classes))
    fitted = fit_to_model(data, 11, classes=names)
    assert fitted.classes == names
    for part in ("train", "validation", "test"):
        before, after = getattr(data, part).labels.tolist(), getattr(fitted, part).labels.tolist()
        assert [data.classes[label] for label in before] == [names[label] for label in after]


def test_class_that_the_model_lacks_is_named():
    with pytest.raises(DataError, match="lacks 1 of the data's classes: 7"):
        fit_to_model(small_data(), 9, classes=[name for name in "0123456789" if name != "7"])


def test_other_class_names_of_the_same_number_are_noted():
    data = small_data()
    fitted = fit_to_model(data, 10, classes=[f"garment {number}" for number in range(10)])
    assert torch.equal(fitted.train.labels, data.train.labels)
    assert "taken in their order" in fitted.notes[-1]


def test_outputs_are_counted():
    assert count_outputs(small_net(classes=7), small_data()) == 7


def test_images_too_small_for_the_model_are_one_line():
    net = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Conv2d(2, 2, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))
    with pytest.raises(DataError, match=r"cannot take 1x8x8 images .*`input`") as caught:
        count_outputs(net, small_data())
    assert "\n" not in str(caught.value)
    assert count_outputs(net, with_input_shape(small_data(), (1, 16, 16))) == 10


@pytest.mark.parametrize("text", ['{"red": "four"}', '{"red": -1, "green": 0}', '{"1": 2.5}', "{", '{"-1": "red"}'])
def test_files_of_another_form_are_one_line(text, tmp_path):
    (tmp_path / "numbers").write_text(text)
    with pytest.raises(FileError, match="does not say which output"):
        read_class_numbers(tmp_path / "numbers")
    with pytest.raises(FileError, match="cannot be read"):
        read_class_numbers(tmp_path)
