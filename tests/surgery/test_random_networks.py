"""Random networks under random sequences of plans: what must hold after every one of them."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.graph import Channels, Group, capture
from compressor.graph.channels import SINGLE
from compressor.surgery import Edit, Insert, Merge, Plan, Prune, operate_
from tests.equivalence import left_out, masked_outputs, outputs, randomise_, relative_error, same_map

Step = tuple[str, int, int]  # what to do, and two small numbers it reads its sizes from
STEPS = ["conv", "deep", "grouped", "norm", "relu", "pool", "add", "cat", "excite", "shuffle", "gate", "twice", "group"]

HALVES = ("grouped", "shuffle", "gate", "group")  # steps that want an even number of channels in each half


class Recipe(nn.Module):
    """A network that carries out its steps in order; `repr` of the steps is the whole network."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.layers = nn.ModuleList()
        widths = [4 + 2 * (steps[0][1] % 3)]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        for asked, a, b in steps:
            what = "relu" if asked in HALVES and widths[-1] % 4 else asked
            self.steps.append((what, a, b))
            layer, width = self._layer(what, a, b, widths)
            self.layers.append(layer)
            widths.append(width)
        self.head = nn.Linear(widths[-1], 4)

    def _layer(self, what: str, a: int, b: int, widths: list[int]) -> tuple[nn.Module, int]:
        now, other = widths[-1], widths[b % len(widths)]
        out = 4 + 2 * (a % 4)
        match what:
            case "conv":
                return nn.Conv2d(now, out, 1 + 2 * (b % 2), padding=b % 2), out
            case "deep":
                return nn.Conv2d(now, now * (1 + a % 2), 3, padding=1, groups=now, bias=False), now * (1 + a % 2)
            case "grouped":
                return nn.Conv2d(now, out, 1, groups=2), out
            case "norm":
                return nn.BatchNorm2d(now), now
            case "group":
                return nn.GroupNorm(2, now), now
            case "add":
                return nn.Conv2d(other, now, 1), now
            case "cat":
                return nn.Identity(), now + other
            case "excite":
                return nn.ModuleList([nn.Conv2d(now, 3, 1), nn.Conv2d(3, now, 1)]), now
            case "gate":
                return nn.Identity(), now // 2
            case "twice":
                return nn.Conv2d(now, now, 1), now
        return nn.Identity(), now

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.stem(x)]
        for (what, _, b), layer in zip(self.steps, self.layers, strict=True):
            seen.append(self._run(what, layer, seen[-1], seen[b % len(seen)]))
        return self.head(seen[-1].mean((2, 3)))

    def _run(self, what: str, layer: nn.Module, x: Tensor, other: Tensor) -> Tensor:
        match what:
            case "relu":
                return F.relu(x)
            case "pool":
                return F.max_pool2d(x, 3, 1, 1)
            case "add":
                return x + layer(other)
            case "cat":
                return torch.cat([x, other], 1)
            case "excite":
                return x * torch.sigmoid(layer[1](F.relu(layer[0](F.adaptive_avg_pool2d(x, 1)))))
            case "shuffle":
                n, c, h, w = x.shape
                return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            case "gate":
                one, two = x.chunk(2, 1)
                return one * two
            case "twice":
                return layer(F.relu(layer(x)))
        return layer(x)


def some_edit(group: Group, channels: Channels, generator: np.random.Generator) -> Edit | None:
    """A random edit that leaves every place of the group more than one channel."""
    repeated = any(channels.positions(place, group.ids[:1]).shape[1] > 1 for place in group.places)
    kinds = ["prune"] if group.prune_only else ["prune", "merge", "insert"]
    kind = generator.choice(kinds)
    if kind == "insert":
        columns = "zero" if generator.random() < 0.5 else "split"
        return Insert(group.name, int(generator.choice(group.ids)), "random", columns=columns)
    if group.size < 3 + repeated:
        return None
    if kind == "merge":
        keep, drop = generator.choice(group.ids, 2, replace=False).tolist()
        return Merge(group.name, keep, drop, "random")
    count = int(generator.integers(1, group.size - 1 - repeated))
    return Prune(group.name, tuple(generator.choice(group.ids, count, replace=False).tolist()), "random")


def some_plan(channels: Channels, generator: np.random.Generator) -> Plan:
    chosen = [group for group in channels.free if generator.random() < 0.5]
    return Plan(tuple(edit for group in chosen if (edit := some_edit(group, channels, generator)) is not None))


@settings(max_examples=10, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7), st.integers(0, 7)), min_size=2, max_size=7),
    seed=st.integers(0, 99),
)
def test_invariants_hold_over_twenty_plans(steps, seed):
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model, example = randomise_(Recipe(steps)), torch.randn(2, 3, 6, 6).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    channels = capture(model, example)
    for turn in range(20):
        plan = some_plan(channels, generator)
        pruning = all(isinstance(edit, Prune) for edit in plan.edits)
        reference = masked_outputs(model, example, channels, plan.removed) if pruning and plan.edits else None
        frozen = {group.name: group.size for group in channels.groups if group.frozen}
        channels = operate_(model, plan, channels, optimizer)
        if reference is not None:
            assert relative_error(outputs(model, example), reference) < 1e-9
        assert sum(parameter.numel() for parameter in model.parameters()) == channels.params()
        assert all(channels.group(name).size == size for name, size in frozen.items())
        if turn % 5 == 4:
            fresh = capture(model, example)
            assert same_map(channels, fresh) is None
            assert fresh.macs() == channels.macs()
            _train_a_step(model, example, optimizer)


@settings(max_examples=30, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7), st.integers(0, 7)), min_size=2, max_size=7))
def test_every_channel_is_free_or_frozen_with_a_true_reason(steps):
    model, example = Recipe(steps), torch.randn(2, 3, 6, 6)
    channels = capture(model, example)
    assert left_out(model, example, channels) == []
    assert [group.producers for group in channels.groups if group.frozen not in (None, SINGLE)] == [("head",)]
    assert channels.group("head").frozen == "output of the model"


def _train_a_step(model: nn.Module, example: Tensor, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    optimizer.zero_grad()
    model(example).square().mean().backward()
    optimizer.step()
    model.eval()
    for parameter in model.parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        assert momentum is None or momentum.shape == parameter.shape
