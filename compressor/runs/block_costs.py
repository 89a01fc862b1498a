"""What blocks of a network cost, in what a target is given: multiply-adds, or milliseconds of a runtime here."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from compressor.errors import ModelError, UsageError
from compressor.exporting.latency import Compared, profile, side_by_side
from compressor.exporting.onnx import export_onnx
from compressor.graph.blocks import Block
from compressor.graph.skeleton import skeleton
from compressor.graph.trace import TensorRef, trace
from compressor.profiling.costs import macs_of
from compressor.pruning.blocks import Shortening, Step
from compressor.pruning.price import Goal, Price, in_words
from compressor.pruning.settings import PruneSettings, in_time
from compressor.pruning.target import TOLERANCE
from compressor.runs.latency_goal import TOLERANCE as TIME_TOLERANCE
from compressor.runs.latency_goal import check_timed, target_in_ms
from compressor.runs.latency_goal import in_words as time_in_words
from compressor.runs.stages import Callback, Stage, silent
from compressor.surgery.blocks import replace_blocks_
from compressor.surgery.edits import BlockEdit

_CORRECTIONS = 3  # of a plan that takes another time than predicted


@contextmanager
def block_costs(
    module: nn.Module, example: Any, choice: PruneSettings, tell: Callback = silent
) -> Iterator["BlockCosts"]:
    """Costs in what the target of the settings is given; what was timed once is known as long.

    Raises:
        UsageError: there is no target, or the network takes several inputs.
    """
    if not isinstance(example, Tensor):
        raise UsageError("blocks are looked for in models of one input")
    if choice.target_macs is None and not in_time(choice):
        raise UsageError("blocks go until a target is met: give `target_macs`, `target_ms` or `speedup`")
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        kind = _InTime if in_time(choice) else BlockCosts
        yield kind(module, example, choice, tell, Path(folder))


class BlockCosts:
    """Costs of blocks in multiply-adds."""

    tolerance = TOLERANCE

    def __init__(self, module: nn.Module, example: Tensor, choice: PruneSettings, tell: Callback, folder: Path) -> None:
        self.module, self.example, self.choice, self.tell, self.folder = module, example, choice, tell, folder

    @cached_property
    def goal(self) -> Goal:
        """What is asked for, and what the network costs."""
        assert self.choice.target_macs is not None
        whole = profile(self.module, self.example, layers=False).macs
        return Goal.of(Price("MACs", (), whole), self.choice.target_macs)

    def cost(self, block: Block) -> float:
        """Of the block as it is."""
        return self._of(block.part, block)

    def saving(self, block: Block, convolution: nn.Module | None) -> float:
        """Of the block without its branch, or with a convolution there."""
        return self.cost(block) - self._of(block.replaced(convolution), block)

    def _of(self, part: fx.GraphModule, block: Block) -> float:
        return macs_of(part, block.given)

    def met(self, order: Shortening, target: float) -> tuple[list[Step], float, *tuple[str, ...]]:
        """The steps that meet a target, the cost then, and what a person should know."""
        whole, most = self.goal.price.whole(), target * (1 + TOLERANCE)
        steps = order.until(whole - most)
        left = whole - steps[-1].saved
        if left > most:
            raise self._unreachable(target, left)
        return steps, left

    def _unreachable(self, target: float, least: float) -> ModelError:
        unit = self.goal.price.unit
        return ModelError(
            f"{in_words(target, unit)} cannot be reached: with every block replaced that may be "
            f"{in_words(least, unit)} remain; ask for more, and prune the channels of the result"
        )


class _InTime(BlockCosts):
    """The same in milliseconds of a runtime on this machine."""

    tolerance = TIME_TOLERANCE

    def __init__(self, module: nn.Module, example: Tensor, choice: PruneSettings, tell: Callback, folder: Path) -> None:
        super().__init__(module, example[:1], choice, tell, folder)
        check_timed(example, choice)
        self._known: dict[Any, float] = {}
        tell(Stage("timing the blocks and what could replace them"))

    @cached_property
    def goal(self) -> Goal:
        """By the network timed as it came."""
        whole = self._beside(self._whole).before
        return Goal.at(Price("ms", (), whole), target_in_ms(self.choice, whole))

    def _of(self, part: fx.GraphModule, block: Block) -> float:
        key = _alike(part, self.example.new_zeros(1, *block.given))
        if key and key not in self._known:
            self._known[key] = self._timed(part, block)
        return self._known[key] if key else 0.0

    def _timed(self, part: fx.GraphModule, block: Block) -> float:
        file, shape = self.folder / "block.onnx", (1, *block.given)
        export_onnx(part, self.example.new_zeros(shape), file)
        return min(ms for (ms,) in side_by_side((file,), shape, self.choice.threads, runtime=self.choice.runtime))

    def met(self, order: Shortening, target: float) -> tuple[list[Step], float, *tuple[str, ...]]:
        """Each plan is timed beside the network as it came; where it is off, the next asks for more or less."""
        whole = self.goal.price.whole()
        wanted, tried = whole - target, []
        for number in range(1 + _CORRECTIONS):
            steps = order.until(wanted)
            self.tell(Stage(f"timing plan {number + 1}, which should take {whole - steps[-1].saved:.3g} ms"))
            found = self._beside(self._edited(order.plain(steps)))
            ms = found.ratio * whole
            tried.append((ms > target * (1 + TIME_TOLERANCE), abs(ms - target), ms, steps, found))
            if abs(ms / target - 1) <= TIME_TOLERANCE or (ms > target and steps[-1].saved < wanted):
                break
            wanted *= (whole - target) / max(whole - ms, 0.1 * (whole - target))
        missed, _, ms, steps, found = min(tried, key=lambda each: each[:2])
        if missed and steps[-1].saved < wanted:
            raise self._unreachable(target, ms)
        found = replace(found, before=whole, after=ms)
        return steps, ms, time_in_words(found, self.choice.runtime, whole - steps[-1].saved)

    @cached_property
    def _whole(self) -> Path:
        return self._exported(skeleton(self.module, real=True), "before.onnx")

    def _edited(self, edits: Sequence[BlockEdit]) -> Path:
        edited = skeleton(self.module, real=True)
        replace_blocks_(edited, edits, self.example)
        return self._exported(edited, "after.onnx")

    def _exported(self, module: nn.Module, name: str) -> Path:
        export_onnx(module, self.example, self.folder / name)
        return self.folder / name

    def _beside(self, file: Path) -> Compared:
        shape, choice = tuple(self.example.shape), self.choice
        return Compared.of(side_by_side((self._whole, file), shape, choice.threads, runtime=choice.runtime))


def _alike(part: fx.GraphModule, example: Tensor) -> tuple[Any, ...]:
    """What parts that take the same time have in common: operators, and the shapes that they are given."""
    found = []
    for op in trace(part, example).ops:
        numbers = [each for each in op.args if not isinstance(each, TensorRef)]
        found.append((op.name, tuple(ref.shape for ref in op.inputs), str(numbers)))
    return tuple(found)
