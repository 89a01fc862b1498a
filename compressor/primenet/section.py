"""PrimeNet's part of the report: curves of the local losses, how often each scale was chosen, and what it comes to."""

from collections.abc import Mapping
from typing import Any

from compressor.primenet.learning import TrainingMemory
from compressor.primenet.phases import REPRESENTATION, Learnt
from compressor.report import units
from compressor.report.measurements import Measurements
from compressor.report.sections import Curve, Plot, Section, Table

_TEXT = (
    "Each scale learns from the loss of its own local classifier; nothing is back-propagated into the block. In every "
    "batch the maps of the scale with the smallest loss are handed on to the rest of the network."
)
_KEPT = {
    1: "For inference the scale with the smallest loss on validation data stays; the others and all local classifiers "
    "are cut away.",
    2: "For inference all scales stay, and each image takes the one whose local classifier is surest: the costs are "
    "those of all scales.",
}


def section(learnt: Learnt, costs: Mapping[int, int], memory: TrainingMemory) -> Section:
    """The section of a run; `costs` are the multiply-adds of the stage with each scale alone."""
    text = f"{_TEXT} {_KEPT[min(len(learnt.kept), 2)]}"
    tables, plots = (_scales(learnt, costs), _memory(memory)), (_losses(learnt), _choices(learnt))
    return Section("PrimeNet", text, tables, plots)


def remarks(before: Measurements, after: Measurements, fit: str) -> list[str]:
    """What the replacement is worth, in words; first of all where it does not pay. `fit` is the setting."""
    found = []
    old, new = before.macs or 0, after.macs or 0
    if new >= old:
        advice = "--fit stride makes the block cheaper" if fit == "pool" else "a longer stage saves more"
        found.append(
            f"It does not pay here: the network takes {units.macs(new)} with the block and took {units.macs(old)} "
            f"before; {advice}."
        )
    if before.top1 is not None and after.top1 is not None and after.top1 < before.top1:
        lost = f"{100 * (before.top1 - after.top1):.1f} points of accuracy"
        found.append(f"It costs {lost} as well." if new >= old else f"The MACs that it saves cost {lost}.")
    return found


def _scales(learnt: Learnt, costs: Mapping[int, int]) -> Table:
    won: dict[str, int] = next((row["chosen"] for row in reversed(learnt.rows) if row["phase"] == REPRESENTATION), {})
    rows: list[tuple[str | float | None, ...]] = []
    for scale, loss in learnt.losses.items():
        kept = "yes" if int(scale) in learnt.kept else ""
        rows.append((f"{scale}x{scale}", round(loss, 4), won.get(scale), units.macs(costs[int(scale)]), kept))
    columns = ("scale", "local loss, validation", "batches won, last epoch", "stage with it alone", "kept")
    return Table(columns, tuple(rows), "The scales when the first phase ended.")


def _memory(memory: TrainingMemory) -> Table:
    rows: list[tuple[str | float | None, ...]] = [
        ("local losses, one scale after the other", units.size(memory.local)),
        ("the same losses, one backward pass at the end", units.size(memory.joint)),
    ]
    rows += [(f"end to end, {scale}x{scale} alone", units.size(held)) for scale, held in memory.plain.items()]
    caption = f"Peak memory of activations and gradients in a training step of {memory.batch} images."
    return Table(("how the network is trained", "peak"), tuple(rows), caption)


def _first(learnt: Learnt) -> list[dict[str, Any]]:
    return [row for row in learnt.rows if row["phase"] == REPRESENTATION]


def _losses(learnt: Learnt) -> Plot:
    rows = _first(learnt)
    epochs = tuple(row["epoch"] + 1 for row in rows)
    curves = [
        Curve(f"{scale}x{scale}", epochs, tuple(row["local_losses"][scale] for row in rows)) for scale in learnt.losses
    ]
    whole = Curve("network + chosen scale", epochs, tuple(row["train_loss"] for row in rows))
    return Plot("Local losses on the training set", "epoch", "cross-entropy", (*curves, whole))


def _choices(learnt: Learnt) -> Plot:
    rows = _first(learnt)
    epochs = tuple(row["epoch"] + 1 for row in rows)
    curves = []
    for scale in learnt.losses:
        shares = tuple(100 * row["chosen"][scale] / max(1, sum(row["chosen"].values())) for row in rows)
        curves.append(Curve(f"{scale}x{scale}", epochs, shares))
    return Plot("How often each scale was chosen", "epoch", "% of batches", tuple(curves))
