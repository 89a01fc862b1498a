"""The peer's arms of `benchmarks/pareto.py`: Torch-Pruning's importances and its group-norm pruner, as its own
benchmarks set them (VainF/Torch-Pruning, reproduce/main.py), brought to the same multiply-adds by their ratio.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch_pruning
from torch import Tensor, nn
from torch.nn import functional
from torch_pruning.pruner import BasePruner, GroupNormPruner
from torch_pruning.pruner.importance import GroupMagnitudeImportance, MagnitudeImportance, TaylorImportance

from benchmarks.pareto_case import Arm, Case, Outcome
from compressor.training.batch_norm import recalibrate_
from compressor.training.evaluate import evaluating
from compressor.training.loop import plain
from compressor.training.microbatches import Step

HALVINGS = 12  # of the interval that holds the ratio: to 1/4096 of the channels
SPARSE = 5e-4  # of the sparse training, as in their benchmarks

MakePruner = Callable[[nn.Module, float], Any]


def magnitude(case: Case, share: float) -> Outcome:
    """L1 norm of the filters, every layer the same ratio."""
    pruner = _maker(BasePruner, case, lambda: MagnitudeImportance(p=1))
    return _cut_and_train(case, copy.deepcopy(case.start), share, pruner)


def taylor(case: Case, share: float) -> Outcome:
    """First-order Taylor expansion of the loss on the images that ours looks at, one ranking over all layers."""
    model = copy.deepcopy(case.start)
    with evaluating(model):
        for images, labels in case.score_batches():
            functional.cross_entropy(model(images), labels).backward()
    pruner = _maker(BasePruner, case, TaylorImportance, global_pruning=True)
    return _cut_and_train(case, model, share, pruner)


def group_norm(case: Case, share: float) -> Outcome:
    """DepGraph's method: groups are driven to zero while training, for as many epochs as AdapNet may change the
    structure in; then the smallest go, in one ranking over all layers.
    """
    model = copy.deepcopy(case.start)
    make = _maker(
        GroupNormPruner, case, lambda: GroupMagnitudeImportance(p=2, normalizer="max"), global_pruning=True, reg=SPARSE
    )
    sparse = case.settings.max_epochs
    case.train_(model, 0, sparse, regularised(plain(case.data), make(model, 0.0)))
    return _cut_and_train(case, model, share, make, sparse)


def _maker(kind: type[BasePruner], case: Case, importance: Callable[[], Any], **more: Any) -> MakePruner:
    def make(model: nn.Module, ratio: float) -> Any:
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
        return kind(model, case.example, importance=importance(), pruning_ratio=ratio, ignored_layers=last, **more)

    return make


def regularised(inner: Step, pruner: Any) -> Step:
    """A step whose gradients the pruner adds its own to."""

    def step(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        result = inner(model, x, y)
        pruner.regularize(model)
        return result

    return step


def _cut_and_train(case: Case, model: nn.Module, share: float, make: MakePruner, done: int = 0) -> Outcome:
    model = _at_macs(case, model, share, make)
    for parameter in model.parameters():
        parameter.grad = None
    recalibrate_(model, case.data.train, case.data, batch_size=case.settings.batch_size)
    case.train_(model, done, case.epochs)
    return Outcome(model, {"sparse_epochs": done} if done else {})


def _at_macs(case: Case, model: nn.Module, share: float, make: MakePruner) -> nn.Module:
    """The model pruned by the ratio, found by halving, that leaves the multiply-adds nearest to the share asked for."""
    wanted = share * _macs(case, model)
    low, high = 0.0, 1.0  # the ratios that leave too much and too little
    best = model
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        trial = copy_with_gradients(model)
        make(trial, ratio).step()
        macs = _macs(case, trial)
        low, high = (ratio, high) if macs > wanted else (low, ratio)
        if abs(macs - wanted) < abs(_macs(case, best) - wanted):
            best = trial
    return best


def _macs(case: Case, model: nn.Module) -> float:
    macs, _ = torch_pruning.utils.count_ops_and_params(model, case.example)
    return float(macs)


def copy_with_gradients(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    for old, new in zip(model.parameters(), copied.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    return copied


ARMS: dict[str, Arm] = {
    "TP magnitude": magnitude,
    "TP taylor": taylor,
    "TP group norm": group_norm,
}
