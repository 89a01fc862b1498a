"""The tensors of a model by name are those that torch names."""

import pytest
import torch
from torch import nn

from compressor.graph.tensors import named_modules, named_tensors


class Shared(nn.Module):
    """A layer under two names, a weight and a buffer in two layers, one that is not saved, one that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.again, self.b[0].weight = self.b, self.a.weight
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.a.register_buffer("table", self.table)
        self.a.register_buffer("empty", None)
        self.scripted = torch.jit.script(nn.Conv2d(2, 2, 1))


@pytest.mark.filterwarnings("ignore")  # of scripts
def test_names_and_order_are_those_of_torch() -> None:
    model = Shared()
    expected = [*model.named_parameters(), *model.named_buffers()]
    found = named_tensors(model)
    assert list(found) == [name for name, _ in expected]
    assert all(found[name] is tensor for name, tensor in expected if not name.startswith("scripted"))


@pytest.mark.filterwarnings("ignore")  # of scripts
@pytest.mark.parametrize("every", [False, True])
def test_modules_and_their_order_are_those_of_torch(every) -> None:
    model = Shared()
    assert named_modules(model, every=every) == [*model.named_modules(remove_duplicate=not every)]
