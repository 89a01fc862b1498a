"""Run a model once on shapes alone and write down every ATen operator that runs, with the module that ran it.

The model is copied without its data (every tensor moves to the meta device), so a trace costs milliseconds, touches
nothing of the user's, and sees functional calls, bare parameters and control flow alike. A model that needs real
values to run is traced on a real copy instead.
"""

import inspect
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ModelError, cause
from compressor.files.limits import lacks_memory, within_memory
from compressor.graph.held import tensors_in, with_tensors
from compressor.graph.neutral import Draws, bare, neutral, neutrally, seeded
from compressor.graph.outline import Answer, Outline
from compressor.graph.recorder import Recorder, base_of
from compressor.graph.records import Found, ModuleCall, Op, Ran, TensorRef, Trace
from compressor.graph.skeleton import Replica, blank
from compressor.graph.values import Listener
from compressor.report import units

__all__ = ["ModuleCall", "Op", "Ran", "TensorRef", "Trace", "Way", "alike", "call_arguments", "outline", "run", "trace"]


@dataclass(frozen=True)
class Way:
    """One way to run a model."""

    example: Any
    training: bool = False
    entry: str = "forward"  # the method that is called
    seed: int = 0  # at which every generator starts
    found: tuple[tuple[str, Found], ...] = ()  # what operators that no channel reaches give, see Outline
    reads: tuple[Any, ...] = ()  # truths and fractions that Python is told, in order, when it reads single values

    def called(self, model: nn.Module) -> Callable[..., Any]:
        """The model, or that method of it."""
        found: Callable[..., Any] = model if self.entry == "forward" else operator.attrgetter(self.entry)(model)
        return found

    def answer(self, number: int, value: Any) -> Any:
        """What the `number`-th reading gives; whole numbers, which may be sizes, are always read."""
        told = self.reads[number] if number < len(self.reads) else value
        return told if type(told) is type(value) and type(value) in (bool, float) else value


@neutrally
def trace(model: nn.Module, example: Any, *, training: bool = False) -> Trace:
    """Trace `model` on `example` (a tensor with the batch first, or a tuple or dict of them); the model is untouched.

    Raises:
        ModelError: the model does not run on the example.
    """
    model, way = bare(model), Way(example, training)
    result = run(Replica(model), way)
    if result.error is not None:
        result = run(Replica(model, real=True), way)
    if result.error is not None:
        raise refused(example, result.error) from result.error
    return result


def refused(example: Any, error: Exception) -> ModelError:
    """What to raise where a model ended in an error."""
    if isinstance(error, ModelError):
        return error
    shapes = ", ".join(units.shape(tensor.shape) for tensor in tensors_in(example))
    if lacks_memory(error):
        return ModelError(f"there is not enough memory for an input of shape {shapes}: give a smaller one with `input`")
    return ModelError(
        f"the model does not run on an input of shape {shapes} ({cause(error)}); give the right one with `input`"
    )


def run(replica: Replica, way: Way, answer: Answer | None = None) -> Trace:
    """Trace a replica itself; a failure in the middle is kept in `error` beside what ran before it.

    `answer` may tell Python other values than it would read.
    """
    recorder = Recorder(replica, answer or way.answer)
    result = recorder.result
    with alike(replica, way, recorder), recorder.watching():
        try:
            arguments, keywords = _ready(replica, way)
            result.inputs = recorder.refs((arguments, keywords), made=True)
            draws = Draws()
            with recorder:
                output = way.called(replica.model)(*arguments, **keywords)
                carried = tensors_in(output, exhaust=True, besides=replica.modules.values())
            result.reads = recorder.reads
            result.drew = draws.steer(bool(recorder.reads))
            bases = [base_of(tensor) for tensor in carried if type(tensor) is not Tensor]  # unseen by operators
            result.outputs = tuple(recorder.refs([*carried, *(base for base in bases if base is not None)]))
            result.gave = shapes_of(carried)
        except Exception as error:  # any code of the user's may fail on shapes alone, in any way
            result.error = error
            return result
        del arguments, keywords, carried, bases
        replica.values.forget()
        result.left += recorder.survivors()  # what the output holds, opened or not, among them
    return result


@dataclass(frozen=True)
class Outlined:
    """The operators that ran, without who ran them on what, the shapes of what the model returned, and what ended the
    run before its end.
    """

    ops: list[Ran]
    gave: tuple[tuple[int, ...], ...] = ()
    error: Exception | None = None


def shapes_of(tensors: Iterable[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in tensors)


def outline(replica: Replica, way: Way) -> Outlined:
    """Run a replica and see what it does."""
    recorder = Outline(replica, way.answer, way.found)
    with alike(replica, way), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that a trial has not learnt yet; a user may have them raise
        try:
            arguments, keywords = _ready(replica, way)
            with recorder:
                output = way.called(replica.model)(*arguments, **keywords)
                carried = tensors_in(output, exhaust=True, besides=replica.modules.values())
        except Exception as error:  # any code of the user's may fail on shapes alone, in any way
            return Outlined(recorder.ops, error=error)
        return Outlined(recorder.ops, shapes_of(carried))


@contextmanager
def alike(replica: Replica, way: Way, listener: Listener | None = None) -> Iterator[None]:
    """A run inside starts from the same state as every other one, and leaves everything as it was."""
    bounds = nullcontext() if replica.device.type == "meta" else within_memory()
    with neutral(), torch.no_grad(), seeded(way.seed), bounds, replica.values.watched(listener):
        try:
            replica.set_mode(way.training)
            with replica.state.kept():
                yield
        finally:
            replica.values.forget()


def _ready(replica: Replica, way: Way) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = with_tensors(way.example, lambda tensor: _moved(tensor, replica.device))
    return call_arguments(given, way.called(replica.model))


def call_arguments(example: Any, called: Callable[..., Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How an example is passed to a module or a function: a mapping as keywords, a tuple or list as positions, all else
    alone.

    A mapping or a named tuple that is no set of its arguments is passed alone, too.
    """
    called = called.forward if isinstance(called, nn.Module) else called
    if isinstance(example, Mapping):
        return ((), dict(example)) if _takes(called, **example) else ((example,), {})
    if isinstance(example, list | tuple):
        plain = not hasattr(example, "_fields") or _takes(called, *example)
        return (tuple(example) if plain else (example,)), {}
    return (example,), {}


def _takes(called: Callable[..., Any], *positions: Any, **keywords: Any) -> bool:
    try:
        inspect.signature(called).bind(*positions, **keywords)
    except TypeError:
        return False
    except ValueError:  # it has none
        pass
    return True


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return blank(tensor) if device.type == "meta" else tensor.detach().to(device).clone()
