"""What is said of sub-models that are not worth their cost."""

from compressor.exits.cutting import ModelCost
from compressor.runs.exits import Row, outdone


def row(exit: int, macs: int, top1: float | None, alone: float | None = None) -> Row:
    cost = ModelCost.__new__(ModelCost)
    for name, value in {"exit": exit, "macs": macs}.items():
        object.__setattr__(cost, name, value)
    return Row(cost, top1, alone)


def test_a_sub_model_that_a_cheaper_one_equals_is_named() -> None:
    rows = [row(0, 100_000_000, 0.93), row(1, 70_000_000, 0.89), row(2, 50_000_000, 0.90), row(3, 30_000_000, 0.80)]
    [line] = outdone(rows)
    assert line == "exit 1, 70.00 MMAC, gets 89.00 %: exit 2 is cheaper, 50.00 MMAC, and gets 90.00 %"


def test_a_network_of_its_own_that_does_as_well_is_named() -> None:
    rows = [row(0, 100_000_000, 0.93, 0.93), row(1, 70_000_000, 0.91, 0.92), row(2, 50_000_000, 0.90, 0.89)]
    [line] = outdone(rows)
    assert line.startswith("exit 1") and line.endswith("of the same cost, trained as long, 92.00 %")


def test_nothing_is_said_before_anything_was_measured() -> None:
    assert not outdone([row(0, 100, None), row(1, 70, None)])
