"""From a model's form to the graphs of its package: one function a form."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compressor.exits.detachable import Detaching
from compressor.exporting.compose import StageMaker
from compressor.exporting.detached import flat_graph, ladder, one_graph, rungs
from compressor.exporting.forms import Form
from compressor.exporting.routed import depth_graph, modules_of, parts_of, routed_graph
from compressor.exporting.samples import in_order
from compressor.routing.network import Routed
from compressor.training.task import called

Graphs = dict[str, Any]  # name -> onnx.ModelProto, its weights in the package's file


def build(form: Form, images: Any, maker: StageMaker, *, separate: bool) -> Graphs:
    """The graph of a model, `model`; `images` (64 or so) flow through it while its parts are exported.

    With `separate` there is a flat graph `exit_K` for each exit besides.
    """
    return _BUILDERS[form.kind](form, images, maker, separate)


def modules(form: Form, images: Tensor) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """What a runtime without branches runs, by name: `model`, or each exit, or each part of a routed network; and what
    it is called with. `run.Network` puts them together.
    """
    if isinstance(form.module, Routed):
        yield from ((name, part, maps) for name, part, maps, _ in modules_of(form.module, images))
    elif len(form.exits) > 1:
        yield from ((flat_name(each.number), each.module, images) for each in form.exits)
    else:
        yield "model", form.module, images


def flat_name(number: int) -> str:
    """The name of an exit's flat graph."""
    return f"exit_{number}"


def _compact(form: Form, inputs: Any, maker: StageMaker, separate: bool) -> Graphs:
    module = form.module if isinstance(inputs, Tensor) else Positional(form.module, inputs, form.names)
    names = ["logits"] if form.gives == 0 else None
    model = maker.make(module, [in_order(inputs, form.names)], form.names, names).model
    return {"model": model, **({flat_name(0): model} if separate else {})}


class Positional(nn.Module):
    """A network of several inputs, called with one tensor after the other."""

    def __init__(self, module: nn.Module, example: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self._names = module, names if isinstance(example, Mapping) else None
        self.training = module.training

    def forward(self, *tensors: Tensor) -> Any:
        """What the network gives."""
        given = tensors if self._names is None else dict(zip(self._names, tensors))
        return called(self.module, given)


def _detachable(form: Form, images: Tensor, maker: StageMaker, separate: bool) -> Graphs:
    assert isinstance(form.module, Detaching)
    parts = rungs(ladder(form.module, images.shape[1:]), images, maker)
    flat = {flat_name(each.number): flat_graph(parts, each.number) for each in form.exits} if separate else {}
    return {"model": one_graph(parts), **flat}


def _routed(form: Form, images: Tensor, maker: StageMaker, separate: bool) -> Graphs:
    assert isinstance(form.module, Routed)
    parts = parts_of(form.module, images, maker)
    flat = {flat_name(each.number): depth_graph(parts, each.number) for each in form.exits} if separate else {}
    return {"model": routed_graph(parts), **flat}


_BUILDERS: dict[str, Callable[[Form, Any, StageMaker, bool], Graphs]] = {
    "compact": _compact,
    "detachable": _detachable,
    "nested": _detachable,
    "routed": _routed,
}
