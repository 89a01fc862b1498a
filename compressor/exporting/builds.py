"""From a model's form to the graphs of its package: one function a form."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from compressor.exporting.forms import Form
from compressor.exporting.manifest import MODEL
from compressor.exporting.stages import StageMaker, outputs_of

Graphs = dict[str, Any]  # file name -> onnx.ModelProto, its weights in the package's file


def build(form: Form, images: Tensor, maker: StageMaker, *, separate: bool) -> Graphs:
    """The graphs of a model; `images` (64 or so) flow through it while its parts are exported.

    With `separate` there is a flat graph for each exit besides.
    """
    return _BUILDERS[form.kind](form, images, maker, separate)


def flat_name(number: int) -> str:
    """The file of an exit's flat graph."""
    return f"exit_{number}.onnx"


def _compact(form: Form, images: Tensor, maker: StageMaker, separate: bool) -> Graphs:
    single = isinstance(outputs_of(form.module, [(images[:2],)])[0], Tensor)
    model = maker.make(form.module, [(images,)], ["input"], ["logits"] if single else None).model
    return {MODEL: model, **({flat_name(0): model} if separate else {})}


_BUILDERS: dict[str, Callable[[Form, Tensor, StageMaker, bool], Graphs]] = {
    "compact": _compact,
}
