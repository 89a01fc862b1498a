"""What is left of a run's tensors: those that somebody holds, and not what only a view of them keeps in memory."""

import threading

import pytest
import torch
from torch import Tensor, nn

from compressor.graph.skeleton import Replica
from compressor.graph.trace import Way, run


class Keeping(nn.Module):
    """Keeps a tensor that it made, or some of its channels."""

    def __init__(self, channels: int | None) -> None:
        super().__init__()
        self.layer, self.channels = nn.Conv2d(3, 8, 1), channels
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer(x)
        self.seen = made if self.channels is None else made[:, : self.channels]
        return made.mean((2, 3))


def left_by(channels: int | None) -> list[tuple[tuple[int, ...], str]]:
    traced = run(Replica(Keeping(channels)), Way(torch.empty(2, 3, 4, 4, device="meta")))
    return [(ref.shape, where) for ref, where in traced.left]


def test_of_a_tensor_whose_view_is_kept_the_view_is_left() -> None:
    assert left_by(4) == [((2, 4, 4, 4), "kept as the model.seen after the run")]
    assert left_by(None) == [((2, 8, 4, 4), "kept as the model.seen after the run")]


class Elsewhere(nn.Module):
    """Doubles what its layer makes, in a thread or in its own."""

    def __init__(self, threaded: bool) -> None:
        super().__init__()
        self.layer, self.threaded = nn.Conv2d(3, 8, 1), threaded

    def forward(self, x: Tensor) -> Tensor:
        made, found = self.layer(x), list[Tensor]()
        thread = threading.Thread(target=lambda: found.append(made * 2))
        if not self.threaded:
            return made * 2
        thread.start()
        thread.join()
        return found[0]


@pytest.mark.parametrize("threaded", [False, True])
def test_what_comes_from_where_operators_are_not_seen_is_noticed(threaded: bool) -> None:
    traced = run(Replica(Elsewhere(threaded)), Way(torch.empty(2, 3, 4, 4, device="meta")))
    assert [op.name for op in traced.ops] == ["convolution", "mul"][: 1 if threaded else 2]
    assert traced.strange is threaded
