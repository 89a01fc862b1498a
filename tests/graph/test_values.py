"""Data beside shapes: worked out where all that is read is known, lost where it is overwritten, read by Python."""

import pytest
import torch
from torch import Tensor

from compressor.graph.values import MOST, Values

ADD, ADD_, EXPAND = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, torch.ops.aten.expand.default


def unknown(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@pytest.fixture
def values() -> Values:
    return Values()


@pytest.fixture
def known(values: Values) -> Tensor:
    """On the meta device, with its data."""
    found: Tensor = values.on_meta(torch.tensor([1.0, 2.0]))
    assert found.is_meta
    return found


def test_what_an_operator_gives_is_known_where_its_operands_are(values: Values, known: Tensor) -> None:
    both, one = known + known, known + unknown(2)
    values.follow(ADD, (known, known), {}, both)
    values.follow(ADD, (known, unknown(2)), {}, one)
    assert values.of(both).tolist() == [2, 4] and values.of(one) is None


def test_what_is_overwritten_by_something_unknown_is_lost_with_its_views(values: Values, known: Tensor) -> None:
    view = known[:1]
    values.follow(torch.ops.aten.slice.Tensor, (known, 0, 0, 1), {}, view)
    assert values.of(view).tolist() == [1]
    values.follow(ADD_, (known, unknown(2)), {}, known.add_(unknown(2)))
    assert values.of(known) is None and values.of(view) is None


def test_a_large_result_is_not_worked_out_and_its_operand_stays_known(values: Values, known: Tensor) -> None:
    large = known.expand(MOST, 2)
    values.follow(EXPAND, (known, [MOST, 2]), {}, large)
    assert values.of(large) is None and values.of(known).tolist() == [1, 2]


def test_data_that_python_holds_are_known_after_they_are_written_into(values: Values) -> None:
    held = torch.tensor([1.0, 2.0])
    values.follow(ADD_, (held, 1), {}, held.add_(1))
    assert values.of(held).tolist() == [2, 3]


def test_a_large_result_that_is_overwritten_is_lost(values: Values, known: Tensor) -> None:
    large = known.expand(MOST, 2)
    values.follow(ADD_, (known, unknown(2)), {}, large)
    assert values.of(known) is None


class Heard:
    """Who listens, and writes down."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[int, ...]]] = []

    def read(self, tensor: Tensor) -> None:
        self.told.append(("read", tuple(tensor.shape)))

    def made(self, tensor: Tensor) -> None:
        self.told.append(("made", tuple(tensor.shape)))


def test_python_reads_what_is_known_and_the_listener_hears_of_it(values: Values, known: Tensor) -> None:
    heard = Heard()
    before = Tensor.tolist, Tensor.new_tensor, torch.tensor
    with values.watched(heard):
        assert known.tolist() == [1, 2]
        made = torch.tensor([3, 4, 5], device="meta")
        named = torch.as_tensor(data=[6], device="meta")
        new = known.new_tensor([7.0, 8.0])
    assert heard.told == [("read", (2,)), ("made", (3,)), ("made", (1,)), ("made", (2,))]
    assert [values.of(each).tolist() for each in (made, new)] == [[3, 4, 5], [7, 8]]
    assert values.of(named).tolist() == [6]
    assert (Tensor.tolist, Tensor.new_tensor, torch.tensor) == before


def test_nobody_has_to_listen(values: Values, known: Tensor) -> None:
    with values.watched():
        assert known.tolist() == [1, 2] and values.of(torch.tensor([9], device="meta")).tolist() == [9]
    with values.watched(), pytest.raises((NotImplementedError, RuntimeError)):
        unknown(2).tolist()


def test_only_what_the_model_starts_with_outlives_a_run(values: Values, known: Tensor) -> None:
    blank = unknown(2)
    kept = Values([(blank, torch.tensor([5.0, 6.0]))])
    total = blank + blank
    kept.follow(ADD, (blank, blank), {}, total)
    assert kept.of(total).tolist() == [10, 12]
    kept.forget()
    assert kept.of(total) is None and kept.of(blank).tolist() == [5, 6]
