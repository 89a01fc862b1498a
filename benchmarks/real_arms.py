"""The arms of `benchmarks/real.py`: ways to cut a trained network to a share of its multiply-adds."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.pruner import BasePruner, GroupNormPruner
from torch_pruning.pruner.importance import GroupMagnitudeImportance, MagnitudeImportance, TaylorImportance

from benchmarks.adapnet import TRAINED
from benchmarks.pareto_peers import HALVINGS, SPARSE, copy_with_gradients, regularised
from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.graph.tensors import device_of, named_tensors
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.oneshot import decide
from compressor.pruning.reconstruction.calibration import enough_images
from compressor.pruning.scores import Given
from compressor.pruning.settings import PruneSettings
from compressor.runs.apply import apply_plan_
from compressor.runs.course import Network
from compressor.runs.goals import Target
from compressor.runs.periods import Periods
from compressor.runs.phases import Phases, TrainingPhases
from compressor.runs.second_look import ranked
from compressor.runs.settings import FINETUNE, GoalSettings
from compressor.surgery import Plan, Prune, operate_
from compressor.training.batch_norm import recalibrate_
from compressor.training.evaluate import evaluating
from compressor.training.loop import distilling, fit, plain
from compressor.training.microbatches import Step
from compressor.training.settings import DistillSettings, TrainSettings
from compressor.training.task import Task


@dataclass(frozen=True)
class Case:
    """One trained network with its data; every arm starts from a copy of it and has the same epochs."""

    start: nn.Module
    data: Task
    seed: int
    epochs: int
    distill: DistillSettings = field(default_factory=DistillSettings)

    @property
    def training(self) -> TrainSettings:
        """Of every arm."""
        return replace(FINETUNE, seed=self.seed, epochs=self.epochs, evaluate_every=0)

    @property
    def example(self) -> Tensor:
        """One grey image, on the device of the start."""
        return torch.zeros_like(self.data.examples(self.data.train, 1, device_of(self.start)))

    def step(self) -> Step:
        """What one batch does: cross-entropy, and where it is asked for the start's scores beside the labels."""
        return (
            distilling(copy.deepcopy(self.start), self.distill, self.data) if self.distill.distill else plain(self.data)
        )

    def train_(self, model: nn.Module, epochs: int, first: int = 0, step: Step | None = None) -> None:
        """So many epochs, with a rate that falls along a cosine where they are the last ones."""
        last = first + epochs == self.epochs
        settings = replace(self.training, epochs=epochs, first_epoch=first, schedule="cosine" if last else "constant")
        fit(model, self.data, settings, step=step or self.step())

    def images(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Random training images, not augmented, with labels."""
        return list(self.data.drawn(self.data.train, count, self.seed, device_of(self.start)))

    def inputs(self) -> list[Tensor]:
        """What reconstruction looks at."""
        return [x for x, _ in self.images(enough_images(tuple(self.example.shape[1:])))]


@dataclass
class Outcome:
    """A network cut to size, the epochs that took, and what else its row should say."""

    model: nn.Module
    spent: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


Arm = Callable[[Case, float], Outcome]  # the float: the share of the start's multiply-adds that stays


def whole(case: Case, share: float) -> Outcome:
    """The network as it came."""
    return Outcome(copy.deepcopy(case.start))


def ours(case: Case, share: float, **settings: Any) -> Outcome:
    """`compressor prune --data`: block OBS, widths by the error, least squares."""
    model, channels, plan, inputs = _chosen(case, share, **settings)
    return _refitted(case, model, plan, channels, inputs)


def _chosen(case: Case, share: float, **settings: Any) -> tuple[nn.Module, Channels, Plan, list[Tensor]]:
    """A copy of the start, its channels, what goes, and the inputs by which that was decided."""
    model = copy.deepcopy(case.start)
    channels, inputs = capture(model, case.example), case.inputs()
    choice = PruneSettings(method="obs", allocate="error", target_macs=share, seed=case.seed, **settings)
    return model, channels, decide(model, channels, choice, Given(inputs=inputs), judge=ranked).plan, inputs


def remeasured(case: Case, share: float) -> Outcome:
    """The same channels gone as in `ours`, and nothing but batch norm measured anew."""
    model, channels, plan, _ = _chosen(case, share, round_to=1)
    operate_(model, plan, channels)
    recalibrate_(model, case.data.train, case.data, seed=case.seed)
    return Outcome(model)


def adapnet(case: Case, share: float) -> Outcome:
    """`--method adapnet`: the structure changes in all epochs but the last; what is then above the target, l1 takes."""
    model, data = copy.deepcopy(case.start), case.data
    settings = replace(TRAINED, startup_epochs=0, finetune_epochs=0, max_epochs=case.epochs - 1)
    phases = Phases.of(settings, case.training, trained=True)
    goals, channels = GoalSettings(target_macs=share), capture(model, case.example)
    steps = data.steps(phases.training)
    method = AdapNet(settings, classes=len(data.classes), steps_per_epoch=steps, seed=case.seed)
    periods = Periods(Network(model, channels, case.example), method, Target.of(goals, channels), inputs=case.inputs())
    training = TrainingPhases(model, data, periods, phases, case.distill, trained=True)
    training.run()
    kinds = [row["kind"] for plan in periods.plans for row in plan]
    facts = {
        "macs_left_by_adapnet": periods.channels.macs() / channels.macs(),
        "edits": {kind: kinds.count(kind) for kind in ("prune", "merge", "insert")},
    }
    if periods.channels.macs() > 1.01 * share * channels.macs():
        choice = PruneSettings(method="l1", allocate="global", target_macs=share * channels.macs(), round_to=1)
        operate_(model, decide(model, periods.channels, choice).plan, periods.channels)
    return Outcome(model, case.epochs - 1, facts)


def _refitted(case: Case, model: nn.Module, plan: Plan, channels: Channels, inputs: list[Tensor]) -> Outcome:
    _, found = apply_plan_(model, plan, channels, case.example, inputs=inputs)
    return Outcome(model, facts={"refitted": len(found.layers)})


# Torch-Pruning: importances and pruners as its own benchmarks set them (VainF/Torch-Pruning, reproduce/main.py).


@dataclass(frozen=True)
class Recipe:
    """How the peer is used."""

    score: str
    iterative: bool = False  # half of the way first, then an epoch, then the rest
    kept: bool = False  # layers whose channels an addition ties together stay as they are
    refit: bool = False  # what it cut is refitted by our least squares, else batch norm is measured anew

    def __call__(self, case: Case, share: float) -> Outcome:
        """Torch-Pruning brought to the multiply-adds by its ratio."""
        model, spent = copy.deepcopy(case.start), 0
        if self.score == "group norm":
            pruner = _pruner(self, case, model, 0.0)
            case.train_(model, case.epochs - 1, step=regularised(case.step(), pruner))
            spent = case.epochs - 1
        elif self.iterative:
            model = _cut(case, model, share**0.5, self)
            case.train_(model, case.epochs - 1)
            spent = case.epochs - 1
        return Outcome(_cut(case, model, share, self), spent)

    def plan(self, case: Case, share: float) -> tuple[Plan, Channels]:
        """What it takes of the start in one shot, as a plan of ours, and the channels of the start."""
        channels = capture(case.start, case.example)
        small = _taken(case, case.start, share, self)
        plan = _as_plan(case.start, small, channels)
        assert channels.params(plan.removed) == sum(parameter.numel() for parameter in small.parameters())
        return plan, channels


def _cut(case: Case, model: nn.Module, share: float, recipe: Recipe) -> nn.Module:
    small = _taken(case, model, share, recipe)
    if not recipe.refit:
        recalibrate_(small, case.data.train, case.data, seed=case.seed)
        return small
    channels = capture(model, case.example)
    plan = _as_plan(model, small, channels)
    model = _refitted(case, model, plan, channels, case.inputs()).model
    assert _macs(case, model) == _macs(case, small)
    return model


def _taken(case: Case, model: nn.Module, share: float, recipe: Recipe) -> nn.Module:
    """A copy without the channels that the peer takes, nothing else changed."""
    if recipe.score == "taylor":
        with evaluating(model):
            for images, labels in case.images(PruneSettings.score_images):
                case.data.loss(model, images, labels)[0].backward()
    small = _at_macs(case, model, share, recipe)
    for parameter in (*model.parameters(), *small.parameters()):
        parameter.grad = None
    return small


def _at_macs(case: Case, model: nn.Module, share: float, recipe: Recipe) -> nn.Module:
    """The copy pruned by the ratio, found by halving, that leaves the multiply-adds nearest to the share asked for."""
    wanted = share * _macs(case, case.start)
    low, high = 0.0, 1.0  # the ratios that leave too much and too little
    best = model
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        trial = copy_with_gradients(model)
        _pruner(recipe, case, trial, ratio).step()
        macs = _macs(case, trial)
        low, high = (ratio, high) if macs > wanted else (low, ratio)
        if abs(macs - wanted) < abs(_macs(case, best) - wanted):
            best = trial
    return best


def _pruner(recipe: Recipe, case: Case, model: nn.Module, ratio: float) -> Any:
    last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]
    example = case.example
    given = {"pruning_ratio": ratio, "ignored_layers": [*last, *(_tied(case, model) if recipe.kept else ())]}
    match recipe.score:
        case "magnitude":
            return BasePruner(model, example, importance=MagnitudeImportance(p=1), **given)
        case "taylor":
            return BasePruner(model, example, importance=TaylorImportance(), global_pruning=True, **given)
    importance = GroupMagnitudeImportance(p=2, normalizer="max")
    return GroupNormPruner(model, example, importance=importance, global_pruning=True, reg=SPARSE, **given)


def _tied(case: Case, model: nn.Module) -> list[nn.Module]:
    """Layers that share their output channels with others, by an addition."""
    found = []
    for group in capture(case.start, case.example).free:
        rows = {place.tensor.rpartition(".")[0] for place in group.places if place.role == "row"}
        layers = [layer for layer in map(model.get_submodule, rows) if isinstance(layer, nn.Conv2d | nn.Linear)]
        producers = [layer for layer in layers if not isinstance(layer, nn.Conv2d) or layer.groups == 1]
        if len(producers) > 1:
            found += producers
    return found


def _macs(case: Case, model: nn.Module) -> float:
    macs, _ = torch_pruning.utils.count_ops_and_params(model, case.example)
    return float(macs)


def _as_plan(dense: nn.Module, small: nn.Module, channels: Channels) -> Plan:
    """What the peer took away, as a plan of ours: a channel is known again by its values in a layer's vectors."""
    before, after = named_tensors(dense), named_tensors(small)
    edits = []
    for group in channels.free:
        vectors: dict[str, list[str]] = {}  # by layer: a norm has four, whose values together are a channel's own
        for place in group.places:
            if place.role == "row" and before[place.tensor].ndim == 1:
                vectors.setdefault(place.tensor.rpartition(".")[0], []).append(place.tensor)
        names = max(vectors.values(), key=len)
        stayed = {tuple(values) for values in torch.stack([after[name] for name in names], 1).tolist()}
        ids = channels.identities[names[0], 0]
        rows = torch.stack([before[name] for name in names], 1).tolist()
        gone = sorted({int(each) for each, values in zip(ids, rows, strict=True) if tuple(values) not in stayed})
        gone = [each for each in gone if each in set(group.ids.tolist())]
        if gone:
            edits.append(Prune(group.name, tuple(gone), "Torch-Pruning"))
    return Plan(tuple(edits))


RECIPES = {
    "TP magnitude": Recipe("magnitude"),
    "TP magnitude, iterative": Recipe("magnitude", iterative=True),
    "TP magnitude, tied layers kept": Recipe("magnitude", kept=True),
    "TP magnitude, tied layers kept, iterative": Recipe("magnitude", kept=True, iterative=True),
    "TP taylor": Recipe("taylor"),
    "TP taylor, iterative": Recipe("taylor", iterative=True),
    "TP taylor, tied layers kept": Recipe("taylor", kept=True),
    "TP group norm": Recipe("group norm"),
}
DISTILLED = " + distillation"  # behind an arm's name: its training follows the start beside the labels
ARMS: dict[str, Arm] = {
    "dense": whole,
    "ours": partial(ours, round_to=1),
    "ours, widths for the chip": partial(ours, round_to="auto"),
    "ours, batch norm only": remeasured,
    "AdapNet": adapnet,
    **RECIPES,
    **{f"{name} + least squares": replace(arm, refit=True) for name, arm in RECIPES.items()},
}
