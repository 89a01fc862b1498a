"""What is known of an operator, and what a trace writes down of every call of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

Kind = Literal["", "activation", "attention", "batch norm", "convolution", "creation", "dropout", "elementwise",
               "layer", "pool", "product", "quotient", "reshape", "resize", "scale", "size", "slice", "softmax",
               "sum"]  # fmt: skip


@dataclass(slots=True, unsafe_hash=True)  # frozen ones take twice as long to make
class TensorRef:
    """A tensor that the trace saw: its number, which an in-place operator keeps, and its shape; never changed."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype


Axis = tuple[TensorRef, int] | int  # a dimension of a tensor, or a number


@dataclass(frozen=True)
class Operator:
    """What is known of an operator: every question about operators is answered here (see `operators.OPERATORS`)."""

    rule: Callable[..., None]  # (walk, op): how it moves the identities of channels, and which of them it ties
    macs: Callable[["Op"], Sequence[Sequence[Axis]]] | None  # its multiply-adds, as products of axes; None: unknown
    kind: Kind = ""
    keeps: Literal["all", "layout", "some"] | None = None  # its values are the operand's: in place, moved, or parts
    makes: bool = False  # its result takes whatever size the code asks for
    sized: bool = False  # it takes a size that the code may have from anywhere
    views: bool = False  # its result lies in the operand's memory, which torch does not mark
    incidental: bool = False  # whether it runs depends on sizes, or on what ran before
    weights: tuple[int, ...] = ()  # which of its arguments may be the weight of a layer
    bias: int | None = None  # which one is added to the result
    outputs_first: bool = False  # whether the weight of a product is (outputs, inputs)
    modules: tuple[type[nn.Module], ...] = ()  # layers that are one call of it
    numbers: int = 0  # how many of its numbers the first of these takes
    clip: Callable[["Op"], tuple[float, float]] | None = None  # between which values its result tells operands apart
    shape: Callable[..., Any] | None = None  # its result on the meta device, where that is quicker than torch's own
    resize: Callable[[fx.Graph, fx.Node], None] | None = None  # frees the sizes that an exported graph holds

    @property
    def is_layer(self) -> bool:
        """Whether it multiplies with weights or matrices: what costs multiply-adds."""
        return self.kind in ("convolution", "product", "attention", "layer")

    @property
    def is_elementwise(self) -> bool:
        """Whether it applies a function to each element, as batch norm does at inference."""
        arithmetic = self.kind in ("activation", "elementwise", "quotient", "scale", "sum")
        return arithmetic or self.kind in ("batch norm", "dropout", "creation", "reshape") or self.keeps == "all"


class Op(NamedTuple):
    """One operator call; tensors among the arguments stand as `TensorRef`."""

    func: torch._ops.OpOverload
    operator: Operator
    name: str  # without namespace, overload and the underscore of in-place forms: "convolution", "add", "view"
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[TensorRef, ...]  # every tensor among the arguments, in order
    outputs: tuple[TensorRef, ...]
    module: str  # dotted name of the innermost module that was running


class ModuleCall(NamedTuple):
    """One call of a module: the operators `ops[start:end]` ran inside it."""

    module: str
    start: int
    end: int
    inputs: tuple[TensorRef, ...]
    outputs: tuple[TensorRef, ...]


Found = tuple[Tensor | None, ...]  # of an operator's outputs those that hold truths or whole numbers


@dataclass
class Trace:
    """What ran, in order. `error` holds the exception that ended an incomplete trace."""

    parameters: dict[int, str] = field(default_factory=dict)  # tensor number -> name in the state dict
    own: int = 0  # lower numbers are those of tensors that the model holds before it runs
    inputs: tuple[TensorRef, ...] = ()
    outputs: tuple[TensorRef, ...] = ()
    gave: tuple[tuple[int, ...], ...] = ()  # the shapes of what the model returned
    left: list[tuple[TensorRef, str]] = field(default_factory=list)  # what else others can read afterwards, and where
    ops: list[Op] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    reads: list[Any] = field(default_factory=list)  # single values that Python read, in order
    found: list[Found] = field(default_factory=list)  # on data, for every operator
    drew: bool = False  # whether what ran may depend on a generator
    strange: bool = False  # whether tensors came from where operators are not seen
    error: Exception | None = None

    @cached_property
    def first_use(self) -> dict[str, int]:
        """For every parameter or buffer that was read, which of them it is, in the order in which they first were."""
        order: dict[str, int] = {}
        for op in self.ops:
            for ref in op.inputs:
                name = self.parameters.get(ref.index)
                if name is not None:
                    order.setdefault(name, len(order))
        return order


class Ran(NamedTuple):
    """One operator call of an outline: its name, its arguments that are no tensors, the shapes of what it gave."""

    operator: Operator
    name: str
    args: tuple[Any, ...]  # None in the place of a tensor or a list of them
    shapes: tuple[tuple[int, ...], ...]  # none of the operator that ended the run


@cache
def plain_name(func: torch._ops.OpOverload) -> str:
    """Without namespace, overload and the underscore of in-place forms: "convolution", "add", "view"."""
    name = func._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def argument(op: Op, *names: str) -> Any:
    """The value of an operator's argument, by the names that it may have in the schema; None where it has none."""
    for position, declared in enumerate(op.func._schema.arguments):
        if declared.name in names:
            given = op.args[position] if position < len(op.args) else op.kwargs.get(declared.name)
            return declared.default_value if given is None and declared.has_default_value() else given
    return None


def dimension(op: Op, ref: TensorRef) -> int:
    """The dimension of an operator's tensor that its argument `dim` names."""
    return int(argument(op, "dim", "axis")) % max(len(ref.shape), 1)
