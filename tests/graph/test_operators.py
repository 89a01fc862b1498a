"""The table of operators: it is whole, the only place that names operators, and knows all that the networks run."""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.graph import operators
from compressor.graph.batched import by_trial
from compressor.graph.operators import OPERATORS, lookup
from compressor.graph.trace import trace
from tests.networks import NETWORKS

PACKAGE = Path(operators.__file__).parents[1]
ATEN = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
NAMES = {name.split(".")[0] for name in ATEN} - {""}
# Words that the code needs for other things, too.
EVERYDAY = {
    "add", "all", "and", "any", "batch_norm", "cat", "copy", "data", "fill", "index", "is", "item", "linear", "max",
    "mean", "min", "new", "not", "or", "relu", "set", "size", "slice", "sort", "split", "stack", "sum", "t", "to",
    "values", "view",
}  # fmt: skip


def test_every_operator_stands_once() -> None:
    words = [name for names, _ in operators._ROWS for name in names.split()]
    assert len(words) == len(set(words)) == len(OPERATORS)


def test_every_row_is_an_operator_of_torch() -> None:
    assert not {name for name in OPERATORS if not {name, f"{name}_"} & NAMES}


def test_what_has_no_cost_is_taken_apart_by_torch_or_known_to_be_uncounted() -> None:
    def taken_apart(name: str) -> bool:
        overloads = [f"aten::{each}" for each in ATEN if each.split(".")[0] == name]
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        return all(has(each, "CompositeImplicitAutograd") for each in overloads)

    assert {name for name, row in OPERATORS.items() if row.macs is None and not taken_apart(name)} == {
        "_fft_r2c", "_fft_c2r", "_fft_c2c"
    }  # fmt: skip


def test_what_multiplies_costs_and_all_else_is_free() -> None:
    assert not {name for name, row in OPERATORS.items() if row.is_layer and row.macs is operators.free}
    assert not {name for name, row in OPERATORS.items() if row.macs not in (operators.free, None) and not row.is_layer}
    assert not {name for name, row in OPERATORS.items() if row.weights and row.rule is by_trial}


def test_activations_are_the_modules_that_they_name() -> None:
    x = torch.linspace(-4.0, 4.0, 9)
    for name, row in OPERATORS.items():
        for module in row.modules if row.kind == "activation" else ():
            expected = getattr(torch, name, None) or getattr(nn.functional, name)
            layer = module()
            given = (layer.weight,) if module is nn.PReLU else ()
            given = (0.0, 6.0) if module is nn.ReLU6 and row.numbers else given
            assert torch.equal(layer(x), expected(x, *given)), name


def test_beyond_the_clip_nothing_tells_operands_apart() -> None:
    for name, row in OPERATORS.items():
        if row.clip is not None:
            [op] = [op for op in trace(Called(row.modules[0]()), torch.zeros(1, 2)).ops if op.operator is row]
            low, high = op.operator.clip(op)
            below, inside = torch.tensor([low - 2, low - 1]), torch.tensor([low, low + 0.5])
            result = row.modules[0]()
            assert result(below)[0] == result(below)[1] and result(inside)[0] != result(inside)[1], name
            assert high == float("inf") or result(torch.tensor(high)) == result(torch.tensor(high + 1.0)), name


class Called(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("training", [False, True])
def test_every_operator_that_the_networks_run_has_a_row(training: bool) -> None:
    met = {
        op.name
        for kind in NETWORKS.values()
        for op in trace(kind(), kind().example(), training=training).ops
        if op.func.namespace == "aten"
    }
    assert len(met) > 40 and not met - OPERATORS.keys()


def test_an_operator_without_a_row_goes_by_torchs_tags() -> None:
    aten = torch.ops.aten
    assert not {"sinh", "poisson", "linalg_inv_ex"} & OPERATORS.keys()
    assert lookup(aten.sinh.default).is_elementwise and lookup(aten.sinh.default).macs is operators.free
    assert lookup(aten.poisson.default) is OPERATORS["normal"]
    assert lookup(aten.real.default).macs is operators.free  # a view; the next two are tagged as copies of one
    assert lookup(aten.permute_copy.default).macs is lookup(aten.squeeze_copy.default).macs is operators.free
    assert lookup(aten.linalg_inv_ex.default).macs is None and lookup(len).macs is None


@functools.cache
def nodes(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def tables(source: str) -> Iterator[int]:
    """The lines of literals that hold three names of operators or more, most of what they hold."""
    for node in nodes(source):
        words: list[str] = []
        if isinstance(node, ast.Dict):
            words = [key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
        elif isinstance(node, ast.Set | ast.Tuple | ast.List):
            words = [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            words += [each.attr for each in node.elts if isinstance(each, ast.Attribute) and "aten" in ast.dump(each)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." not in node.value:
            words = node.value.split()
        named = set(words) & NAMES
        if len(named) >= 3 and len(named) >= 0.6 * len(set(words)) and len(named - EVERYDAY) >= 2:
            yield node.lineno


def comparisons(source: str) -> Iterator[int]:
    """The lines that compare an operator's name with a given one."""
    for node in nodes(source):
        if isinstance(node, ast.Compare):
            held = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
            if held & NAMES and re.search(r"op\.name|before\.name|after\.name|name_of", ast.unparse(node)):
                yield node.lineno


@pytest.mark.parametrize("find", [tables, comparisons])
def test_no_other_file_names_operators(find: Callable[[str], Iterator[int]]) -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path != Path(operators.__file__)]
    found = [f"{path.relative_to(PACKAGE)}:{line}" for path in files for line in find(path.read_text())]
    assert not found


def test_a_planted_table_and_a_planted_comparison_are_found() -> None:
    assert list(tables('POOLS = {"max_pool2d", "avg_pool2d", "clone"}')) == [1]
    assert list(tables('WORDS = "relu hardtanh gelu".split()')) == [1]
    assert list(tables('SHAPES = {"permute": 1, "transpose": 2, "unsqueeze": 3}')) == [1]
    assert list(comparisons('x = op.name == "permute"')) == [1]
    assert not list(tables('FIELDS = ("name", "size", "values")'))
