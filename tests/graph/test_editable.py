"""What cannot be edited is refused with its own reason."""

import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.graph import capture


class Held(nn.Module):
    """A linear layer, and a buffer."""

    def __init__(self, buffer: torch.Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("odd", buffer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.linear(x)
        return scores


BUFFERS = {
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(2, 3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "sparse_coo": lambda: torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.filterwarnings("ignore:.*(quantiz|nested|Nested).*")
def test_the_layout_of_a_tensor_is_named(kind: str) -> None:
    with pytest.raises(ModelError, match=f"odd is {kind}; layers can be edited only where weights are dense"):
        capture(Held(BUFFERS[kind]()), torch.randn(1, 4))


@pytest.mark.filterwarnings("ignore:.*(quantiz|deprecated|TypedStorage).*")
def test_packed_weights_and_no_weights_are_told_apart() -> None:
    packed = nn.Sequential(torch.ao.nn.quantized.Linear(4, 2), nn.ReLU())
    with pytest.raises(ModelError, match="no parameters: its weights are quantized: prune first, then quantize"):
        capture(packed, torch.randn(1, 4))
    with pytest.raises(ModelError, match="no parameters: nothing can be edited"):
        capture(nn.Sequential(nn.ReLU()), torch.randn(1, 4))
