"""Which dimensions of a tensor take whatever size the code asks for: those that are repeated, and no others."""

import torch
from torch import Tensor, nn

from compressor.graph.propagate import Propagation
from compressor.graph.trace import trace
from compressor.graph.unions import Unions


class Grey(nn.Module):
    """Repeats a grey image three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x.expand(-1, 3, -1, -1))
        return scores


def test_of_an_image_that_is_expanded_only_the_new_dimension_is_made() -> None:
    walk = Propagation(trace(Grey(), torch.zeros(2, 1, 4, 4)), Unions())
    walk.follow()
    [[track]] = [tracks for op, tracks in zip(walk.trace.ops, walk.op_outputs, strict=True) if op.name == "expand"]
    assert sorted(track) == [1] and len(track[1]) == 3
