"""An architecture file as a user would have one, and a way to change its network that surgery would choose."""

from pathlib import Path

SOURCE = """
from torch import nn

INPUT_SHAPE = (1, 8, 8)


class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1, width=8):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def build(num_classes=10, in_channels=1, width=8):
    return Net(num_classes, in_channels, width)


def number():
    return 3


def fails():
    raise RuntimeError("no such luck")
"""


def write(folder: Path, source: str = SOURCE, name: str = "net.py") -> str:
    """The file in `folder`, as --arch names it."""
    (folder / name).write_text(source)
    return f"{folder / name}:build"


def narrow_(net, keep: int) -> None:
    """Keep the first `keep` filters, as a prune would."""
    import torch

    with torch.no_grad():
        for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias"):
            tensor = net.get_parameter(name)
            tensor.data = tensor.data[:keep]
        net.norm.running_mean.data = net.norm.running_mean.data[:keep]
        net.norm.running_var.data = net.norm.running_var.data[:keep]
        net.head.weight.data = net.head.weight.data[:, :keep]
    net.conv.out_channels = net.norm.num_features = net.head.in_features = keep
