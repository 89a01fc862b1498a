"""ResNet-20 and ResNet-56 for CIFAR-10 with the parameter names of akamaster/pytorch_resnet_cifar10, whose published
weights are measured here.

Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", section 4.2, shortcuts of option A:
where the shape changes every second pixel is taken and channels of zeros are added on both sides.
"""

from torch import Tensor, nn
from torch.nn import functional

INPUT_SHAPE = (3, 32, 32)


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, in_channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, filters, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.stride, self.zeros = stride, (filters - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))
        return functional.relu(y + x)


class ResNet(nn.Module):
    """A convolution, three stages of blocks, and a linear layer on the mean."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            _stage(before, filters, stride, blocks)
            for before, filters, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(before: int, filters: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(before, filters, stride), *(Block(filters, filters, 1) for _ in range(blocks - 1)))


def resnet20() -> nn.Module:
    """40.6 M multiply-adds."""
    return ResNet(3)


def resnet56() -> nn.Module:
    """125.5 M multiply-adds."""
    return ResNet(9)
