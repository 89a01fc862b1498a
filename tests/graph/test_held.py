"""What a network keeps out of torch's sight is not edited, and named."""

import copy
import functools
import types
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from compressor.graph import capture
from compressor.graph.held import in_one_memory
from tests.networks import conv


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 8), nn.ReLU(), conv(8, 4))


def averaged(model: nn.Module, keep: Any) -> None:
    copied = copy.deepcopy(model)
    object.__setattr__(model, "kept", keep(copied))


def hooked(model: nn.Module) -> None:
    copied = copy.deepcopy(model)
    model[1].register_forward_hook(lambda module, given, result: result if copied else None)


HIDDEN = {
    "module": lambda model: averaged(model, lambda copied: copied),
    "list": lambda model: averaged(model, lambda copied: [copied]),
    "object": lambda model: averaged(model, lambda copied: types.SimpleNamespace(ema={"model": copied})),
    "closure": lambda model: averaged(model, lambda copied: lambda: copied),
    "partial": lambda model: averaged(model, lambda copied: functools.partial(print, copied)),
    "bound method": lambda model: averaged(model, lambda copied: copied.forward),
    "shadows": lambda model: averaged(model, lambda copied: {n: p.detach() for n, p in copied.named_parameters()}),
}
OPEN = {
    "the layer itself": lambda model: setattr(model, "kept", [model[0], {"weight": model[0].weight}]),
    "a reference": lambda model: setattr(model, "kept", weakref.ref(model)),
    "other shapes": lambda model: setattr(model, "kept", [nn.Conv2d(5, 5, 5), torch.zeros(8)]),
    "an optimizer": lambda model: setattr(model, "kept", torch.optim.Adam(model.parameters())),
    "a mask": lambda model: nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity()),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_copies_are_named(name: str) -> None:
    HIDDEN[name](model := Network())
    notes = capture(model, torch.zeros(1, 3, 8, 8)).notes
    assert notes == ("not edited, though of the shapes of edited layers: kept; make them anew after an edit",), (
        "and nothing else is said"
    )


def test_a_hidden_copy_of_a_hook_is_named() -> None:
    hooked(model := Network())
    assert "1._forward_hooks" in str(capture(model, torch.zeros(1, 3, 8, 8)).notes)


@pytest.mark.parametrize("name", OPEN)
def test_what_is_no_copy_is_not_named(name: str) -> None:
    OPEN[name](model := Network())
    assert not capture(model, torch.zeros(1, 3, 8, 8)).notes


class Late(Network):
    """Keeps nothing before it runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [x]
        return super().forward(x)


def test_what_a_run_leaves_behind_is_not_named() -> None:
    assert not capture(Late(), torch.zeros(1, 3, 8, 8)).notes


def test_parameters_that_are_one_memory_are_named() -> None:
    model = nn.Sequential(conv(3, 3), conv(3, 3), conv(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.data)
    model[2].weight = model[0].weight  # one parameter, which stays one
    assert list(in_one_memory(dict(model.named_parameters()))) == [
        "0.weight, 1.weight are one memory; an edit gives each its own: use one parameter to tie them"
    ]
    assert "are one memory" in str(capture(model, torch.zeros(1, 3, 8, 8)).notes)


def test_parts_of_one_memory_and_no_memory_are_not_named() -> None:
    model = nn.ParameterDict()
    for name, part in enumerate(torch.zeros(2, 4).unbind()):
        model[str(name)] = nn.Parameter(part)
    with torch.device("meta"):
        model["blank"], model["other"] = nn.Parameter(torch.empty(4)), nn.Parameter(torch.empty(4))
    assert not list(in_one_memory(dict(model.named_parameters())))


def test_the_network_that_a_graph_was_cut_out_of_is_no_copy_to_edit() -> None:
    whole = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)))
    model = nn.Sequential(
        fx.GraphModule(nn.ModuleDict({"0": nn.Conv2d(3, 8, 3), "1": nn.Conv2d(8, 4, 3)}), whole.graph)
    )
    model[0]._graph.owning_module = whole
    assert capture(model, torch.zeros(1, 3, 8, 8)).notes == ()
