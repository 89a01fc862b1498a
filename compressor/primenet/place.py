"""Where the early stage of a user's network may end, what it costs, and what the block in its place would."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from compressor.errors import FileError, ModelError, UsageError, did_you_mean, listed, misfit
from compressor.graph.cuts import Chain, Cut, tail
from compressor.graph.names import module_named, names_of
from compressor.graph.operators import CONVOLUTIONS, LAYERS
from compressor.graph.program import module_of
from compressor.graph.tensors import device_of
from compressor.primenet.network import PrimeNetwork, PrimeStage, build_stage
from compressor.primenet.settings import PrimeNetSettings
from compressor.profiling.costs import macs_of
from compressor.report import units

PAYS = 2.0  # the automatic choice wants this many times the block's multiply-adds gone
_NAMED_AT_MOST = 12  # places listed in a message


@dataclass(frozen=True)
class Place:
    """A cut at which the early stage may end, and the cost of either stage for one image."""

    until: str  # the module that ends there; "" for code outside any module
    cut: Cut
    removed: int  # multiply-adds of what is before the cut
    block: dict[int, int]  # scale -> multiply-adds of the stage with this one capsule

    @property
    def where(self) -> str:
        """The place in words."""
        return f"until {self.until}" if self.until else f"up to {units.shape(self.cut.shape)}"

    @property
    def typical(self) -> int:
        """Multiply-adds of the stage with the middle one of its scales: 5x5 of 3, 5 and 7."""
        scales = sorted(self.block)
        return self.block[scales[len(scales) // 2]]

    @property
    def pays(self) -> bool:
        """Whether enough goes for a stage to be replaced unasked."""
        return self.removed >= PAYS * self.typical


class Early:
    """A user's network, cut for the replacement of its first layers."""

    def __init__(self, model: nn.Module, image: tuple[int, ...], classes: int, settings: PrimeNetSettings) -> None:
        """`image` is (channels, height, width).

        Raises ModelError for a network that cannot be written as one graph, or does not begin with a convolution.
        """
        if len(image) != 3:
            raise ModelError(f"the network takes inputs of shape {image}, the block images (channels, height, width)")
        self.model, self.image, self.classes, self.settings = model, tuple(image), classes, settings
        self.device = device_of(model)
        self.chain = Chain(model, torch.zeros(1, *image, device=self.device))
        self.end = len(self.chain.cuts) - 1
        first = next((name for name in self.chain.operators(0, self.end) if name in LAYERS), "nothing that learns")
        if first not in CONVOLUTIONS:
            raise ModelError(
                f"the network begins with {first}, not with a convolution: the block replaces early convolutions"
            )

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """Every cut in front of a convolution or a block of them, with a convolution before it, in order."""
        inner = self.chain.cuts[1 : self.end]
        return tuple(cut for cut in inner if self._ends_here(cut) and cut.operator in CONVOLUTIONS)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The same, with their costs."""
        return tuple(self.place(cut) for cut in self.cuts)

    def place(self, cut: Cut) -> Place:
        """What replacing everything before a cut would save and cost."""
        removed = sum(self._segment_macs[: cut.index])
        with torch.device("meta"):  # a cost takes no memory and no random numbers
            stage = self.stage(cut)
        capsules = {scale: macs_of(stage.block.capsules[str(scale)], self.image) for scale in stage.block.scales}
        projection = macs_of(stage.projection, self.image)
        block = {scale: capsule + projection for scale, capsule in capsules.items()}
        return Place(self._name(cut), cut, removed, block)

    def find(self, until: str) -> Cut:
        """The cut at which the module `until` ends.

        Raises UsageError, naming legal ones, for a module that does not exist, or at whose end several tensors or none
        of the right shape carry the flow.
        """
        asked, until = until, module_named(until, self._names, self._modules) or ""
        if not until:
            hint = did_you_mean(asked, self._names)
            raise UsageError(f"`until` {asked}: the network has no such module{hint}; {self._legal()}")
        inside = [cut for cut in self.chain.cuts[1:] if _within(cut.made_by, until)]
        if not inside or self._goes_on(inside[-1], until):
            raise UsageError(f"`until` {until}: several tensors cross where it ends; {self._legal()}")
        if not self._ends_here(inside[-1]):
            raise UsageError(f"`until` {until}: the block cannot make what leaves there; {self._legal()}")
        return inside[-1]

    def choose(self) -> Place:
        """The earliest place where the stage before it costs at least twice the block with its middle scale.

        Raises ModelError when there is none, with the best one and its figures.
        """
        if not self.places:
            raise ModelError("the network has no place where one feature map alone carries the flow to a convolution")
        paying = next((place for place in self.places if place.pays), None)
        if paying is not None:
            return paying
        best = max(self.places, key=lambda place: place.removed / place.typical)
        with_stride = "" if self.settings.fit == "stride" else ", or `fit` stride, which makes the block cheaper"
        raise ModelError(
            f"the block does not pay anywhere in this network: at best, {best.where}, it costs "
            f"{best.typical / 1e6:.1f} M MACs where {best.removed / 1e6:.1f} M would go; name a stage with `until` to "
            f"do it all the same{with_stride}"
        )

    def replaced(self, cut: Cut) -> PrimeNetwork:
        """A network with a new stage in place of everything before the cut, on the model's own layers behind it."""
        rest = tail(self.chain, self.model, cut.index, self.end, "shared")
        stage = self.stage(cut).to(self.device)
        return PrimeNetwork(stage, rest, self.settings, self._origin(cut)).train(self.model.training)

    def stage(self, cut: Cut) -> PrimeStage:
        """A new stage whose output has the shape of the tensor at the cut: half projection, half the winner's maps."""
        channels, height, width = cut.shape
        projected = channels // 2
        return build_stage(
            self.image,
            self.classes,
            self.settings,
            filters=channels - projected,
            projected=projected,
            size=(height, width),
        )

    def _origin(self, cut: Cut) -> dict[str, Any]:
        return {
            "until": self._name(cut),
            "cut": cut.index,
            "shape": list(cut.shape),
            "image": list(self.image),
            "classes": self.classes,
            "scales": list(self.settings.scales),
            "reduced": self.settings.reduced,
            "fit": self.settings.fit,
        }

    def _ends_here(self, cut: Cut) -> bool:
        """Whether the block can stand for what is before the cut: it makes such maps, and there is one to replace."""
        if len(cut.shape) != 3 or cut.shape[0] < 2 or cut.index == self.end:
            return False
        smaller = all(size <= pixels for size, pixels in zip(cut.shape[1:], self.image[1:], strict=True))
        return smaller and not CONVOLUTIONS.isdisjoint(self.chain.operators(0, cut.index))

    def _goes_on(self, cut: Cut, until: str) -> bool:
        """Whether the module still computes something behind the cut."""
        if cut.index == self.end:
            return False
        behind = self.chain.segment(cut.index, self.end).graph.nodes
        return any(node.op == "call_function" and _within(module_of(node), until) for node in behind)

    @cached_property
    def _modules(self) -> frozenset[str]:
        """Every module's name; of an exported program also those of modules without weights, which it ran in."""
        ran = (cut.made_by.split(".") for cut in self.chain.cuts)
        inside = (".".join(parts[:length]) for parts in ran for length in range(1, len(parts) + 1))
        return frozenset((*(name for name, _ in self.model.named_modules()), *inside))

    @cached_property
    def _names(self) -> dict[str, str]:
        """The modules' names and those of what they hold, each with the first name of the same thing."""
        return {name: name for name in self._modules if name} | names_of(self.model)

    @cached_property
    def _segment_macs(self) -> list[int]:
        return [macs_of(self.chain.segment(i, i + 1), self.chain.cuts[i].shape) for i in range(self.end)]

    def _name(self, cut: Cut) -> str:
        """The outermost module that ends at the cut."""
        parts = cut.made_by.split(".") if cut.made_by else []
        for length in range(1, len(parts)):
            name = ".".join(parts[:length])
            if not _within(cut.read_by, name) and not self._goes_on(cut, name):
                return name
        return cut.made_by

    def _legal(self) -> str:
        """Where a stage may end, by name: in front of convolutions, or, where functions stand between, before those."""
        names = [self._name(cut) for cut in self.cuts]
        if not any(names):
            names = [self._name(cut) for cut in self.chain.cuts[1 : self.end] if self._ends_here(cut)]
        return f"it may end at {_listed(filter(None, names))}"


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _listed(names: Iterable[str]) -> str:
    return listed(dict.fromkeys(names), _NAMED_AT_MOST) or "no named module"


def rebuild(module: nn.Module, step: Mapping[str, Any]) -> PrimeNetwork:
    """The network that `step()` described, around `module`: a new build of the user's, or a PrimeNet itself.

    The weights are random until they are loaded. Raises FileError for a step that does not fit the module.
    """
    with misfit("block does"):
        scales, origin, learning = [int(scale) for scale in step["scales"]], step["origin"], bool(step["learning"])
        network = module if isinstance(module, PrimeNetwork) else _replaced(module, origin)
        if not set(scales) <= set(network.stage.block.scales):
            raise FileError(f"the checkpoint keeps scales {scales}, which its block does not have: it is damaged")
    if not learning and network.stage.block.learning:
        network.stage.block.settle_(scales)
    return network


def _replaced(module: nn.Module, origin: Mapping[str, Any]) -> PrimeNetwork:
    scales, image = tuple(map(int, origin["scales"])), tuple(map(int, origin["image"]))
    settings = replace(PrimeNetSettings(), scales=scales, reduced=int(origin["reduced"]), fit=origin["fit"])
    early = Early(module, image, int(origin["classes"]), settings)
    shape = tuple(map(int, origin["shape"]))
    cuts = early.chain.cuts
    if origin["until"]:
        cut = early.find(str(origin["until"]))
    else:  # made by code outside any module: only its number says which
        cut = cuts[min(int(origin["cut"]), len(cuts) - 1)]
    if cut.shape != shape:
        raise FileError(f"the checkpoint's stage ends at {shape}, the architecture has {cut.shape} there: give its own")
    return early.replaced(cut)
