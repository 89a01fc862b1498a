"""A network of equal layers that come off one by one, every model reading the same input.

Reference: Fuengfusin and Tamukoh, "Network with Sub-networks: Layer-wise Detachable Neural Network" (NSN), section 3.
The paper has multilayer perceptrons whose hidden layers are as wide as the input. Ours also takes a run of equal
layers or blocks in the middle of a network; what stands before and behind the run then belongs to every model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compressor.errors import ModelError, UsageError, misfit
from compressor.exits.detachable import Detaching
from compressor.exits.points import Survey, begins
from compressor.exits.settings import DetachSettings
from compressor.graph.cuts import Norms, tail
from compressor.graph.operators import LAYERS, of_kind

KIND = "nsn"  # of the entry among a checkpoint's steps


@dataclass(frozen=True)
class Run:
    """Where equal layers begin and end: cut indices, the first layer's first; the layers are between neighbours."""

    cuts: tuple[int, ...]
    shape: tuple[int, ...]  # of every layer's input and output, without the batch

    @property
    def layers(self) -> int:
        """The number of layers that can come off."""
        return len(self.cuts) - 1


class Stack(nn.Module):
    """One of the models: what is before the run, some of the run's last layers, what is behind it.

    Dropout is on the input and behind every layer, in training; a model without layers of the run has none.
    """

    def __init__(
        self, stem: nn.Module, layers: Sequence[nn.Module], rest: nn.Module, keep: tuple[float, float]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.layers = nn.ModuleList(layers)
        self.rest = rest
        self.input_dropout = nn.Dropout(1 - keep[0]) if layers else nn.Identity()
        self.hidden_dropout = nn.Dropout(1 - keep[1]) if layers else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        h = self.input_dropout(self.stem(x))
        for layer in self.layers:
            h = self.hidden_dropout(layer(h))
        return self.rest(h)


class Nested(Detaching):
    """A base whose exit k is the base without the run's first k layers."""

    def __init__(self, base: nn.Module, stacks: Sequence[Stack], step: Mapping[str, Any]) -> None:
        super().__init__(base, step["at"][1:], step["bn"])
        self.stacks = nn.ModuleList(stacks)
        self._step = dict(step)
        self._share()

    def learners(self) -> list[nn.Module]:
        """Every model as it is trained, with its dropout, the base first."""
        return list(self.stacks)

    def step(self) -> dict[str, Any]:
        """How to make this of its base again, as plain data; `rebuild` takes it."""
        return {**self._step, "bn": self.norms}


def find_run(found: Survey, start: str | None = None) -> Run:
    """The layers that can come off one by one: from the network's first one on, or from the layer of a given name.

    Raises ModelError where there is no layer whose output is as large as its input, or where the first is no layer of
    a multilayer perceptron and none is named; UsageError for an unknown name.
    """
    cuts, chain = found.chain.cuts, found.chain
    weighted = [i for i in range(found.end) if not LAYERS.isdisjoint(chain.operators(i, i + 1))]
    if start is None:
        if found.convolutional:
            raise ModelError(
                "the network has convolutions, and NSN takes multilayer perceptrons: use `method` cnsn, or name the "
                "first of a run of equal blocks with `at`"
            )
        begin = weighted[0] if weighted else 0
    else:
        named = [i for i in weighted if begins(start, found.names[i], cuts[i])]
        if not named:
            known = ", ".join(found.names[i] for i in weighted)
            raise UsageError(f"no layer begins at {start!r} where one tensor alone carries the flow; those are {known}")
        begin = named[0]
    run = [i for i in weighted if i >= begin]
    end = next((place for place, i in enumerate(run) if cuts[i].shape != cuts[begin].shape), len(run))
    if end < 2:
        raise ModelError(_no_run(found, cuts[begin].shape, start))
    return Run(tuple(run[:end]), cuts[begin].shape)


def _no_run(found: Survey, shape: tuple[int, ...], start: str | None) -> str:
    if start is not None:
        return f"the layer at {start} gives another shape than it takes, so no sub-model can start behind it"
    return (
        f"the network has no hidden layer as wide as its input ({shape[0]}), so no sub-model can read the input: "
        "give a perceptron such as 784-784-784-10"
    )


def make_nested(found: Survey, settings: DetachSettings) -> Nested:
    """The base, which becomes part of the result, and its sub-models.

    Dropout is the settings', where the base has none of its own and the run is of vectors. Raises ModelError where no
    layer can come off, UsageError where fewer can than were asked for.
    """
    if len(settings.at) > 1 or settings.targets:
        raise UsageError("NSN takes layers off one by one: give the number with `exits`, a first layer with one `at`")
    run = find_run(found, settings.at[0] if settings.at else None)
    exits = run.layers if settings.exits is None else settings.exits
    if not 1 <= exits <= run.layers:
        raise UsageError(f"{exits} exits were asked for, and {run.layers} hidden layers can come off: give 1 to that")
    plain = len(run.shape) == 1 and of_kind("dropout").isdisjoint(found.chain.operators(0, found.end))
    for keep in (settings.keep_input, settings.keep_hidden):
        if not 0 < keep <= 1:
            raise UsageError(f"{keep:g} is no probability of keeping a unit: give more than 0, at most 1")
    return _make(
        found,
        run,
        {
            "kind": KIND,
            "input_shape": list(found.input_shape),
            "at": [found.names[index] for index in run.cuts[: exits + 1]],
            "layers": run.layers,
            "bn": settings.norms,
            "keep": [settings.keep_input, settings.keep_hidden] if plain else [1.0, 1.0],
        },
    )


def _make(found: Survey, run: Run, step: Mapping[str, Any]) -> Nested:
    chain, base = found.chain, found.base
    keep = (float(step["keep"][0]), float(step["keep"][1]))
    stacks = []
    for exit in range(len(step["at"])):
        norms: Norms = "shared" if exit == 0 else step["bn"]
        stem = tail(chain, base, 0, run.cuts[0], norms) if run.cuts[0] else nn.Identity()
        layers = [tail(chain, base, a, b, norms) for a, b in zip(run.cuts[exit:-1], run.cuts[exit + 1 :])]
        stacks.append(Stack(stem, layers, tail(chain, base, run.cuts[-1], found.end, norms), keep))
    return Nested(base, stacks, step)


def rebuild(base: nn.Module, step: Mapping[str, Any]) -> Nested:
    """Take a base's layers off again as a checkpoint's entry says.

    Raises FileError for an entry that does not fit the base.
    """
    with misfit("sub-models do"):
        found = Survey(base, tuple(int(size) for size in step["input_shape"]))
        run = find_run(found, str(step["at"][0]))
        if run.layers < int(step["layers"]) or not 2 <= len(step["at"]) <= int(step["layers"]) + 1:
            raise ValueError(f"{run.layers} layers can come off")
        return _make(found, Run(run.cuts[: int(step["layers"]) + 1], run.shape), step)
