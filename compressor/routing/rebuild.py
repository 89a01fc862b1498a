"""Make a skipping network around a user's network: from settings, or again from a checkpoint's step."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from compressor.errors import ModelError, misfit
from compressor.files.plain import from_plain
from compressor.graph.cuts import Chain
from compressor.graph.tensors import device_of
from compressor.routing.network import Layout, Routed, check_layout
from compressor.routing.settings import RouteSettings
from compressor.routing.units import Unit, Units, find_units, head_side

_HEAD_SHARE = 0.02  # of the network's MACs that an exit head may take, where it has a choice


def survey(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[Chain, Units]:
    """The network as a chain, and what of it can be skipped.

    Raises ModelError where it cannot be cut or nothing can be skipped.
    """
    chain = Chain(module, torch.zeros(1, *input_shape, device=device_of(module)))
    return chain, find_units(chain)


def make_routed(chain: Chain, units: tuple[Unit, ...], settings: RouteSettings) -> Routed:
    """A skipping network that shares the chain's parameters; its exits, adapters and router are still to be trained.

    Raises ModelError for places to leave that the network does not have, or images too small for the router.
    """
    if len(chain.cuts[-1].shape) != 1:
        raise ModelError(
            f"the network gives {'x'.join(map(str, chain.cuts[-1].shape))} for an image: its early exits have to give "
            "scores (batch, classes)"
        )
    classes, leave_after = chain.cuts[-1].shape[0], settings.leave_after or spread(units, settings.depths)
    most = int(_HEAD_SHARE * sum(unit.macs for unit in units))
    passed = [units[index].output_shape for index in leave_after[:-1] if index < len(units)]
    layout = Layout(
        input_shape=chain.cuts[0].shape,
        classes=classes,
        leave_after=leave_after,
        heads=settings.heads,
        grids=tuple(head_side(shape, classes, most) for shape in passed),
        adapters=settings.adapters,
        router=settings.router,
    )
    return _built(chain, units, layout)


def spread(units: tuple[Unit, ...], depths: int) -> tuple[int, ...]:
    """Unit numbers for about so many depths, spread evenly over the MACs; the last unit is always among them."""
    if len(units) <= depths:
        return tuple(range(len(units)))
    total, done, reached = sum(unit.macs for unit in units), 0, []
    for unit in units:
        done += unit.macs
        reached.append(done / total)
    shares = [(place + 1) / depths for place in range(depths - 1)]
    nearest = {min(range(len(units) - 1), key=lambda i: abs(reached[i] - share)) for share in shares}
    return (*sorted(nearest), len(units) - 1)


def rebuild(module: nn.Module, step: Mapping[str, Any]) -> Routed:
    """The skipping network that `Routed.step()` described, around `module`: a new build of the user's network.

    The weights of its exits, adapters and router are random until they are loaded. Raises FileError for a step that
    is damaged or does not fit the module.
    """
    with misfit("router does"):
        layout = from_plain(Layout, {each.name: step[each.name] for each in fields(Layout)})
        chain, found = survey(module, layout.input_shape)
        names = [unit.name for unit in found.units]
        if names != list(step["units"]):
            raise ModelError(f"its units are {', '.join(names[:5])} ... here, {len(names)} of them")
        return _built(chain, found.units, layout)


def _built(chain: Chain, units: tuple[Unit, ...], layout: Layout) -> Routed:
    check_layout(layout, units)
    return Routed(chain, units, layout).to(device_of(chain.program))
