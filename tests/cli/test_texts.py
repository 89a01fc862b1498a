"""Flags whose text is more than a word."""

import pytest
from compressor.cli.texts import arguments, epochs, multiple, ratios, shape

from compressor.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3x224x224", (3, 224, 224)),
        ("1X8X8", (1, 8, 8)),
        ("3,32,32", (3, 32, 32)),
        ("224", (3, 224, 224)),
        ("1x2x3x4", (1, 2, 3, 4)),
    ],
)
def test_shapes(text, expected):
    assert shape(text) == expected


@pytest.mark.parametrize("text", ["", "3x4", "axbxc", "3x0x4", "3x-1x4", "3xx4", "3.0x4x4"])
def test_what_is_no_shape(text):
    with pytest.raises(UsageError, match="3x224x224"):
        shape(text)


def test_arguments_are_literals_or_words():
    found = arguments(["width=0.5", "pool=(2, 2)", "name = relu", "deep=True", "equal=a=b"])
    assert found == (("width", 0.5), ("pool", (2, 2)), ("name", "relu"), ("deep", True), ("equal", "a=b"))


@pytest.mark.parametrize("text", ["width", "=3", "a b=3", ""])
def test_what_is_no_argument(text):
    with pytest.raises(UsageError, match="KEY=VALUE"):
        arguments([text])


def test_ratios_may_have_an_equals_sign_in_the_pattern():
    assert ratios(["layer1.*=0.2", "a=b=0.5"]) == (("layer1.*", 0.2), ("a=b", 0.5))


@pytest.mark.parametrize("text", ["0.5", "a=", "=0.5", "a=b"])
def test_what_is_no_ratio(text):
    with pytest.raises(UsageError, match="LAYER=RATIO"):
        ratios([text])


def test_multiples():
    assert (multiple("8"), multiple("auto")) == (8, "auto")
    with pytest.raises(UsageError, match="auto"):
        multiple("eight")


def test_epochs():
    assert epochs("30, 60") == (30, 60)
