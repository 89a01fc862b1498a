"""Choose which blocks of a network are replaced by less, until a target in multiply-adds or milliseconds is met."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from compressor.errors import FileError, ModelError, UsageError
from compressor.exporting.latency import Compared, profile, side_by_side
from compressor.exporting.onnx import export_onnx
from compressor.graph import capture
from compressor.graph.blocks import Block, find_blocks
from compressor.graph.names import matching, names_of
from compressor.graph.skeleton import skeleton
from compressor.graph.tensors import named_tensors
from compressor.graph.trace import TensorRef, trace
from compressor.profiling.costs import macs_of
from compressor.pruning.blocks import Option, Progress, Shortening, Step, options
from compressor.pruning.price import Goal, Price, in_words
from compressor.pruning.reconstruction import Reconstruction, no_progress, reconstruct_
from compressor.pruning.settings import PruneSettings, in_time
from compressor.pruning.target import TOLERANCE
from compressor.report import units
from compressor.report.measurements import Profile
from compressor.runs.latency_goal import TOLERANCE as TIME_TOLERANCE
from compressor.runs.latency_goal import check_timed, target_in_ms
from compressor.runs.latency_goal import in_words as time_in_words
from compressor.surgery import Plan
from compressor.surgery.assign import take_weights_
from compressor.surgery.blocks import gated, replace_blocks_
from compressor.surgery.edits import BlockEdit
from compressor.surgery.snapshot import Snapshot, all_or_nothing

_CORRECTIONS = 3  # of a plan that takes another time than predicted


@dataclass(frozen=True)
class Chosen:
    """What becomes of a network's blocks, and what a person should know about it."""

    edits: tuple[BlockEdit, ...]
    refused: Mapping[str, str]  # blocks that stay, and modules that are none -> why
    notes: tuple[str, ...] = ()


def choose_blocks(
    module: nn.Module,
    example: Any,
    inputs: Sequence[Any],
    choice: PruneSettings,
    tell: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> Chosen:
    """Choose what meets the target of the settings, by `inputs`, batches as the network takes them, without labels.

    Raises:
        UsageError: there is no target, or the network meets it as it is, or takes several inputs.
        ModelError: nothing in the network is such a block, or the target cannot be reached, or torch cannot export it.
    """
    with choosing_blocks(module, example, inputs, choice, tell, progress) as choose:
        return choose(1.0)


@contextmanager
def choosing_blocks(
    module: nn.Module,
    example: Any,
    inputs: Sequence[Any],
    choice: PruneSettings,
    tell: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> Iterator[Callable[[float], Chosen]]:
    """What chooses as `choose_blocks` does, given how much of the way to the target blocks go: as powers of what stays.

    What blocks take is measured once.
    """
    check_blocks(example, choice)
    blocks = find_blocks(module, example)
    names = names_of(module)
    kept = {name for pattern in choice.keep for name in matching(pattern, names, "keep")}
    refused = dict(blocks.refused)
    refused |= {name: "kept" for name in blocks.found if any(_shares(name, each) for each in kept)}
    found = {name: block for name, block in blocks.found.items() if name not in refused}
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        measuring = (_InTime if in_time(choice) else _InMacs)(module, example, choice, tell, Path(folder))
        choices = _options(found, refused, measuring)

        def choose(share: float) -> Chosen:
            tell(f"measuring what {len(choices)} ways to replace blocks do to the outputs")
            order = Shortening(module, found, choices, inputs, progress)
            return _chosen(order, dict(refused), measuring, share)

        yield choose


def check_blocks(example: Any, choice: PruneSettings) -> None:
    """Raise UsageError where there is no target for blocks, or the network takes several inputs."""
    if not isinstance(example, Tensor):
        raise UsageError("blocks are looked for in models of one input")
    if choice.target_macs is None and not in_time(choice):
        raise UsageError("blocks go until a target is met: give `target_macs`, `target_ms` or `speedup`")


def goal_of(module: nn.Module, example: Any, choice: PruneSettings) -> Goal:
    """What the settings want of the network, and what it costs as it is. Raises UsageError as `choose_blocks` does."""
    check_blocks(example, choice)
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        return (_InTime if in_time(choice) else _InMacs)(module, example, choice, lambda text: None, Path(folder)).goal


def chosen_before(
    module: nn.Module, example: Tensor, inputs: Sequence[Any], choice: PruneSettings, structure: Mapping[str, Any]
) -> Chosen:
    """What `structure` of a run that was broken off says was chosen, with convolutions fitted again.

    Raises:
        FileError: it is of another network.
    """
    if not structure["edits"]:
        return Chosen((), dict(structure["refused"]), tuple(structure["notes"]))
    found = find_blocks(module, example).found
    try:
        steps = [
            Step(Option(row["group"], row.get("kernel", 0), row["numbers"]["saved"]), 0.0, row["numbers"]["moved"])
            for row in structure["edits"]
        ]
        order = Shortening(module, found, (), inputs)
        edits, _ = order.edits(steps, "ms" if in_time(choice) else "MACs")
        return Chosen(tuple(edits), dict(structure["refused"]), tuple(structure["notes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"the checkpoint's blocks do not fit the network ({error}): start the run again") from error


def _options(found: Mapping[str, Block], refused: Mapping[str, str], measuring: "_InMacs") -> list[Option]:
    choices = options(found, measuring.saving, measuring.cost)
    if not choices:
        reasons = [f"{name}: {reason}" for name, reason in refused.items()][:4]
        why = "; ".join(reasons or ["no module of it is a sum of two paths, or a row of convolutions"])
        raise ModelError(f"the network has no block that could be replaced by less: {why}")
    assert measuring.goal  # or it says why there is none, before anything takes long
    return choices


def _chosen(order: Shortening, refused: dict[str, str], measuring: "_InMacs", share: float) -> Chosen:
    goal = measuring.goal
    whole = goal.price.whole()
    goal = replace(goal, wanted=whole * (goal.wanted / whole) ** share)
    steps, after, *said = measuring.met(order, goal.wanted)
    unit = goal.price.unit
    edits, moved = order.edits(steps, unit)
    notes = [
        f"the outputs moved by {units.share(moved)} of their variance; {in_words(after, unit)} are left",
        *said,
    ]
    off = after / goal.wanted - 1
    if abs(off) > measuring.tolerance:
        notes.append(
            f"the target of {in_words(goal.wanted, unit)} is not met within {measuring.tolerance:.0%}: whole blocks "
            f"go, and the nearest found is {in_words(after, unit)} ({off:+.1%})"
        )
    gone = {edit.group for edit in edits}
    stays = "replacing it moves the outputs more for what it saves"
    refused |= {name: stays for name in order.blocks if name not in gone}
    return Chosen(tuple(edits), refused, tuple(notes))


def replace_(
    module: nn.Module,
    edits: Sequence[BlockEdit],
    example: Tensor,
    inputs: Sequence[Any],
    *,
    progress: Progress = no_progress,
    latency: bool = False,
) -> tuple[Profile, Reconstruction]:
    """Carry out edits of blocks, first on a copy that has to run, and refit the layers behind them to the module as it
    was; returns the cost of the result and what became of these layers.

    Raises:
        ModelError: the edited network does not run; the module is as it was.
    """
    copied = skeleton(module, real=True)
    replace_blocks_(copied, edits, example)
    cost = profile(copied, example, latency=latency, layers=False)
    whole, masked, changed = gated(module, edits, example)
    found = reconstruct_(
        masked, whole, capture(module, example), Plan(), inputs, progress,
        changed=changed, only=dict(copied.named_parameters()).keys(),
    )  # fmt: skip
    with all_or_nothing(Snapshot.of(module, copies=False)):
        replace_blocks_(module, edits, example)
        take_weights_(module, named_tensors(masked) if found.layers else {})
    return cost, replace(found, layers_are="layers behind replaced blocks")


def _shares(name: str, kept: str) -> bool:
    return name == kept or name.startswith(f"{kept}.") or kept.startswith(f"{name}.")


class _InMacs:
    """Costs of blocks in multiply-adds."""

    tolerance = TOLERANCE

    def __init__(
        self, module: nn.Module, example: Tensor, choice: PruneSettings, tell: Callable[[str], None], folder: Path
    ) -> None:
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


class _InTime(_InMacs):
    """The same in milliseconds of a runtime on this machine."""

    tolerance = TIME_TOLERANCE

    def __init__(
        self, module: nn.Module, example: Tensor, choice: PruneSettings, tell: Callable[[str], None], folder: Path
    ) -> None:
        super().__init__(module, example[:1], choice, tell, folder)
        check_timed(example, choice)
        self._known: dict[Any, float] = {}
        tell("timing the blocks and what could replace them")

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
            self.tell(f"timing plan {number + 1}, which should take {whole - steps[-1].saved:.3g} ms")
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
