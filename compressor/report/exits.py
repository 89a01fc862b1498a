"""The table of a package: one row for each exit, with what it costs and how well it does."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.report import units
from compressor.report.units import NOTHING

if TYPE_CHECKING:
    from compressor.report.manifest import Manifest


def exits_table(manifest: "Manifest") -> RenderableType:
    """Costs, accuracy and latency of every exit; below, what was not measured and how an exit is chosen."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("exit", overflow="fold", min_width=12)
    quantized = manifest.quantization is not None
    titles = ("MACs", "parameters", *(("top-1 float32",) if quantized else ("convolutions",)), "top-1", "latency")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for each in manifest.exits:
        table.add_row(
            Text(f"{each.number} {each.name}" if len(manifest.exits) > 1 else each.name),
            units.macs(each.macs),
            units.amount(each.params),
            _share(each.top1_float) if quantized else str(each.convolutions),
            _share(each.top1),
            NOTHING if each.latency_ms is None else units.milliseconds(each.latency_ms["median"]),
        )
    remarks = []
    if manifest.routing is not None:
        found = manifest.routing
        remarks.append(f"routed: top-1 {units.percent(found['top1'])} at {units.macs(found['mean_macs'])} on average")
    if manifest.choice is not None:
        remarks.append(f"chosen by the input {manifest.choice['input']!r}: {manifest.choice['meaning']}")
    if any(each.top1 is None for each in manifest.exits):
        remarks.append(f"top-1: measured on {manifest.title} where --data is given")
    if manifest.quantization is not None:
        remarks.append(f"INT8, calibrated on {manifest.quantization['calibrated_on']}; {manifest.quantization['note']}")
    timing = next((each.latency_ms for each in manifest.exits if each.latency_ms), None)
    if timing is not None:
        remarks.append(f"latency: {manifest.title}, batch 1, {timing['threads']} thread(s) an operator, median")
    agreement = [each.agreement for each in manifest.exits if each.agreement is not None]
    if agreement:
        remarks.append(f"same class as torch: {units.percent(min(agreement))} of {manifest.checked_on}")
    times = [each.torch_ms for each in manifest.exits if each.torch_ms is not None]
    if times:
        remarks.append(f"torch takes {', '.join(map(units.milliseconds, times))}, measured in turn")
    return Group(table, *(Text(remark, style="dim") for remark in remarks))


def tuned_table(manifest: "Manifest") -> RenderableType:
    """The time of every exit in the portable graph and in the one made for this machine."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("exit", overflow="fold", min_width=12)
    for title in ("portable", "tuned"):
        table.add_column(title, justify="right", no_wrap=True)
    tuned = manifest.tuned or {}
    for each, before, after in zip(manifest.exits, tuned.get("portable_ms", ()), tuned.get("latency_ms", ())):
        table.add_row(Text(f"{each.number} {each.name}"), units.milliseconds(before), units.milliseconds(after))
    remark = f"batch 1, {tuned.get('threads')} thread(s) an operator, {tuned.get('machine')}, default options before"
    return Group(table, Text(remark, style="dim"))


def _share(fraction: float | None) -> str:
    return NOTHING if fraction is None else units.percent(fraction)
