"""Carry out a plan on a network in memory: cut, refitted by least squares, and checked on a copy first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compressor.errors import ModelError
from compressor.exporting.latency import profile
from compressor.graph.channels import Channels
from compressor.graph.skeleton import skeleton
from compressor.graph.tensors import named_tensors
from compressor.pruning.reconstruction import Reconstruction, reconstruct_
from compressor.pruning.reconstruction.calibration import synthetic_inputs, used_to
from compressor.report.measurements import Profile
from compressor.runs.stages import Callback, parts, silent
from compressor.surgery import Plan, operate_
from compressor.surgery.assign import take_weights_
from compressor.surgery.snapshot import Snapshot, all_or_nothing


def apply_plan_(
    module: nn.Module,
    plan: Plan,
    channels: Channels,
    example: Any,
    optimizer: Optimizer | None = None,
    *,
    inputs: Sequence[Any] | Literal["synthetic"] = (),
    tell: Callback = silent,
    latency: bool = False,
) -> tuple[Profile, Reconstruction]:
    """Carry out a plan, first on a copy that has to run on the example; returns the cost of the edited network.

    With inputs the copy is refitted to the module, which then takes its weights; also returns what became of that.
    "synthetic": it is refitted on images made up.

    Raises:
        ModelError: the edited network does not run, which `capture` should have foreseen; the module is as it was.
    """
    dense, found = module, Reconstruction()
    if inputs == "synthetic":
        dense, inputs, found = _without_data(module, example)
    copied = skeleton(dense, real=True)
    operate_(copied, plan, channels)
    try:
        cost = profile(copied, example, latency=latency, layers=False)
    except ModelError as error:
        touched = ", ".join(edit.group for edit in plan.edits[:4])
        raise ModelError(f"the pruned network would not run: keep some of {touched} as they are ({error})") from error
    cut = {name: tensor.detach().clone() for name, tensor in named_tensors(copied).items()} if inputs else {}
    if inputs:
        found = replace(
            reconstruct_(copied, dense, channels, plan, inputs, parts("least squares", tell)),
            images_are=found.images_are,
        )
    refitted = named_tensors(copied) if found.layers else {}
    refitted = {name: tensor for name, tensor in refitted.items() if not torch.equal(cut[name], tensor)}
    with all_or_nothing(Snapshot.of(module, optimizer, copies=False)):
        operate_(module, plan, channels, optimizer)
        if dense is not module:
            own = named_tensors(module)
            refitted = {name: own[name] + (tensor - cut[name]) for name, tensor in refitted.items()}
        take_weights_(module, refitted)
    return cost, found


def _without_data(module: nn.Module, example: Any) -> tuple[nn.Module, Sequence[Tensor], Reconstruction]:
    """The module with statistics of images made up, these, and what is to be said of them; no images where they are of
    no use.

    Weights and constants that are solved for with these statistics are right by how far they moved: the module's own
    statistics stay.
    """
    inputs = synthetic_inputs(example)
    used = used_to(module, inputs) if inputs else "none are made up for what this network takes"
    if isinstance(used, str):
        return module, (), Reconstruction(notes=[f"not refitted, give data: {used}"])
    return used, inputs, Reconstruction(images_are="images made up, there being no data")
