"""Networks of one signature are one graph; what may differ unseen has none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.graph import program as programs
from compressor.graph.program import program
from compressor.graph.signature import signature
from tests.equivalence import outputs, randomise_, relative_error
from tests.networks import NETWORKS


class Told(nn.Module):
    """A network whose code reads an attribute."""

    def __init__(self, attribute: Any, inner: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.inner = inner()
        self.attribute = attribute

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(self.conv(x)) * float(self.attribute)
        return found.mean((2, 3))


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_graphs", type(programs._graphs)())


@pytest.mark.parametrize("name", sorted(NETWORKS)[::4])
def test_a_second_network_has_the_graph_of_the_first_and_its_own_weights(name: str) -> None:
    torch.manual_seed(0)
    first, second = NETWORKS[name]().eval(), randomise_(NETWORKS[name]()).float().eval()
    example = first.example()
    if not isinstance(example, Tensor) or example.ndim != 4 or len(outputs(first, example)) > 1:
        pytest.skip("one tensor of images and one output")
    program(first, example)
    again = program(second, example)
    again.eval()
    assert relative_error(outputs(again, example), outputs(second, example)) < 1e-6
    own = dict(second.named_parameters())
    assert all(parameter is own[key] for key, parameter in again.named_parameters())
    programs._graphs.clear()
    exported = program(second, example).eval()
    assert exported.state_dict().keys() == again.state_dict().keys()
    assert [(n.op, str(n.target)) for n in exported.graph.nodes] == [(n.op, str(n.target)) for n in again.graph.nodes]


def test_an_edit_of_one_graph_leaves_what_is_remembered() -> None:
    first, second = Told(2.0), Told(2.0)
    graph = program(first, torch.zeros(1, 3, 8, 8))
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and "mul" in str(node.target):
            node.args = (node.args[0], 7.0)
    graph.recompile()
    again = program(second, torch.zeros(1, 3, 8, 8)).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(x), second(x))


@pytest.mark.parametrize(
    "other",
    [
        lambda: Told(3.0),
        lambda: Told(2),
        lambda: Told(2.0, nn.SiLU),
        lambda: Told(2.0).double(),
        lambda: Told(2.0).requires_grad_(False),
    ],
)
def test_what_the_code_can_read_tells_networks_apart(other: Callable[[], nn.Module]) -> None:
    assert signature(Told(2.0)) == signature(Told(2.0)) is not None
    assert signature(Told(2.0)) != signature(other())


def test_tied_weights_tell_networks_apart() -> None:
    tied, loose = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    tied[1].weight = tied[0].weight
    assert signature(tied) != signature(loose)
    shared, single = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared.append(shared[0])
    assert signature(shared) != signature(single)


def closed_over(number: float) -> Callable[[], float]:
    return lambda: number


@pytest.mark.parametrize("held", [torch.ones(()), object(), closed_over(2.0), [torch.ones(())], {"a": object()}])
def test_what_may_differ_unseen_has_no_signature(held: Any) -> None:
    assert signature(Told(held)) is None


def test_a_tensor_that_is_no_buffer_is_each_networks_own() -> None:
    first, second = Told(torch.tensor(2.0)), Told(torch.tensor(5.0))
    second.conv.load_state_dict(first.conv.state_dict())
    x = torch.randn(2, 3, 8, 8)
    program(first, x)
    torch.testing.assert_close(program(second, x).eval()(x), second(x))
