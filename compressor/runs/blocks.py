"""Choose which blocks of a network are replaced by less, until a target in multiply-adds or milliseconds is met."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from compressor.errors import FileError, ModelError
from compressor.exporting.latency import profile
from compressor.graph import capture
from compressor.graph.blocks import find_blocks
from compressor.graph.names import matching, names_of
from compressor.graph.skeleton import skeleton
from compressor.graph.tensors import named_tensors
from compressor.pruning.blocks import Option, Shortening, Step, nested, options
from compressor.pruning.price import in_words
from compressor.pruning.reconstruction import Reconstruction, reconstruct_
from compressor.pruning.settings import PruneSettings, in_time
from compressor.report import units
from compressor.report.measurements import Profile
from compressor.runs.block_costs import BlockCosts, block_costs
from compressor.runs.stages import Callback, Stage, parts, silent
from compressor.surgery import Plan
from compressor.surgery.assign import take_weights_
from compressor.surgery.blocks import gated, replace_blocks_
from compressor.surgery.edits import BlockEdit
from compressor.surgery.snapshot import Snapshot, all_or_nothing


@dataclass(frozen=True)
class Chosen:
    """What becomes of a network's blocks, and what a person should know about it."""

    edits: tuple[BlockEdit, ...]
    refused: Mapping[str, str]  # blocks that stay, and modules that are none -> why
    notes: tuple[str, ...] = ()


def choose_blocks(
    module: nn.Module, example: Any, inputs: Sequence[Any], choice: PruneSettings, tell: Callback = silent
) -> Chosen:
    """Choose what meets the target of the settings, by `inputs`, batches as the network takes them, without labels.

    Raises:
        UsageError: there is no target, or the network meets it as it is, or takes several inputs.
        ModelError: nothing in the network is such a block, or the target cannot be reached, or torch cannot export it.
    """
    with block_costs(module, example, choice, tell) as costs:
        return block_chooser(costs, inputs)(1.0)


def block_chooser(costs: BlockCosts, inputs: Sequence[Any]) -> Callable[[float], Chosen]:
    """Chooses as `choose_blocks` does, given how much of the way to the target blocks go: as powers of what stays."""
    module, tell = costs.module, costs.tell
    blocks = find_blocks(module, costs.example)
    names = names_of(module)
    kept = {name for pattern in costs.choice.keep for name in matching(pattern, names, "keep")}
    refused = dict(blocks.refused)
    refused |= {name: "kept" for name in blocks.found if any(nested(name, each) for each in kept)}
    found = {name: block for name, block in blocks.found.items() if name not in refused}
    choices = options(found, costs.saving, costs.cost)
    if not choices:
        reasons = [f"{name}: {reason}" for name, reason in refused.items()][:4]
        why = "; ".join(reasons or ["no module of it is a sum of two paths, or a row of convolutions"])
        raise ModelError(f"the network has no block that could be replaced by less: {why}")
    assert costs.goal  # or it says why there is none, before anything takes long

    def choose(share: float) -> Chosen:
        tell(Stage(f"measuring what {len(choices)} ways to replace blocks do to the outputs"))
        order = Shortening(module, found, choices, inputs, parts("ways to replace blocks", tell))
        return _chosen(order, refused, costs, share)

    return choose


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


def _chosen(order: Shortening, refused: Mapping[str, str], costs: BlockCosts, share: float) -> Chosen:
    goal = costs.goal
    whole = goal.price.whole()
    goal = replace(goal, wanted=whole * (goal.wanted / whole) ** share)
    steps, after, *said = costs.met(order, goal.wanted)
    unit = goal.price.unit
    edits, moved = order.edits(steps, unit)
    notes = [
        f"the outputs moved by {units.share(moved)} of their variance; {in_words(after, unit)} are left",
        *said,
    ]
    off = after / goal.wanted - 1
    if abs(off) > costs.tolerance:
        notes.append(
            f"the target of {in_words(goal.wanted, unit)} is not met within {costs.tolerance:.0%}: whole blocks "
            f"go, and the nearest found is {in_words(after, unit)} ({off:+.1%})"
        )
    gone = {edit.group for edit in edits}
    stays = "replacing it moves the outputs more for what it saves"
    left = {name: stays for name in order.blocks if name not in gone}
    return Chosen(tuple(edits), {**refused, **left}, tuple(notes))


def replace_(
    module: nn.Module,
    edits: Sequence[BlockEdit],
    example: Tensor,
    inputs: Sequence[Any],
    *,
    tell: Callback = silent,
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
        masked, whole, capture(module, example), Plan(), inputs, parts("least squares", tell),
        changed=changed, only=dict(copied.named_parameters()).keys(),
    )  # fmt: skip
    with all_or_nothing(Snapshot.of(module, copies=False)):
        replace_blocks_(module, edits, example)
        take_weights_(module, named_tensors(masked) if found.layers else {})
    return cost, replace(found, layers_are="layers behind replaced blocks")
