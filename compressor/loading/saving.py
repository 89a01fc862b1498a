"""Write compressor's own checkpoint; one that would not open again is an error here and not later."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import FileError, ModelError, UsageError
from compressor.graph.neutral import bare
from compressor.graph.tensors import saved_tensors, transient_buffers
from compressor.loading.arch import Arch, find, parse_arch
from compressor.loading.checkpoint import Checkpoint, Origin, extra_state, write_checkpoint
from compressor.loading.networks import blank
from compressor.loading.networks import describe as describe_layers
from compressor.loading.opening import NONE, STRUCTURE, OpenedModel, Rebuilders, apply_steps
from compressor.loading.proportion import UnbuiltError
from compressor.surgery.structure import apply_, describe


def save_model(
    model: nn.Module | OpenedModel,
    path: str | Path,
    *,
    arch: Arch | str | None = None,
    input_shape: tuple[int, ...] | None = None,
    history: Iterable[str] = (),
    measurements: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    rebuilders: Rebuilders = NONE,
) -> tuple[str, ...]:
    """Write a checkpoint: to a temporary file beside `path`, flushed, then renamed. Returns notes on what is left out.

    Of an OpenedModel everything is taken that is not given here; `history` is added to its own. The module goes in as
    it is now, edited or not. Raises FileError where `path` exists and `overwrite` is not given or where it cannot be
    written, ModelError where the module cannot be built again.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileError(f"{target} exists: give another name, or say that it may be overwritten (`overwrite`)")
    opened = model if isinstance(model, OpenedModel) else OpenedModel(model)
    named = parse_arch(arch) if isinstance(arch, str) else arch
    opened = replace(
        opened,
        arch=named or opened.arch,
        input_shape=input_shape or opened.input_shape,
        history=(*opened.history, *history),
        measurements=dict(opened.measurements if measurements is None else measurements),
    )
    base, module = _base(opened, rebuilders), bare(opened.module)
    extra, notes = extra_state(module)
    outside = {name: each for name, each in transient_buffers(module).items() if name in base.state}
    write_checkpoint(replace(base, state={**saved_tensors(module), **outside, **extra}), target)
    return notes


def transformed(
    opened: OpenedModel, module: nn.Module, step: Mapping[str, Any], rebuilders: Rebuilders = NONE
) -> OpenedModel:
    """The model after a room made another network of it: `module`, which `step` (with its kind) makes of the old one.

    The old network's sizes are kept as a step of their own; so call it before they change again. Raises UsageError
    where no file can say how to build the old network, ModelError where it is not an edited build of its architecture.
    """
    base = _base(opened, rebuilders)
    edited = ({"kind": STRUCTURE, **base.structure},) if any(base.structure.values()) else ()
    steps = (*opened.steps, *edited, dict(step))
    return replace(opened, module=module, arch=base.arch, blueprint=base.blueprint, steps=steps)


def _base(opened: OpenedModel, rebuilders: Rebuilders) -> Checkpoint:
    """Find out how to build the network again, by building it. The state is that of the build outside its state dict.

    Raises:
        UsageError: it has no architecture, and a layer that no file can describe.
        ModelError: it is not an edited build of its architecture.
    """
    module, arch, plan = bare(opened.module), None, None
    build: Callable[[], nn.Module]
    if opened.arch is None:
        plan = opened.blueprint if opened.steps else _blueprint(module)
        what = "the layers it was made of"
        build = partial(blank, plan or {})
    else:
        definition = find(opened.arch, named=opened.arch.sha256 is None)  # any other came with the model: checked then
        arch, what, build = definition.arch, str(definition.arch), definition.build
    try:
        with torch.random.fork_rng(devices=[]):  # the run's random numbers are not spent on weights that are not used
            fresh = apply_steps(build(), opened.steps, Path("the network"), rebuilders)
        structure = describe(fresh, module)
        apply_(fresh, structure)
    except (FileError, UnbuiltError) as error:
        raise ModelError(f"the network is not an edited {what}: {error}") from error
    rebuilt, own = (
        {name: tuple(tensor.shape) for name, tensor in saved_tensors(each).items()} for each in (fresh, module)
    )
    differing = [name for name in {**rebuilt, **own} if rebuilt.get(name) != own.get(name)]
    if differing:
        raise ModelError(
            f"the network is not an edited {what}: {len(differing)} tensors differ, the first is {differing[0]!r}; "
            "give the architecture and arguments it was built with"
        )
    known = {each.name: getattr(opened, each.name) for each in fields(Origin)} | {"arch": arch, "blueprint": plan}
    return Checkpoint(**known, structure=structure, state=transient_buffers(fresh))


def _blueprint(module: nn.Module) -> dict[str, Any]:
    try:
        return describe_layers(module)[0]
    except UnbuiltError as error:
        raise UsageError(
            f"a {type(module).__name__} cannot be built again without its code ({error}): say how with `arch`, "
            "FILE.py:FUNCTION for a network of your own"
        ) from error
