"""Parts of a tensor: equal ones are tied, windows over channels freeze them, what is squeezed away moves the rest."""

import pytest
import torch
from torch import Tensor, nn

from compressor.graph import Channels, capture
from tests.graph.test_rules import Between


def captured(function: object) -> Channels:
    return capture(Between(function).eval(), torch.randn(2, 3, 8, 8))


def together(channels: Channels) -> list[int]:
    held = channels.identities["a.weight", 0].tolist()
    return [held.index(identity) for identity in held]


@pytest.mark.parametrize(("number", "tied"), [(2, [0, 1, 2, 3] * 2), (4, [0, 1] * 4)])
def test_parts_of_equal_size_are_tied(number: int, tied: list[int]) -> None:
    channels = captured(lambda x: torch.cat([part * 2 for part in x.chunk(number, 1)], 1))
    assert channels.frozen.get("a") is None and together(channels) == tied


def test_padding_of_pixels_lets_channels_pass() -> None:
    channels = captured(lambda x: nn.functional.pad(x, (1, 0, 2, 1)))
    assert channels.group("a").frozen is None and channels.group("a").size == 8
    channels = captured(lambda x: nn.functional.pad(x, (0, 0, 0, 0, 0, 0)))
    assert channels.group("a").frozen is None and channels.group("a").size == 8


def test_windows_over_channels_freeze_them() -> None:
    channels = captured(lambda x: x.unfold(1, 8, 1)[:, 0].movedim(-1, 1))
    assert "takes windows over channels" in channels.frozen["a"]
    assert "a" not in captured(lambda x: x.unfold(3, 8, 1)[:, :, :, 0]).frozen


@pytest.mark.parametrize("dim", [2, (2, 3), None])
def test_squeezing_moves_the_channels_that_stay(dim: object) -> None:
    def pooled(x: Tensor) -> Tensor:
        x = x.mean((2, 3), keepdim=True)
        x = x.squeeze() if dim is None else x.squeeze(dim)
        return x.reshape(len(x), -1, 1, 1)

    channels = captured(pooled)
    assert channels.frozen.get("a") is None and channels.group("a").size == 8


def test_positions_that_are_unshuffled_belong_to_their_channel() -> None:
    """Channels of a map become four each, in a row: pruning one takes its four readers."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.PixelUnshuffle(2), nn.Conv2d(8, 3, 1))
    channels = capture(model, torch.randn(1, 3, 4, 4))
    made, read = channels.identities["0.weight", 0].tolist(), channels.identities["2.weight", 1].tolist()
    assert read == [made[0]] * 4 + [made[1]] * 4
