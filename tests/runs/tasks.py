"""Tasks of five kinds on tiny networks, as a user would write them: one file, named by `task` and `arch`."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


def images(split, *shape):
    return torch.rand(32, *shape, generator=torch.Generator().manual_seed(len(split)))


def network(outputs, kind=2, channels=3):
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if kind == 1 else (nn.Conv2d, nn.BatchNorm2d)
    return [conv(channels, 8, 3, padding=1), norm(8), nn.ReLU(), conv(8, 8, 3, padding=1), norm(8), nn.ReLU()], outputs


def segmenter():
    return nn.Sequential(*network(3)[0], nn.Conv2d(8, 3, 1))


def tagger():
    return nn.Sequential(*network(5)[0], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def regressor():
    return nn.Sequential(*network(1)[0], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))


class Pointer(nn.Module):
    """Maps of points, and how sure it is of each: a dict."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*network(0)[0])
        self.maps, self.sure = nn.Conv2d(8, 2, 1), nn.Linear(8, 2)

    def forward(self, image, mask):
        found = self.body(image) * mask
        return {"maps": self.maps(found), "sure": self.sure(found.mean((2, 3)))}


def listener():
    body = network(0, kind=1, channels=1)[0]
    return nn.Sequential(*body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2))


def deeper(kind=2, channels=3, outputs=2):
    """Blocks with shortcuts, of which some can be skipped."""
    conv, pool = (nn.Conv1d, nn.AdaptiveAvgPool1d) if kind == 1 else (nn.Conv2d, nn.AdaptiveAvgPool2d)
    blocks = [Block(conv) for _ in range(3)]
    return nn.Sequential(
        conv(channels, 8, 3, padding=1), nn.ReLU(), *blocks, pool(1), nn.Flatten(), nn.Linear(8, outputs)
    )


class Block(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv(8, 8, 3, padding=1)

    def forward(self, x):
        return x + F.relu(self.conv(x))


class Segmentation:
    def data(self, split):
        x = images(split, 3, 8, 8)
        return TensorDataset(x, x.argmax(1))

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def measure(self, model, batches):
        both = either = torch.zeros(3)
        for x, y in batches:
            found = model(x).argmax(1)
            both = both + torch.stack([((found == c) & (y == c)).sum() for c in range(3)])
            either = either + torch.stack([((found == c) | (y == c)).sum() for c in range(3)])
        return {"mIoU": (both / either).mean(), "pixels": float(both.sum() / either.sum())}

    def inputs(self, batch):
        return batch[0]


class Tags(Segmentation):
    """Several labels an image; batches by a loader of the user's."""

    def data(self, split):
        x = images(split, 3, 8, 8)
        return DataLoader(TensorDataset(x, (x.flatten(1)[:, :5] > 0.5).float()), 16, shuffle=split == "train")

    def loss(self, model, batch):
        return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    def measure(self, model, batches):
        right = torch.cat([((model(x) > 0) == y.bool()).float() for x, y in batches])
        return {"tags right": right.mean()}


class Regression(Segmentation):
    lower_is_better = True

    def data(self, split):
        x = images(split, 3, 8, 8)
        return TensorDataset(x, x.mean((1, 2, 3)))

    def loss(self, model, batch):
        return F.mse_loss(model(batch[0]).squeeze(1), batch[1])

    def measure(self, model, batches):
        return {"mae": torch.cat([(model(x).squeeze(1) - y).abs() for x, y in batches]).mean()}


class Keypoints:
    """Dicts in and out, two inputs by keyword."""

    def data(self, split):
        x = images(split, 3, 8, 8)
        return [
            {"image": part, "mask": torch.ones(len(part), 1, 8, 8), "points": part.flatten(2)[:, :2].argmax(2)}
            for part in x.split(16)
        ]

    def loss(self, model, batch):
        maps = model(**self.inputs(batch))["maps"].flatten(2)
        return F.cross_entropy(maps.flatten(0, 1), batch["points"].flatten())

    def measure(self, model, batches):
        found = [(model(**self.inputs(each))["maps"].flatten(2).argmax(2) == each["points"]) for each in batches]
        return {"PCK": torch.cat(found).float().mean()}

    def inputs(self, batch):
        return {"image": batch["image"], "mask": batch["mask"]}


class Paired(nn.Module):
    """Two inputs by place, two outputs in a tuple."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Sequential(*network(0)[0]), nn.Sequential(*network(0, channels=1)[0])
        self.head = nn.Linear(16, 2)

    def forward(self, image, depth):
        found = torch.cat([self.one(image), self.two(depth)], 1)
        return self.head(found.mean((2, 3))), found.mean(1)


class Pairs(Segmentation):
    """Of two inputs, by a figure that says all outputs."""

    lower_is_better = True

    def data(self, split):
        return TensorDataset(images(split, 3, 8, 8), images(split + "2", 1, 8, 8))

    def loss(self, model, batch):
        scores, maps = model(*batch)
        return F.mse_loss(scores.mean(1), batch[1].mean((1, 2, 3))) + maps.mean() ** 2

    def measure(self, model, batches):
        found = [model(image, depth=depth) for image, depth in batches]
        return {"sum": sum(scores.abs().mean() + maps.abs().mean() for scores, maps in found)}

    def inputs(self, batch):
        return batch[0], batch[1]


class Sounds:
    """Signals, one batch after another from a generator."""

    def data(self, split):
        x = images(split, 1, 64) - 0.5
        yield from zip(x.split(16), (x.mean((1, 2)) > 0).long().split(16))

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def measure(self, model, batches):
        right = torch.cat([model(x).argmax(1) == y for x, y in batches])
        return {"right": right.float().mean()}

    def inputs(self, batch):
        return batch[0]


class RightTags(Tags):
    def correct(self, outputs, batch):
        return ((outputs > 0) == batch[1].bool()).all(1)


class NearlyRight(Regression):
    def correct(self, outputs, batch):
        return (outputs.squeeze(1) - batch[1]).abs() < 0.3


class Classes(Segmentation):
    """Two classes, whose figure counts errors."""

    lower_is_better = True

    def data(self, split):
        x = images(split, 3, 8, 8)
        return TensorDataset(x, (x.mean((1, 2, 3)) > 0.5).long())

    def measure(self, model, batches):
        return {"errors": torch.cat([model(x).argmax(1) != y for x, y in batches]).float().mean()}

    def labels(self, batch):
        return batch[1]


class NamedSounds(Sounds):
    def labels(self, batch):
        return batch[1]


class Crashing(Segmentation):
    def __init__(self):
        raise OSError("no data here")


class Narrow(Segmentation):
    def inputs(self, batch):
        return batch[0][:, :2]


class Nobody(Segmentation):
    def inputs(self, batch):
        return batch[0][:0]


class Unbatched(Segmentation):
    def data(self, split):
        return [(image, image.argmax(0)) for image in images(split, 3, 8, 8)]


class Narrowing(Segmentation):
    """Batches that the model takes for measuring, and not for training."""

    def data(self, split):
        x = images(split, 3, 8, 8)
        return TensorDataset(x[:, :2] if split == "train" else x, x.argmax(1))
