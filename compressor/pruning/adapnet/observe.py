"""Where a group's feature maps are looked at, and the hooks that record them there.

Maps are taken where the group's channels are read: after the activation and before pooling, and for channels that
additions couple, after every addition's activation. The mean of what each reader is given is kept as well, so that
readers can be compensated for filters that go.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.graph.channels import Channels, Group, Site
from compressor.pruning.adapnet.maps import COSINE_IMAGES, REC_BATCHES, Part, draw_images
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.unit import Unit
from compressor.pruning.reconstruction.fold import residuals
from compressor.training.distributed import place_of, summed

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
    return len(site.shape) == 4 and site.dim == 1 and site.shape[2] * site.shape[3] >= FEWEST_PLACES


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
    return View(site.module, _call(channels, site), False, positions, site.shape[2], site.shape[3])


def _input(model: nn.Module, channels: Channels, group: Group, reader: Site, output: View) -> View | None:
    """The reader's input as a view, when it reads maps; its size is told from the output's, which it is at most."""
    module = model.get_submodule(reader.module)
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        return None
    ids = channels.identities[f"{reader.module}.weight", 1]
    positions = _first(ids, group)
    return View(reader.module, _call(channels, reader), True, positions, output.height, output.width)


def _first(ids: np.ndarray[Any, np.dtype[np.int64]], group: Group) -> tuple[int, ...]:
    place = {identity: position for position, identity in reversed(list(enumerate(ids.tolist())))}
    return tuple(place[identity] for identity in group.ids.tolist())


class Means:
    """Mean and mean square of the input of every layer that reads channels, over the recorded batches of a period.

    With `joint` the means of every two inputs' product as well.
    """

    def __init__(self, joint: bool = False) -> None:
        self.joint = joint
        self.sums: dict[str, Tensor] = {}  # (2, inputs) by the name of the reader's weight
        self.products: dict[str, Tensor] = {}  # (inputs, inputs)
        self.batches: dict[str, int] = defaultdict(int)
        self.ids: dict[str, list[int]] = {}  # the channels that these inputs were while they were recorded

    def begin(self, channels: Channels) -> None:
        """Take down which channels the readers are about to be given."""
        places = [place for group in channels.free for place in group.places if place.role == "column"]
        self.ids = {place.tensor: channels.identities[place.tensor, place.dim].tolist() for place in places}

    def add(self, weight: str, given: Tensor, dim: int) -> None:
        """Add one batch that a reader was given, with channels on dimension `dim`, or this process's part of it."""
        others = [d for d in range(given.ndim) if d != dim % given.ndim]
        values = given.detach()
        values = values if values.dtype == torch.float64 else values.float()
        share = len(given) / place_of(len(given))[1]
        moments = summed(torch.stack([values.mean(others), values.square().mean(others)]) * share)
        self.sums[weight] = self.sums[weight] + moments if weight in self.sums else moments
        self.batches[weight] += 1
        if self.joint:
            rows = values.movedim(dim, -1).flatten(0, -2)
            products = summed(rows.T @ rows / len(rows) * share)
            self.products[weight] = self.products[weight] + products if weight in self.products else products

    def covariance(self, group: Group) -> Tensor | None:
        """Covariance of the group's channels (channels, channels), on the host, as a mean over its readers.

        None unless every reader was seen and has one input for each of the channels, as convolutions in groups and
        layers behind a flattened map have not.
        """
        total = torch.zeros(group.size, group.size, dtype=torch.float64)
        for place in group.places:
            if place.role != "column":
                continue
            given, ids = self.products.get(place.tensor), self.ids.get(place.tensor, [])
            if given is None or len(given) != len(ids) or any(ids.count(i) != 1 for i in group.ids.tolist()):
                return None
            at = torch.tensor([ids.index(i) for i in group.ids.tolist()])
            mean = (self.sums[place.tensor][0] / self.batches[place.tensor]).double().cpu()[at]
            moments = (given / self.batches[place.tensor]).double().cpu()[at][:, at]
            found = moments - torch.outer(mean, mean)
            total += found / found.diagonal().mean().clamp(min=1e-300)
        return total

    def _moments(self, weight: str) -> dict[int, tuple[float, float]]:
        """Mean and mean square of every channel that a reader was given; several inputs of one channel are averaged."""
        moments = (self.sums[weight] / self.batches[weight]).double().cpu()
        # A grouped convolution has several times as many inputs as its weight has columns.
        ids = torch.from_numpy(np.resize(np.array(self.ids[weight]), moments.shape[1]))
        known, index = ids.unique(return_inverse=True)
        totals = torch.zeros(2, len(known), dtype=torch.float64).index_add_(1, index, moments)
        means = totals / torch.bincount(index)
        return {identity: (mean, square) for identity, mean, square in zip(known.tolist(), *means.tolist())}

    def of(self, channels: Channels, group: Group) -> dict[int, float] | None:
        """Mean activation by channel, over the group's readers; None when no reader was seen."""
        totals: dict[int, list[float]] = defaultdict(list)
        for place in group.places:
            if place.role == "column" and place.tensor in self.sums:
                for identity, (mean, _) in self._moments(place.tensor).items():
                    totals[identity].append(mean)
        known = {identity: float(np.mean(totals[identity])) for identity in group.ids.tolist() if identity in totals}
        return known if len(known) == group.size else None

    def change(self, model: nn.Module, channels: Channels, group: Group) -> Tensor | None:
        """How much each channel's removal changes what its readers make, once its mean is made up for: (channels,).

        The variance of the channel (where heirs stand in for it, what they do not predict of it) times the squares of
        the weights that read it, as a share of the group's total, summed over the readers; None when a channel was not
        seen by one of them.
        """
        tensors = dict(model.named_parameters())
        ids = group.ids.tolist()
        joint = self.covariance(group) if self.joint else None
        totals = torch.zeros(group.size, dtype=torch.float64)
        for place in group.places:
            if place.role != "column" or place.tensor not in tensors:
                continue
            moments = self._moments(place.tensor) if place.tensor in self.sums else {}
            if not set(ids) <= moments.keys():
                return None
            variance = torch.tensor([moments[i][1] - moments[i][0] ** 2 for i in ids], dtype=torch.float64)
            variance = variance if joint is None else residuals(joint)
            squares = tensors[place.tensor].detach().movedim(place.dim, 0).flatten(1).double().square().sum(1).cpu()
            change = variance.clamp(min=0) * squares[torch.from_numpy(channels.positions(place, ids))].sum(1)
            totals += change / change.sum().clamp(min=1e-300)
        return totals

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        sums = {"sums": dict(self.sums), "products": dict(self.products)}
        return {**sums, "batches": dict(self.batches), "ids": dict(self.ids)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over what `state_dict` gave."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.products = {name: value.to(device) for name, value in state["products"].items()}
        self.batches = defaultdict(int, state["batches"])
        self.ids = dict(state["ids"])


class Watch:
    """The hooks of one period: they record into the units' buffers in those forward passes that `slot` asks for.

    `slot()` gives the number of the recording batch that the next pass is, or None. Only passes in training mode count,
    and of a batch that goes through in pieces only the first.
    """

    def __init__(
        self,
        units: Mapping[str, Unit],
        seen: Mapping[str, tuple[View, ...]],
        means: Means,
        settings: AdapNetSettings,
        generator: torch.Generator,
        slot: Callable[[], int | None],
    ) -> None:
        self.units, self.views, self.means = units, seen, means
        self.settings, self.generator, self.slot = settings, generator, slot
        self._live: int | None = None
        self._last: int | None = None
        self._calls: dict[tuple[str, bool], int] = {}

    @contextmanager
    def on(self, model: nn.Module, readers: Mapping[str, int]) -> Iterator[None]:
        """Attach the hooks to the model; `readers` are the names of weights that read channels, with the dimension."""
        with ExitStack() as handles:
            handles.callback(model.register_forward_pre_hook(self._begin).remove)
            handles.callback(model.register_forward_hook(self._end, always_call=True).remove)
            places: dict[tuple[str, bool], list[tuple[str, int]]] = defaultdict(list)
            for name, its_views in self.views.items():
                for number, view in enumerate(its_views):
                    places[view.module, view.takes_input].append((name, number))
            for (module, takes_input), held in places.items():
                handles.callback(self._attach(model.get_submodule(module), (module, takes_input), held).remove)
            for weight, dim in readers.items():
                owner = model.get_submodule(weight.rpartition(".")[0])
                handles.callback(owner.register_forward_pre_hook(self._reader(weight, dim)).remove)
            yield

    def _attach(self, module: nn.Module, key: tuple[str, bool], held: list[tuple[str, int]]) -> Any:
        if key[1]:
            return module.register_forward_pre_hook(lambda _module, inputs: self._seen(key, held, inputs[0]))
        return module.register_forward_hook(lambda _module, _inputs, output: self._seen(key, held, output))

    def _begin(self, model: nn.Module, _inputs: Any) -> None:
        slot = self.slot() if model.training else None
        self._live = slot if slot != self._last else None
        self._calls = {}

    def _end(self, _model: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._live is not None:
            self._last, self._live = self._live, None

    def _seen(self, key: tuple[str, bool], held: list[tuple[str, int]], tensor: Tensor) -> None:
        if self._live is None:
            return
        call = self._calls.get(key, 0)
        self._calls[key] = call + 1
        for name, number in held:
            its_views = self.views[name]
            if its_views[number].call == call and self._live % len(its_views) == number:
                self._record(self.units[name], its_views[number], tensor)

    def _record(self, unit: Unit, view: View, tensor: Tensor) -> None:
        recording = unit.recording
        if recording is None or recording.full():
            return
        positions = torch.tensor(view.positions, device=tensor.device)
        maps = tensor.detach().index_select(1, positions)
        each = recording.maps.shape[1] // REC_BATCHES
        part = Part(*place_of(len(tensor)))
        images = draw_images(unit.filters, each, part.whole, self.generator)
        recording.add(maps, images, COSINE_IMAGES, unit.frozen, part)

    def _reader(self, weight: str, dim: int) -> Callable[[nn.Module, Any], None]:
        def given(_module: nn.Module, inputs: Any) -> None:
            if self._live is not None and inputs and isinstance(inputs[0], Tensor):
                self.means.add(weight, inputs[0], dim)

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
                elif isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                    found[place.tensor] = 1
    return found
