"""The answer of a run: smaller, faster, what it cost; each said to be good or not."""

from compressor.report.comparison import answers, compare
from compressor.report.measurements import Measurements


def side(macs: int, milliseconds: float, top1: float | None) -> Measurements:
    timing = {"median": milliseconds, "p95": milliseconds, "batch": 1}
    return Measurements(macs, None, macs // 10, None, {"onnxruntime": timing}, top1)


def test_smaller_faster_and_as_good_are_good():
    said = answers(side(1000, 2.0, 0.9), side(500, 1.0, 0.895))
    assert [good for _, good in said] == [True, True, True]
    assert said[0][0].startswith("0.50x of the MACs") and said[1][0].startswith("2.00 times as fast")
    assert said[2][0] == "test top-1 90.00 % to 89.50 % (-0.50 pp)"


def test_not_faster_and_worse_are_not():
    said = answers(side(1000, 1.0, 0.9), side(900, 1.2, 0.8), round_to=1)
    assert [good for _, good in said] == [True, False, False]
    assert "not faster" in said[1][0] and "--round-to auto" in said[1][0]


def test_training_alone_answers_with_accuracy():
    assert [line for line, _ in answers(side(9, 1.0, 0.1), side(9, 1.0, 0.9))] == [
        "test top-1 10.00 % to 90.00 % (+80.00 pp)"
    ]


def test_rows_know_what_is_worse():
    better = {line.label: line.better for line in compare(side(1000, 1.0, 0.9), side(500, 1.3, 0.88)).lines}
    assert (better["MACs"], better["latency ONNX Runtime"], better["test top-1"]) == (True, False, False)
    assert better["file size"] is None
