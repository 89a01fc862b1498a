"""What the example does not reach: followed where a way there is found, and named where none is."""

import random
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor.graph import Channels, capture
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Trace, Way, run
from compressor.graph.ways import same_wiring

X = torch.randn(2, 3, 8, 8)


class Network(nn.Module):
    """One of several layers stands between two others; `choose` says which."""

    choose: Callable[["Network", Tensor], int]

    def __init__(self, choose: Callable[["Network", Tensor], int]) -> None:
        super().__init__()
        self.choose = choose  # type: ignore[method-assign]
        self.first, self.gate, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3, bias=False), nn.Conv2d(8, 4, 1)
        self.between = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
        self.projection = nn.Conv2d(8, 5, 1)
        self.factor = 1

    def features(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.between[self.choose(self, y)](y)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)) + 0 * self.gate.weight.sum()

    def embed(self, x: Tensor) -> Tensor:
        return self.projection(self.features(x))


FOLLOWED = {
    "a reading of a feature": lambda model, y: 0 if y.mean().item() > 1e3 else 1 if y.mean().item() < -1e3 else 2,
    "a truth": lambda model, y: 0 if y.sum() < 0 else 1 if y.mean() > 100 else 2,
    "a number of the gate's": lambda model, y: model.gate(y.mean((0, 2, 3))).argmax().item(),
    "a draw of Python's": lambda model, y: random.randrange(3) if model.training else 0,
    "a draw of torch's": lambda model, y: int(torch.randint(3, ())),
}


def broken(model: nn.Module) -> list[str]:
    found = []
    for x in (X, 100 * X, -X):
        for training in (False, True):
            for _ in range(6):
                try:
                    model.train(training)(x)
                except RuntimeError as error:
                    found.append(str(error))
    return found


@pytest.mark.parametrize("name", FOLLOWED)
def test_branches_that_the_example_does_not_take_are_followed(name: str) -> None:
    model = Network(FOLLOWED[name]).eval()
    report = compressor.prune_(model, X, ratio=0.5)
    assert [layer.out_channels for layer in (model.first, *model.between)] == [4] * 4
    assert not broken(model)
    assert "projection" in " ".join(report.notes)


def test_what_stands_beside_a_layer_that_no_run_used_keeps_its_neighbours() -> None:
    model = Network(lambda model, y: 0).eval()
    channels = capture(model, X)
    assert "which no run used" in channels.frozen["first"]
    said = " ".join(channels.notes)
    assert all(name in said for name in ("between.1", "between.2", "projection")) and "between.0" not in said
    assert not besides_the_gate(channels)


def besides_the_gate(channels: Channels) -> list[str]:
    return [group.name for group in channels.free if not group.name.startswith("gate")]


class Inside(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))


def test_inside_a_block_beside_an_unused_one_channels_may_go() -> None:
    model = Network(lambda model, y: 0).eval()
    model.between = nn.ModuleList([Inside(), Inside()])
    assert besides_the_gate(capture(model, X)) == ["between.0.0"]


def also_kept(channels: Channels) -> set[str]:
    return {group.name for group in channels.groups if group.frozen == "output of the model"}


def test_other_methods_are_followed_on_request() -> None:
    model = Network(lambda model, y: 0).eval()
    model.between = nn.ModuleList([nn.Conv2d(8, 8, 1)])
    report = compressor.prune_(model, X, ratio=0.5, round_to=1, also=["embed"])
    assert model.embed(X).shape[1] == 5 and model.projection.in_channels == 4 and not report.notes


def test_a_method_may_have_an_example_of_its_own() -> None:
    model = Network(lambda model, y: 0).eval()
    assert "projection" in also_kept(capture(model, X, also={"embed": torch.randn(1, 3, 4, 4)}))


@pytest.mark.parametrize(("also", "kind", "said"), [
    (["embd"], compressor.UsageError, "did you mean embed"),
    ({"embed": torch.randn(1, 5, 4, 4)}, compressor.ModelError, "embed does not run"),
])  # fmt: skip
def test_methods_that_do_not_exist_or_do_not_run_are_refused(also: object, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        capture(Network(lambda model, y: 0).eval(), X, also=also)


def test_a_loop_that_asks_for_ever_ends() -> None:
    def choose(model: Network, y: Tensor) -> int:
        while y.abs().max() > 1e-3:
            y = y / 10
        return 0

    assert "between.1" in " ".join(capture(Network(choose).eval(), X).notes)


def test_where_a_value_steers_a_trial_takes_the_branch_of_the_trace() -> None:
    """Of fewer channels a sum is another one, and the trial's weights mean nothing."""
    model = Network(lambda model, y: 0 if y.sum() > 40 else 1 if y.sum() > 20 else 2).eval()
    assert {"first", "between.0"} & {group.name for group in capture(model, X).free}


class WeightOnly(nn.Module):
    """Reads the weight of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.linear(x, self.first.weight))


def test_a_weight_whose_bias_no_run_used_keeps_as_many_channels() -> None:
    channels = capture(WeightOnly().eval(), torch.randn(2, 3))
    assert channels.frozen["first"] == "first.bias, which no run used, has as many channels"


def test_what_is_handed_out_in_training_alone_keeps_its_width() -> None:
    """Both runs are the same operators on the same tensors: only what leaves them differs."""

    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.neck, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Any:
            features = self.neck(self.body(x))
            return (self.head(features), features) if self.training else self.head(features)

    channels = capture(Distilled(), torch.randn(2, 3, 4, 4))
    assert [group.name for group in channels.free] == ["body"] and "neck" in channels.frozen


class Asking(nn.Module):
    """Calls `ask` with its batch norm before it runs; more than one input go through another layer."""

    def __init__(self, ask: Callable[[nn.Module], Any] = bool, wide: bool = False) -> None:
        super().__init__()
        self.ask, self.wide = ask, wide
        self.body, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout2d()
        self.several = nn.Conv2d(8, 8, 1) if wide else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.ask(self.norm)
        y = self.drop(self.norm(self.body(x)))
        return self.head(self.several(y) if self.wide and len(x) > 1 else y)


def _modes(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Of every run of a capture that is written down, the mode and the number of inputs."""
    seen: list[tuple[bool, int]] = []

    def noted(replica: Replica, way: Way, *rest: Any) -> Trace:
        seen.append((way.training, len(way.example)))
        return run(replica, way, *rest)

    monkeypatch.setattr(sys.modules["compressor.graph.capture"], "run", noted)
    assert not capture(model, X[:1]).frozen.keys() & {"body", "several"}
    return seen


def _ask_without_torch(norm: nn.Module) -> None:
    vars(norm)["training"]


class OwnMode(Asking):
    """Its `train()` is its own."""

    def train(self, mode: bool = True) -> "OwnMode":
        super().train(mode)
        return self


class LibrarysMode(OwnMode):
    """A `train()` of timm's, which does what torch's does."""

    def train(self, mode: bool = True) -> "LibrarysMode":
        return super().train(mode)

    train.__module__ = "timm.models"


class LibrarysOtherMode(Asking):
    """A `train()` of timm's, which keeps the mode elsewhere too."""

    def train(self, mode: bool = True) -> "LibrarysOtherMode":
        self.mode = mode
        return super().train(mode)

    train.__module__ = "timm.models"


def _with_train_of_its_own() -> nn.Module:
    model = Asking()
    vars(model)["train"] = MethodType(lambda self, mode=True: nn.Module.train(self, mode), model)
    return model


class ClassMode(Asking):
    """Its class has a mode too, which is found where an instance has none."""

    training = True


@pytest.mark.parametrize(
    ("model", "runs"),
    [
        (Asking(), [(False, 1)]),
        (ClassMode(), [(False, 1), (True, 2)]),
        (_with_train_of_its_own(), [(False, 1), (True, 2)]),
        (Asking(wide=True), [(False, 1), (False, 2)]),
        (Asking(lambda norm: norm.training), [(False, 1), (True, 2)]),
        (Asking(lambda norm: hasattr(norm, "training")), [(False, 1), (True, 2)]),
        (Asking(nn.Module.eval), [(False, 1), (False, 1), (True, 2)]),  # which cannot be noted, so it runs once more
        (Asking(_ask_without_torch), [(False, 1), (False, 1), (True, 2)]),
        (OwnMode(), [(False, 1), (True, 2)]),
        (LibrarysMode(), [(False, 1)]),
        (LibrarysOtherMode(), [(False, 1), (True, 2)]),
    ],
)
def test_only_code_that_asks_for_the_mode_runs_in_both(
    model: nn.Module, runs: list[tuple[bool, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _modes(model, monkeypatch) == runs


def test_modules_have_their_mode_again_after_they_ran_without() -> None:
    replica = Replica(Asking())
    before = [(list(module._modules), type(module._modules), module.training) for module in replica.modules.values()]
    with replica.evaluating() as asked:
        run(replica, Way(X))
    after = [(list(module._modules), type(module._modules), module.training) for module in replica.modules.values()]
    assert [each[:2] for each in before] == [each[:2] for each in after] and not any(mode for *_, mode in after)
    assert asked == {"torch.nn.modules.batchnorm", "torch.nn.modules.dropout"}


@pytest.mark.parametrize("drop", [nn.Dropout(), nn.Dropout(inplace=True), nn.Dropout2d(), nn.AlphaDropout()])
def test_what_drops_out_is_no_other_wiring(drop: nn.Module) -> None:
    replica = Replica(nn.Sequential(nn.Conv2d(3, 8, 1), drop, nn.ReLU(), drop, nn.Conv2d(8, 4, 1)))
    evaluated, trained = run(replica, Way(X[:1])), run(replica, Way(X, training=True))
    assert len(trained.ops) > len(evaluated.ops) and same_wiring(evaluated, trained, replica.modules)


class Swapped(nn.Module):
    """Runs the same operators in both modes; with `apart` on another weight of the same shape."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.apart = apart
        self.first, self.norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.one, self.other = nn.Parameter(torch.randn(4, 8, 1, 1)), nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.other if self.apart and self.training else self.one
        return nn.functional.conv2d(self.norm(self.first(x)), weight)


@pytest.mark.parametrize("apart", [False, True])
def test_a_mode_is_the_same_where_its_operators_read_the_same_tensors(apart: bool) -> None:
    replica = Replica(Swapped(apart))
    evaluated, trained = run(replica, Way(X[:1])), run(replica, Way(X, training=True))
    assert [op.name for op in trained.ops if op.name != "add"] == [op.name for op in evaluated.ops]
    assert same_wiring(evaluated, trained, replica.modules) is not apart
    channels = capture(Swapped(apart), X[:1])
    readers = {place.tensor for place in channels.group("first").places if place.role == "column"}
    assert readers == ({"one", "other"} if apart else {"one"})
