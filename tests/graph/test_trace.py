"""What a model is traced on: a copy that shares nothing with it and computes the same."""

import pytest
import torch
from torch import fx, nn

from compressor.graph.trace import skeleton


class Twice(nn.Module):
    """A layer of its own that stands in a graph, too: the graph is copied by a rule of its own, with all it holds."""

    def __init__(self, graph_first: bool) -> None:
        super().__init__()
        layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        held = {"layer": layer, "graph": nn.Sequential(fx.symbolic_trace(layer), nn.Linear(4, 2))}
        for name in sorted(held, reverse=not graph_first):
            self.add_module(name, held[name])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.graph(self.layer(x))


@pytest.mark.parametrize("graph_first", [True, False])
def test_graphs_inside_a_model_are_copied_whole(graph_first):
    model = Twice(graph_first).eval()
    copied = skeleton(model, real=True)
    x = torch.randn(3, 4)
    torch.testing.assert_close(copied(x), model(x))
    ours, theirs = ({tensor.data_ptr() for tensor in each.state_dict().values()} for each in (model, copied))
    assert not ours & theirs and len(ours) == len(theirs)
    assert all(tensor.is_meta for tensor in skeleton(model).state_dict().values())
