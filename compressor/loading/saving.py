"""Write compressor's own checkpoint; one that would not open again is an error here and not later."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import FileError, ModelError, UsageError
from compressor.graph.skeleton import skeleton
from compressor.loading.arch import Arch, find, parse_arch
from compressor.loading.checkpoint import Checkpoint, to_dict
from compressor.loading.opening import OpenedModel
from compressor.loading.pickles import is_own_to_torch, read_pickle
from compressor.loading.steps import STRUCTURE, apply_steps
from compressor.surgery.structure import apply_, describe


def save(
    module: nn.Module,
    path: str | Path,
    *,
    arch: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    overwrite: bool = False,
) -> None:
    """Write `module` to a checkpoint that `compressor.load` opens again.

    `arch` says how the network was built before it was edited (`torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION`,
    each with `:key=value,...` behind it where it had arguments); it may be left out where all layers are torch's or
    torchvision's own classes. `input_shape` is (channels, height, width). Raises FileError where `path` exists and
    `overwrite` is not given, ModelError where `module` cannot be built again from `arch`.

    Example:
        compressor.save(module, "small.pt", arch="torchvision:resnet18", input_shape=(3, 224, 224))
    """
    save_model(module, path, arch=arch, input_shape=input_shape, overwrite=overwrite)


def save_model(
    model: nn.Module | OpenedModel,
    path: str | Path,
    *,
    arch: Arch | str | None = None,
    input_shape: tuple[int, ...] | None = None,
    classes: Iterable[str] | None = None,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    history: Iterable[str] = (),
    measurements: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint: to a temporary file beside `path`, flushed, then renamed.

    Of an OpenedModel everything is taken that is not given here; `history` is added to its own. The module goes in as
    it is now, edited or not. Raises FileError where `path` exists and `overwrite` is not given or where it cannot be
    written, ModelError where the module cannot be built again.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileError(f"{target} exists: give another name, or say that it may be overwritten (--overwrite)")
    opened = model if isinstance(model, OpenedModel) else OpenedModel(model, None)
    given: dict[str, Any] = {"arch": arch, "input_shape": input_shape, "classes": classes, "mean": mean, "std": std}
    opened = replace(opened, **{key: value for key, value in given.items() if value is not None})
    checkpoint = _describe(opened, _named(opened.arch))
    checkpoint = replace(
        checkpoint,
        history=(*opened.history, *history),
        measurements=dict(opened.measurements if measurements is None else measurements),
    )
    _write(to_dict(checkpoint), target)


def _named(arch: Arch | str | None) -> tuple[Arch, bool] | None:
    """An architecture given as text was named by the caller; one that came with the model was checked when opened."""
    if arch is None:
        return None
    return (parse_arch(arch), True) if isinstance(arch, str) else (arch, arch.sha256 is None)


def _describe(opened: OpenedModel, named: tuple[Arch, bool] | None) -> Checkpoint:
    module = _bare(opened.module)
    # Copies: a tensor that is a view would take the whole storage behind it into the file.
    state = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
    checkpoint = Checkpoint(
        arch=None,
        steps=opened.steps,
        structure={},
        state={},
        module=None,
        input_shape=None if opened.input_shape is None else tuple(opened.input_shape),
        classes=None if opened.classes is None else tuple(opened.classes),
        mean=None if opened.mean is None else tuple(opened.mean),
        std=None if opened.std is None else tuple(opened.std),
        history=(),
        measurements={},
    )
    if named is not None:
        arch, structure = _rebuilt(module, state, opened.steps, *named)
        return replace(checkpoint, arch=arch, structure=structure, state=state)
    if not is_own_to_torch(module):
        raise UsageError(_needs_arch(module))
    return replace(checkpoint, module=_whole(module))


def _needs_arch(module: nn.Module) -> str:
    return (
        f"a {type(module).__name__} cannot be built again without its code: say how with arch= (--arch), "
        "FILE.py:FUNCTION for a network of your own"
    )


def transformed(opened: OpenedModel, module: nn.Module, step: Mapping[str, Any]) -> OpenedModel:
    """The model after a room made another network of it: `module`, which `step` (with its kind) makes of the old one.

    The old network's sizes are kept as a step of their own; so call it before they change again. Raises UsageError
    where nobody can say how to build the old network, ModelError where it is not an edited build of its architecture.
    """
    bare = _bare(opened.module)
    named = _named(opened.arch)
    if named is None:
        raise UsageError(_needs_arch(module))
    arch, structure = _rebuilt(bare, bare.state_dict(), opened.steps, *named)
    edited = ({"kind": STRUCTURE, **structure},) if any(structure.values()) else ()
    return replace(opened, module=module, arch=arch, steps=(*opened.steps, *edited, dict(step)))


def _rebuilt(
    module: nn.Module, state: dict[str, torch.Tensor], steps: tuple[dict[str, Any], ...], arch: Arch, named: bool
) -> tuple[Arch, dict[str, Any]]:
    """What has to be changed in a network built from `arch` to take `state`; tried before anything is written."""
    definition = find(arch, named=named)
    with torch.random.fork_rng(devices=[]):  # the run's random numbers are not spent on weights that are thrown away
        fresh = definition.build()
        try:
            fresh = apply_steps(fresh, steps, Path("the network"))
        except FileError as error:
            raise ModelError(f"the network is not one made of {definition.arch}: {error}") from error
    structure = describe(fresh, module)
    try:
        apply_(fresh, structure)
    except FileError as error:
        raise ModelError(f"the network is not an edited {definition.arch}: {error}") from error
    rebuilt = _shapes(fresh.state_dict())
    differing = [key for key in {**rebuilt, **_shapes(state)} if rebuilt.get(key) != _shapes(state).get(key)]
    if differing:
        raise ModelError(
            f"the network is not an edited {definition.arch}: {len(differing)} tensors differ, the first is "
            f"{differing[0]!r}; give the architecture and arguments it was built with"
        )
    return definition.arch, structure


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _bare(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or torch.compile."""
    inner: Any = module
    while isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(inner, "_orig_mod"):
        inner = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    bare: nn.Module = inner
    return bare


def _whole(module: nn.Module) -> nn.Module:
    """A copy of the module on the CPU, without gradients and hooks.

    Raises:
        UsageError: a hook of torch's computes a layer's weight; without it the rest would no longer be trained.
    """
    for name, each in module.named_modules():
        for hook in each._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):
                raise UsageError(
                    f"{name or 'the network'} computes its weight in a hook ({type(hook).__name__}), which a file "
                    "without code cannot hold: remove it first (torch.nn.utils.remove_weight_norm and the like keep "
                    "the weight), or say how to build the network with arch= (--arch)"
                )
    whole = skeleton(module, real=True).cpu()
    for each in whole.modules():
        for name, value in vars(each).items():
            if name.endswith("_hooks") and value:
                value.clear()
    return whole


def _check_opens(path: Path, module: nn.Module) -> None:
    """A module of torch's classes may still hold a function, which the reader does not let through."""
    try:
        read_pickle(path)
    except FileError as error:
        raise UsageError(_needs_arch(module)) from error


def _write(held: dict[str, Any], target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(held, file)
            file.flush()
            os.fsync(file.fileno())
        if held["module"] is not None:
            _check_opens(temporary, held["module"])
        temporary.replace(target)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        # The module holds something, a function of somebody's, that pickle cannot name.
        raise UsageError(f"{_needs_arch(held['module'])} ({error})") from error
    except OSError as error:
        raise FileError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
