"""The comparison that decides whether an exported file is kept."""

import numpy as np
import pytest

from compressor.exporting.samples import largest_difference


def test_equal_outputs_have_no_difference() -> None:
    output = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert largest_difference([output], [output.copy()]) == (0.0, 0.0)


def test_relative_is_the_absolute_over_the_largest_expected_value() -> None:
    absolute, relative = largest_difference([np.array([1.0, -8.0])], [np.array([1.5, -8.0])])
    assert (absolute, relative) == (0.5, 0.5 / 8)


def test_the_worst_output_counts() -> None:
    good, bad = np.ones(3), np.full(3, 2.0)
    assert largest_difference([good, good], [good, bad]) == (1.0, 1.0)


def test_integers_and_booleans_do_not_wrap_around() -> None:
    assert largest_difference([np.array([0], np.uint8)], [np.array([255], np.uint8)])[0] == 255.0
    assert largest_difference([np.array([True])], [np.array([False])]) == (1.0, 1.0)


def test_all_zero_output_falls_back_on_the_absolute_difference() -> None:
    assert largest_difference([np.zeros(2)], [np.array([0.0, 0.25])]) == (0.25, 0.25)


def test_empty_outputs_are_equal() -> None:
    assert largest_difference([np.zeros((0, 4))], [np.zeros((0, 4))]) == (0.0, 0.0)


@pytest.mark.parametrize(
    "got",
    [[np.zeros((3, 2))], [], [np.zeros((2, 3)), np.zeros(1)], [np.full((2, 3), np.nan)], [np.full((2, 3), np.inf)]],
    ids=["transposed", "missing", "one too many", "nan", "inf"],
)
def test_outputs_that_cannot_be_compared_are_infinitely_far(got: list[np.ndarray]) -> None:
    assert largest_difference([np.ones((2, 3))], got) == (float("inf"), float("inf"))
