"""Where a group's feature maps are looked at, and the hooks that record them there.

Maps are taken where the group's channels are read: after the activation and before pooling, and for channels that
additions couple, after every addition's activation. Those of one dimension are a line, those of three lie below each
other, slice by slice. Moments of what each reader is given are taken as well, so that readers can be compensated for
filters that go.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.graph.channels import Channels, Group, Site
from compressor.pruning.adapnet.maps import REC_BATCHES, Part, Shown, draw_images, moments, show
from compressor.pruning.adapnet.neighbours import CONVOLUTIONS
from compressor.pruning.adapnet.unit import Unit

# A map of fewer places has no pattern once it is normalised.
FEWEST_PLACES = 4


@dataclass(frozen=True)
class View:
    """One tensor that carries a group's channels as maps: the output (or first input) of one call of a module."""

    module: str
    call: int  # which of the module's calls in one forward pass
    takes_input: bool
    positions: tuple[int, ...]  # of the group's channels on dimension 1
    height: int
    width: int


def views(model: nn.Module, channels: Channels, group: Group) -> tuple[View, ...]:
    """The group's observation points, in the order of execution; empty when no map has at least four places."""
    sites = [site for site in channels.sites(group) if _holds_maps(site)]
    sites = [site for site in sites if len(site.shape) == 4] or sites  # others may be images that were flattened
    makers = set(group.producers)
    found: dict[tuple[str, int, bool], View] = {}
    for reader, order in _readings(channels, group):
        before = [s for s in sites if s.order < order and (s.elementwise or s.module in makers)]
        if not before:
            continue
        view = _output(channels, group, before[-1])
        if not before[-1].elementwise and reader is not None:
            # The activation is no module: what the reader is given shows it.
            view = _input(model, channels, group, reader, view) or view
        found.setdefault((view.module, view.call, view.takes_input), view)
    return tuple(found.values())


def _holds_maps(site: Site) -> bool:
    return len(site.shape) > 2 and site.dim == 1 and math.prod(site.shape[2:]) >= FEWEST_PLACES


def _readings(channels: Channels, group: Group) -> list[tuple[Site | None, float]]:
    """The calls of modules that read the group, and when; its end when there is none that can be told."""
    names = {place.tensor.rpartition(".")[0] for place in group.places if place.role == "column"}
    calls = {(site.module, site.order): site for site in channels.sites_by_module if site.module in names}
    ordered = sorted(calls.values(), key=lambda site: site.order)
    return [(site, site.order) for site in ordered] or [(None, float("inf"))]


def _call(channels: Channels, site: Site) -> int:
    orders = sorted({other.order for other in channels.sites_by_module if other.module == site.module})
    return orders.index(site.order)


def _output(channels: Channels, group: Group, site: Site) -> View:
    positions = _first(site.ids, group)
    return View(site.module, _call(channels, site), False, positions, math.prod(site.shape[2:-1]), site.shape[-1])


def _input(model: nn.Module, channels: Channels, group: Group, reader: Site, output: View) -> View | None:
    """The reader's input as a view, when it reads maps; its size is told from the output's, which it is at most."""
    module = model.get_submodule(reader.module)
    if not isinstance(module, CONVOLUTIONS) or module.groups != 1:
        return None
    ids = channels.identities[f"{reader.module}.weight", 1]
    positions = _first(ids, group)
    return View(reader.module, _call(channels, reader), True, positions, output.height, output.width)


def _first(ids: np.ndarray[Any, np.dtype[np.int64]], group: Group) -> tuple[int, ...]:
    place = {identity: position for position, identity in reversed(list(enumerate(ids.tolist())))}
    return tuple(place[identity] for identity in group.ids.tolist())


@dataclass
class Seen:
    """What one recorded batch showed, as plain data; of several processes each has its part, until a caller has added
    them up.
    """

    maps: dict[str, Shown] = field(default_factory=dict)  # by group
    moments: list[tuple[str, Tensor]] = field(default_factory=list)  # by the weight that reads them, once a call

    def over(self, add: Callable[[Tensor], Tensor], largest: Callable[[Tensor], Tensor]) -> "Seen":
        """The whole batch's, by the sum and the element-wise maximum over the processes."""
        maps = {name: shown.over(add, largest) for name, shown in self.maps.items()}
        return Seen(maps, [(weight, add(moments)) for weight, moments in self.moments])


class Watch:
    """Looks at forward passes of one period, those that `slot` asks for; `take` gives what was seen.

    Hooks are there while `on` lasts: over all passes of a period, or over those alone that are looked at.

    `readers` are as `reader_inputs` gives them. `slot()` gives the number of the recording batch that the next pass is,
    or None; `part(count)` which part of the batch these images are. Only passes in training mode count, and of a batch
    that goes through in pieces only the first.
    """

    def __init__(
        self,
        units: Mapping[str, Unit],
        seen: Mapping[str, tuple[View, ...]],
        readers: Mapping[str, int],
        generator: torch.Generator,
        slot: Callable[[], int | None],
        part: Callable[[int], tuple[int, int]],
    ) -> None:
        self.units, self.views, self.readers = units, seen, readers
        self.generator, self.slot, self.part = generator, slot, part
        self.seen: Seen | None = None
        self._live: int | None = None
        self._last: int | None = None
        self._calls: dict[tuple[str, bool], int] = {}

    def take(self) -> Seen | None:
        """What was seen since the last time; None where no pass was to be recorded."""
        seen, self.seen = self.seen, None
        return seen

    @contextmanager
    def on(self, model: nn.Module) -> Iterator["Watch"]:
        """Attach the hooks to the model."""
        with ExitStack() as handles:
            handles.callback(model.register_forward_pre_hook(self.begin).remove)
            handles.callback(model.register_forward_hook(self._end, always_call=True).remove)
            places: dict[tuple[str, bool], list[tuple[str, int]]] = defaultdict(list)
            for name, its_views in self.views.items():
                for number, view in enumerate(its_views):
                    places[view.module, view.takes_input].append((name, number))
            for (module, takes_input), held in places.items():
                handles.callback(self._attach(model.get_submodule(module), (module, takes_input), held).remove)
            for weight, dim in self.readers.items():
                owner = model.get_submodule(weight.rpartition(".")[0])
                handles.callback(owner.register_forward_pre_hook(self._reader(weight, dim)).remove)
            yield self

    def _attach(self, module: nn.Module, key: tuple[str, bool], held: list[tuple[str, int]]) -> Any:
        if key[1]:
            return module.register_forward_pre_hook(lambda _module, inputs: self._look(key, held, inputs[0]))
        return module.register_forward_hook(lambda _module, _inputs, output: self._look(key, held, output))

    def begin(self, model: nn.Module, _inputs: Any) -> None:
        """A forward pass begins."""
        slot = self.slot() if model.training else None
        self._live = slot if slot != self._last else None
        self._calls = {}
        if self._live is not None:
            self.seen = Seen()

    def _end(self, _model: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._live is not None:
            self._last, self._live = self._live, None

    def _look(self, key: tuple[str, bool], held: list[tuple[str, int]], tensor: Tensor) -> None:
        if self._live is None or self.seen is None:
            return
        call = self._calls.get(key, 0)
        self._calls[key] = call + 1
        for name, number in held:
            view = self.views[name][number]
            if view.call == call and self._live % len(self.views[name]) == number:
                unit, part = self.units[name], Part(*self.part(len(tensor)))
                assert unit.recording is not None
                maps = tensor.detach().index_select(1, torch.tensor(view.positions, device=tensor.device))
                maps = maps.reshape(*maps.shape[:2], -1, maps.shape[-1])
                each = unit.recording.maps.shape[1] // REC_BATCHES
                images = draw_images(unit.filters, each, part.whole, self.generator)
                self.seen.maps[name] = show(maps, images, unit.size, part)

    def _reader(self, weight: str, dim: int) -> Callable[[nn.Module, Any], None]:
        def given(_module: nn.Module, inputs: Any) -> None:
            if self._live is not None and self.seen is not None and inputs and isinstance(inputs[0], Tensor):
                share = len(inputs[0]) / self.part(len(inputs[0]))[1]
                self.seen.moments.append((weight, moments(inputs[0], dim, share)))

        return given


def reader_inputs(model: nn.Module, channels: Channels) -> dict[str, int]:
    """Weights that read channels, with the dimension of their layer's input that holds these: convolutions, linear."""
    found = {}
    for group in channels.free:
        for place in group.places:
            module, _, name = place.tensor.rpartition(".")
            if place.role == "column" and name == "weight":
                owner = model.get_submodule(module)
                if isinstance(owner, nn.Linear):
                    found[place.tensor] = -1
                elif isinstance(owner, CONVOLUTIONS):
                    found[place.tensor] = 1
    return found
