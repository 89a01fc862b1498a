"""ResNet for 32x32 images: three stages of basic blocks, 6n + 2 layers deep (ResNet-20, 32, 44, 56, 110).

Reference: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", section 4.2. ResNet-20 has 41 M
MACs at 3x32x32 and 0.27 M parameters. Differs: where the shape changes the shortcut is a 1x1 convolution (the paper's
option B) and not a padded identity.
"""

import torch
from torch import Tensor, nn

INPUT_SHAPE = (3, 32, 32)


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, in_channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, filters, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != filters:
            conv = nn.Conv2d(in_channels, filters, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(filters))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y))
        z: Tensor = y + self.shortcut(x)
        return z.relu()


class ResNet(nn.Module):
    """A convolution, three stages that halve the maps and double the filters, and a linear layer on the mean."""

    def __init__(self, num_classes: int, in_channels: int, depth: int, width: float) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth {depth} is not 6n + 2 (8, 14, 20, 32, 44, 56, 110)")
        filters = [max(1, round(each * width)) for each in (16, 32, 64)]
        self.conv = nn.Conv2d(in_channels, filters[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(filters[0])
        before = [filters[0], *filters[:2]]
        self.stages = nn.Sequential(*(_stage(before[i], filters[i], 1 if i == 0 else 2, depth) for i in range(3)))
        self.classifier = nn.Linear(filters[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.norm(self.conv(x)).relu())
        logits: Tensor = self.classifier(torch.mean(x, dim=(2, 3)))
        return logits


def _stage(in_channels: int, filters: int, stride: int, depth: int) -> nn.Sequential:
    blocks = [Block(in_channels, filters, stride)]
    blocks += [Block(filters, filters, 1) for _ in range((depth - 2) // 6 - 1)]
    return nn.Sequential(*blocks)


def build(num_classes: int = 10, in_channels: int = 3, depth: int = 20, width: float = 1.0) -> nn.Module:
    """The network, (batch, in_channels, height, width) -> logits (batch, num_classes)."""
    return ResNet(num_classes, in_channels, depth, width)
