"""What a checkpoint says of an edited network's sizes: only what differs, and nothing that cannot be."""

import pytest
import torch
from torch import nn

from compressor.errors import FileError
from compressor.surgery.structure import apply_, describe


class Two(nn.Module):
    """Two layers, whose weights may be one."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.b(self.a(x))
        return scores


@pytest.mark.parametrize("tied", [False, True])
def test_a_network_as_it_was_built_differs_in_nothing(tied: bool) -> None:
    found = describe(Two(tied), Two(tied))
    assert not any(found.values())


def test_what_was_tied_since_is_written_down_and_tied_again() -> None:
    found = describe(Two(), Two(tied=True))
    assert found["tied"] == {"b.weight": "a.weight"}
    fresh = Two()
    apply_(fresh, found)
    assert fresh.b.weight is fresh.a.weight


def test_a_tie_to_what_a_new_build_does_not_have_is_left_out() -> None:
    edited = Two()
    edited.register_parameter("left_over", edited.a.weight)
    assert not any(describe(Two(), edited).values())


@pytest.mark.parametrize("shape", [[-1, 4], [4, True], [4.0, 4], [1 << 40, 4], "4x4"])
def test_sizes_that_cannot_be_are_refused(shape: object) -> None:
    with pytest.raises(FileError):
        apply_(Two(), {"shapes": {"a.weight": shape}, "attributes": {}, "tied": {}})
