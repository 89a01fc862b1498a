"""What stands between two convolutions lets channels pass where pruning equals masking, and says why where not."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.graph import Channels, capture
from compressor.surgery import Plan, Prune, operate_
from tests.equivalence import half_plan, masked_outputs, outputs, randomise_, relative_error, same_map

Function = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A function, or a module, between two convolutions; the values that reach it lie between 0.1 and 0.9."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.function, self.a, self.b = function, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.function(torch.sigmoid(self.a(x)) * 0.8 + 0.1)).mean((2, 3)))


def unpool(rank: int) -> Function:
    pool, back = getattr(F, f"max_pool{rank}d"), getattr(F, f"max_unpool{rank}d")
    return lambda x: back(*pool(x, 2, return_indices=True), 2)


def lines(function: Function) -> Function:
    return lambda x: function(x.flatten(2)).unsqueeze(2)


def boxes(function: Function) -> Function:
    return lambda x: function(x.unflatten(2, (4, 2))).flatten(2, 3)


def grid(x: Tensor, rank: int = 2) -> Tensor:
    points = torch.eye(rank, rank + 1, dtype=x.dtype).expand(2, rank, rank + 1)
    return F.affine_grid(points, [2, 1, *(4 for _ in range(rank))], align_corners=False)


def written(x: Tensor, made: Tensor, rows: slice | Tensor = slice(0, 8, 2)) -> Tensor:
    made[:, :, rows] = x[:, :, rows]
    return made


RESIZED = {
    **{
        f"{mode} 1d": lines(lambda x, mode=mode: F.interpolate(x, 32, mode=mode))
        for mode in ("nearest-exact", "linear")
    },
    **{
        f"{mode} 3d": boxes(lambda x, mode=mode: F.interpolate(x, 4, mode=mode))
        for mode in ("nearest-exact", "trilinear")
    },
    "nearest-exact": lambda x: F.interpolate(x, 12, mode="nearest-exact"),
    "bicubic": lambda x: F.interpolate(x, 5, mode="bicubic"),
    "bicubic antialias": lambda x: F.interpolate(x, 5, mode="bicubic", antialias=True),
    "bilinear antialias": lambda x: F.interpolate(x, 5, mode="bilinear", antialias=True),
    "max_unpool1d": lines(unpool(1)),
    "max_unpool2d": unpool(2),
    "max_unpool3d": boxes(unpool(3)),
    "lp_pool": lambda x: F.lp_pool2d(x, 2, 2),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 3),
    "adaptive_avg_pool3d": boxes(lambda x: F.adaptive_avg_pool3d(x, 2)),
    "circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "circular 3d": boxes(lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="circular")),
    "reflect 1d": lines(lambda x: F.pad(x, (1, 1), mode="reflect")),
    "replicate 3d": boxes(lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="replicate")),
    "grid_sample": lambda x: F.grid_sample(x, grid(x), align_corners=False),
    "grid_sample 3d": lambda x: F.grid_sample(x.unsqueeze(2), grid(x, 3), align_corners=False).flatten(2, 3),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1),
    "unfold": lambda x: F.unfold(x, 3, padding=1).unflatten(1, (-1, 9)).amax(2).unflatten(2, (8, 8)),
    "windows": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)),
    "pixel_unshuffle": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
}
ALONG = {
    **{f.__name__: lambda x, f=f: f(x, 3) for f in (torch.cumsum, torch.cumprod, torch.logcumsumexp)},
    **{f.__name__: lambda x, f=f: f(x, dim=3)[0] for f in (torch.cummax, torch.cummin, torch.sort)},
    **{
        f.__name__: lambda x, f=f: f(x, dim=3, keepdim=True)[0]
        for f in (torch.median, torch.nanmedian, torch.mode, torch.min)
    },
    "median without its dimension": lambda x: x.median(2).values.unsqueeze(2),
    "kthvalue": lambda x: x.kthvalue(2, 3, keepdim=True).values,
    "topk": lambda x: x.topk(3, 2).values,
    "aminmax": lambda x: torch.aminmax(x, dim=3, keepdim=True).max,
    "count_nonzero": lambda x: x.count_nonzero((2, 3))[..., None, None].to(x.dtype) + x,
    "std_mean": lambda x: sum(torch.std_mean(x, (2, 3), keepdim=True)) + x,
    "quantile": lambda x: x.quantile(0.3, 3, keepdim=True),
    "renorm": lambda x: x.renorm(2, 1, 1.0),
    "vector_norm": lambda x: x + torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "roll and flip": lambda x: x.roll((1, 2), (2, 3)).flip(3),
    "fft": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=(8, 8)),
    "stft": lambda x: (
        torch.view_as_real(
            torch.stft(x.flatten(0, 1).flatten(1), 16, window=torch.ones(16, dtype=x.dtype), return_complex=True)
        )
        .sum(-1)
        .unflatten(0, (2, -1))
    ),
    "layer_norm of pixels": lambda x: F.layer_norm(x, (8, 8)),
    "instance_norm": F.instance_norm,
}
LOWER = torch.ones(2, 8, 8).tril().bool()  # pixels


def placed(into: Tensor, values: Tensor, pixels: Tensor) -> Tensor:
    """A copy with values of its own shape, or one value, where the mask says."""
    found = into.permute(0, 2, 3, 1).clone()
    found[pixels] = values.permute(0, 2, 3, 1)[pixels] if values.ndim else values
    return found.permute(0, 3, 1, 2)


PICKED = {
    "gather": lambda x: x.gather(3, x.argsort(3)),
    "take_along_dim": lambda x: x.take_along_dim(x.argsort(2), 2),
    "index_select": lambda x: x.index_select(3, torch.tensor([0, 2, 4])),
    "one index": lambda x: x[..., torch.tensor([0, 2])],
    "two indices": lambda x: x[:, :, torch.tensor([0, 1])[:, None], torch.tensor([0, 2])],
    "indices apart": lambda x: x[torch.tensor([1, 0]), :, torch.tensor([0, 3])].unsqueeze(3),
    "scatter": lambda x: x.scatter(3, x.argsort(3)[..., :2], 0.0),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(3, x.argsort(3), x),
    "scatter_reduce": lambda x: x.scatter_reduce(3, x.argsort(3), x, "amax"),
    "index_add": lambda x: x.index_add(3, torch.tensor([0, 1]), x[..., :2]),
    "index_copy": lambda x: x.index_copy(2, torch.tensor([0]), x[:, :, 1:2]),
    "index_put": lambda x: written(x, x * 2, torch.tensor([0, 3])),
    "a mask": lambda x: x.permute(0, 2, 3, 1)[LOWER].view(2, -1, x.shape[1], 1).transpose(1, 2),
    "written by a mask": lambda x: placed(x, x * 2, LOWER),
    "one value by a mask": lambda x: placed(x, torch.tensor(0.3, dtype=x.dtype), LOWER),
    "made of values by a mask": lambda x: placed(torch.zeros(x.shape, dtype=x.dtype), x, LOWER),
    "select_scatter": lambda x: x.select_scatter(x[:, :, 0] * 2, 2, 1),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :, :2], 2, 2, 4),
    "searchsorted": lambda x: torch.searchsorted(torch.linspace(0, 1, 5, dtype=x.dtype), x).to(x.dtype),
    "bucketize": lambda x: torch.bucketize(x, torch.linspace(0, 1, 5, dtype=x.dtype)).to(x.dtype),
}
TRIED = {  # by no rule of ours, but on data
    "cdist": lambda x: torch.cdist(x, x.flip(2)),
    "inverse": lambda x: torch.linalg.inv(x + 9 * torch.eye(8, dtype=x.dtype)),
    "cross": lambda x: torch.cross(x[..., :3], x[..., 1:4], dim=3),
    "diagonal": lambda x: x.diagonal(dim1=2, dim2=3).unsqueeze(3),
    "diag_embed": lambda x: torch.diag_embed(x.mean(3)),
    "mse_loss": lambda x: F.mse_loss(x, x * 2, reduction="none"),
    "fake_quantize": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127),
    "isin": lambda x: x * (1 - torch.isin(x, torch.tensor([0.5], dtype=x.dtype)).to(x.dtype)),
}
ANOTHER = {  # name of what lies in the same memory, or drawn around it
    "data": lambda x: x.data * 2,
    "parameter": lambda x: nn.Parameter(x),
    "memory": lambda x: torch.empty(0, dtype=x.dtype).set_(x.detach()),
    "a copy that copy makes": copy.deepcopy,
    "largest": lambda x: x.max(3, keepdim=True).values,
    "drawn": lambda x: torch.normal(x, torch.zeros_like(x)),
    "distribution": lambda x: torch.distributions.Normal(x, torch.ones_like(x)).mean,
}
MADE = {
    "zeros": lambda x: torch.cat([torch.zeros(2, x.shape[1], 1, 8, dtype=x.dtype), x], 2),
    "zeros_like of new_zeros": lambda x: torch.cat([torch.zeros_like(x.new_zeros(2, x.shape[1], 1, 8)), x], 2),
    "ones of a vector": lambda x: x * torch.ones(x.shape[1], dtype=x.dtype)[:, None, None],
    "full": lambda x: torch.maximum(x, torch.full(x.shape[1:], 0.2, dtype=x.dtype)),
    "empty, then filled": lambda x: x + x.new_empty(x.shape[1]).fill_(0.5).view(1, -1, 1, 1),
    "written into": lambda x: written(x, torch.zeros(x.shape, dtype=x.dtype)),
    "a kernel of ones": lambda x: F.conv2d(x, torch.ones(x.shape[1], 1, 3, 3, dtype=x.dtype), groups=x.shape[1]),
    "a kernel over and over": lambda x: F.conv2d(
        x, torch.cat([torch.ones(1, 1, 3, 3, dtype=x.dtype)] * x.shape[1]), groups=x.shape[1]
    ),
    "images of one channel": lambda x: F.conv2d(
        x.flatten(0, 1).unsqueeze(1), torch.ones(1, 1, 3, 3, dtype=x.dtype), padding=1
    ).view_as(x),
    "eye": lambda x: torch.einsum("bchw,cd->bdhw", x, torch.eye(x.shape[1], dtype=x.dtype)),
    "a triangle": lambda x: torch.einsum(  # adds channels up: of those masked nothing may be left
        "bchw,cd->bdhw", x - 0.5, torch.tril(torch.ones(x.shape[1], x.shape[1], dtype=x.dtype))
    ),
    "linspace beside": lambda x: x * torch.linspace(0, 1, 8, dtype=x.dtype)[:, None],
}


def pruned(function: Function) -> tuple[Channels, float]:
    """The map of `Between`, and how far the pruned network is from the masked one."""
    model, x = randomise_(Between(function)), torch.randn(2, 3, 8, 8).double()
    channels = capture(model, x)
    plan = half_plan(channels)
    reference = masked_outputs(model, x, channels, plan.removed)
    operate_(model, plan, channels)
    return channels, relative_error(outputs(model, x), reference)


@pytest.mark.parametrize(
    "kind",
    [RESIZED, ALONG, PICKED, TRIED, ANOTHER, MADE],
    ids=["resized", "along", "picked", "tried", "another", "made"],
)
def test_channels_pass_what_leaves_them_alone(kind: dict[str, Function]) -> None:
    found = {}
    for name, function in kind.items():
        channels, error = pruned(function)
        found[name] = channels.frozen.get("a"), round(error, 9), {group.name: group.size for group in channels.free}
    passed = (None, 0.0, {"a": 8, "b": 6})
    assert not {name: what for name, what in found.items() if what != passed}


TIED = {  # which of the eight channels go together
    "every second": (lambda x: torch.cat([x[:, ::2], x[:, ::2]], 1), "00112233"),
    "every second from the second": (lambda x: torch.cat([x[:, 1::2], x[:, 1::2]], 1), "00112233"),
    "every fourth": (lambda x: torch.cat([x[:, 3::4]] * 4, 1), "00001111"),
    "pixel_shuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), "00001111"),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), "01230123"),
    "channel_shuffle of four": (lambda x: F.channel_shuffle(x, 4), "01010101"),
    "fold": (lambda x: F.fold(x.flatten(2).unsqueeze(1).flatten(1, 2)[:, :, :16], (5, 5), 2).repeat(1, 4, 1, 1),
             "00001111"),
    "equal parts": (lambda x: torch.cat([sum(x.chunk(2, 1))] * 2, 1), "01230123"),
}  # fmt: skip


@pytest.mark.parametrize("name", TIED)
def test_channels_go_together_exactly_where_they_have_to(name: str) -> None:
    function, together = TIED[name]
    channels, error = pruned(function)
    held = channels.identities["a.weight", 0].tolist()
    numbers = {identity: str(number) for number, identity in enumerate(dict.fromkeys(held))}
    assert "".join(numbers[identity] for identity in held) == together
    assert channels.frozen.get("a") is None and error < 1e-9


@pytest.mark.parametrize(("start", "step"), [(2, 2), (3, 2), (0, 3)])
def test_a_slice_that_takes_no_whole_runs_is_frozen(start: int, step: int) -> None:
    channels = capture(Between(lambda x: torch.cat([x[:, start::step]] * 8, 1)[:, :8]), torch.randn(2, 3, 8, 8))
    assert f"takes every {step}th channel" in channels.frozen["a"]


MIXED = {
    "cumsum": (lambda x: x.cumsum(1), "cumsum in the model runs over channels"),
    "sort": (lambda x: x.sort(1).values, "sort in the model runs over channels"),
    "shuffled pixels": (lambda x: x.median(1, keepdim=True).values + x, "median in the model runs over channels"),
    "gather": (lambda x: x.gather(1, x.argsort(1)), "picks channels by number|runs over channels"),
    "index": (lambda x: x[:, torch.arange(8)], "picks channels by number"),
    "written by numbers": (lambda x: x.index_put((torch.tensor([0]), torch.arange(8)), x[1]), "picks channels"),
    "written to pixels": (lambda x: x.index_put((torch.tensor([0]),), x.transpose(1, 3)[1]), "index_put in the model"),
    "scatter": (lambda x: x.scatter(1, x.argsort(1), x), "picks channels by number|runs over channels"),
    "arange": (lambda x: x * torch.arange(x.shape[1])[:, None, None], "arange in the model numbers them"),
    "linspace": (lambda x: x + torch.linspace(0, 1, x.shape[1])[:, None, None], "linspace in the model numbers them"),
    "counted": (lambda x: x / torch.ones(x.shape[1], dtype=x.dtype).sum(), "size|number|channels"),
    "neighbours": (lambda x: F.local_response_norm(x, 3), "avg_pool3d in the model runs over channels"),
    "unknown": (lambda x: x.renorm(2, 0, 1.0), "operator renorm in the model has no rule"),
    "points": (lambda x: F.grid_sample(x, x.movedim(1, -1)[..., :2], align_corners=False),
               "the model reads points from them"),
    "channels as pixels": (lambda x: F.conv2d(x.transpose(1, 2), torch.ones(8, 8, 3, 3, dtype=x.dtype), padding=1)
                           .transpose(1, 2), "convolves over channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_channels_that_are_mixed_are_frozen_with_the_reason(name: str) -> None:
    function, reason = MIXED[name]
    channels = capture(Between(function).double(), torch.randn(2, 3, 8, 8).double())
    assert any(each in channels.frozen["a"] for each in reason.split("|")), channels.frozen["a"]


@pytest.mark.parametrize(
    ("norm", "size"),
    [(nn.GroupNorm(8, 8), 8), (nn.GroupNorm(8, 8, affine=False), 8), (nn.GroupNorm(2, 8), 4), (nn.GroupNorm(1, 8), 8)],
)
def test_groups_of_a_norm_follow_or_shrink_alike(norm: nn.GroupNorm, size: int) -> None:
    model, x = Between(norm).double(), torch.randn(2, 3, 8, 8).double()
    channels = capture(model, x)
    assert channels.group("a").frozen is None and channels.group("a").size == size
    whole = nn.Sequential(model.a, nn.Sigmoid())(x) * 0.8 + 0.1
    updated = operate_(model, Plan((Prune("a", tuple(channels.group("a").ids[:1].tolist()), "test"),)), channels)
    assert norm.num_channels == model.a.out_channels == 8 - 8 // size
    assert norm.num_groups == (7 if size == norm.num_groups else norm.num_groups)
    kept = whole.unflatten(1, (8 // size, size))[:, :, 1:].flatten(1, 2)
    by_hand = model.head(model.b(F.group_norm(kept, norm.num_groups)).mean((2, 3)))  # scales are one, shifts zero
    assert torch.allclose(model(x), by_hand) and same_map(updated, capture(model, x)) is None


class Tied(nn.Module):
    """A weight that is read forwards and backwards."""

    def __init__(self, weight: tuple[int, ...], forward: Callable[[nn.Parameter, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.weight = nn.Linear(5, 6), nn.Parameter(torch.randn(weight) / 4)
        self.head, self.function = nn.Linear(6, 3), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.weight, self.first(x)))


def through_maps(weight: Tensor, x: Tensor) -> Tensor:
    maps = F.conv2d(x[..., None, None].expand(-1, -1, 3, 3), weight)
    return F.conv_transpose2d(maps.relu(), weight).mean((2, 3))


BOTH_WAYS = {
    "transposed": ((4, 6), lambda w, x: F.linear(F.linear(x, w).relu(), w.t()), {"first": 6, "weight": 4}),
    "matmul": ((6, 4), lambda w, x: (x @ w).relu() @ w.mT, {"first": 6, "weight": 4}),
    "einsum": (
        (8, 6),
        lambda w, x: torch.einsum("bk,km->bm", torch.einsum("bm,km->bk", x, w).relu(), w),
        {"first": 6, "weight": 8},
    ),
    "with itself": ((6, 4), lambda w, x: x @ (w @ w.T), {"first": 6, "weight": 4}),
    "convolution": ((4, 6, 2, 2), through_maps, {"first": 6, "weight": 4}),
    "flipped": (
        (4, 6, 1, 3),
        lambda w, x: F.conv2d(
            F.conv2d(x[..., None, None].expand(-1, -1, 1, 5), w).relu(), w.flip(3).transpose(0, 1)
        ).mean((2, 3)),
        {"first": 6, "weight": 4},
    ),
    "reshaped": ((24,), lambda w, x: F.linear(F.linear(x, w.view(4, -1)).relu(), w.view(4, -1).t()), {"first": 6}),
}


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_weights_read_both_ways_are_followed(name: str) -> None:
    shape, function, free = BOTH_WAYS[name]
    model, x = Tied(shape, function).double(), torch.randn(2, 5).double()
    channels = capture(model, x)
    assert {group.name: group.size for group in channels.free if group.name in free} == free
    assert all(group.prune_only for group in channels.free if "weight" in group.producers)
    plan = half_plan(channels)
    reference = masked_outputs(model, x, channels, plan.removed)
    updated = operate_(model, plan, channels)
    assert relative_error(outputs(model, x), reference) < 1e-12
    assert same_map(updated, capture(model, x)) is None
