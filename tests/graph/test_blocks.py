"""Modules that less can stand for, found in the graph of any network."""

import pytest
import torch
from torch import Tensor, nn

from compressor.graph.blocks import find_blocks
from tests.networks import Depthwise, Residual
from tests.routing.nets import Block


class Around(nn.Module):
    """What is added to its input, by a chosen function."""

    def __init__(self, inner: nn.Module, join=torch.add) -> None:
        super().__init__()
        self.inner, self.join = inner, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.inner(x))


def row(inputs: int = 4, outputs: int = 4, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, 6, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, outputs, 3, stride, 1), nn.BatchNorm2d(outputs),
    )  # fmt: skip


def found(*layers: nn.Module):
    return find_blocks(nn.Sequential(*layers).eval(), torch.randn(2, 4, 8, 8))


def test_identity_and_projection_stand_alone_and_a_row_of_convolutions_does_not():
    blocks = found(Block(4, 4, 1), Block(4, 6, 2), row(6, 8, 2), Around(row(8, 8)))
    assert blocks.refused == {}
    assert list(blocks.found) == ["0", "1", "2", "3"]
    assert [block.shortcut is not None for block in blocks.found.values()] == [True, True, False, True]
    assert [(block.given, block.made) for block in blocks.found.values()] == [
        ((4, 8, 8), (4, 8, 8)), ((4, 8, 8), (6, 4, 4)), ((6, 4, 4), (8, 2, 2)), ((8, 2, 2), (8, 2, 2))
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["0", "1"])
def test_a_block_without_its_branch_is_what_its_code_says_without_it(name):
    model = nn.Sequential(Block(4, 4, 1), Block(4, 6, 2)).eval()
    block = find_blocks(model, torch.randn(2, 4, 8, 8)).found[name]
    x, old = torch.randn(3, *block.given), model.get_submodule(name)
    assert torch.equal(block.part.eval()(x), old(x))
    assert torch.equal(block.replaced(None).eval()(x), old.down(x).relu())
    assert torch.equal(block.ending(block.shortcut).eval()(x), old.down(x))
    assert torch.allclose(block.ending(block.total).eval()(x).relu(), old(x))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_takes_the_place_of_the_branch(kernel):
    model = nn.Sequential(Block(4, 6, 2), row(6, 8, 2)).eval()
    for block, old in zip(find_blocks(model, torch.randn(2, 4, 8, 8)).found.values(), model):
        convolution = block.convolution(kernel)
        assert not convolution[0].weight.any() and convolution[0].bias is None and len(convolution) == 2
        nn.init.normal_(convolution[0].weight)
        convolution.eval()
        x = torch.randn(3, *block.given)
        wanted = (convolution(x) + old.down(x)).relu() if isinstance(old, Block) else convolution(x)
        assert torch.allclose(block.replaced(convolution).eval()(x), wanted, atol=1e-6)


def test_no_convolution_makes_larger_maps_or_what_is_no_map():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2))).eval()
    (block,) = find_blocks(model, torch.randn(2, 4, 8, 8)).found.values()
    assert block.convolution(1) is None and block.convolution(3) is None
    tokens = nn.Sequential(Around(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)))).eval()
    (block,) = find_blocks(tokens, torch.randn(2, 7, 4)).found.values()
    assert block.convolution(1) is None and block.shortcut is not None


def test_what_replaces_a_module_has_the_models_own_layers_under_their_names():
    model = nn.Sequential(Block(4, 6, 2)).eval()
    block = find_blocks(model, torch.randn(2, 4, 8, 8)).found["0"]
    made = block.module(model, block.convolution(1))
    assert made.get_submodule("down.0") is model[0].down[0]
    assert {name for name, _ in made.named_parameters()} == {
        "down.0.weight", "down.1.weight", "down.1.bias", "fitted.0.weight", "fitted.1.weight", "fitted.1.bias"
    }  # fmt: skip
    assert isinstance(find_blocks(nn.Sequential(Around(row())).eval(), torch.randn(2, 4, 8, 8)).found["0"]
                      .module(nn.Sequential(Around(row())), None), nn.Identity)  # fmt: skip


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Tied()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x.relu())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.two(self.one(y))


class Borrowing(nn.Module):
    """Its block reads a layer that is another module's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(4, 4, 1), Around(nn.Conv2d(4, 4, 1))
        self.block.join = lambda x, y: x + y @ self.stem.weight[:, :, 0, 0].mT.repeat(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.stem(x))


@pytest.mark.parametrize(
    ("model", "name", "why"),
    [
        (Twice(), "block", "called several times"),
        (Pair(), "inner", "takes 2 tensors"),
        (Borrowing(), "block", "parameters of other modules"),
        (nn.Sequential(Around(row(), torch.mul)), "0.inner", None),
        (nn.Sequential(Around(row(4, 1))), "0", "no path"),
        (nn.Sequential(Around(row(), lambda x, y: (x + y) * y)), "0", "no path"),
        (nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.Linear(4, 4))), "0", "more than"),
        (Residual(), "(model)", "outside any module"),
        (Depthwise(), "(model)", None),
    ],
    ids=["twice", "two inputs", "borrowed", "a product", "broadcast", "read twice", "no maps", "top level", "nothing"],
)
def test_what_is_no_block_is_told(model, name, why):
    example = model.example() if hasattr(model, "example") else torch.randn(2, 4, 8, 8)
    blocks = find_blocks(model.eval(), example)
    assert name not in blocks.found or why is None
    assert why is None or why in blocks.refused[name]
