"""Tables for the terminal, drawn by Rich and at most 80 columns wide."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.report import units
from compressor.report.comparison import compare
from compressor.report.html import number_columns, written
from compressor.report.measurements import TOP1, Figure
from compressor.report.report import Report
from compressor.report.units import NOTHING

if TYPE_CHECKING:
    from compressor.report import sections
    from compressor.report.manifest import Manifest
    from compressor.report.measurements import Profile, Shapes


def before_after_table(report: Report) -> RenderableType:
    """What the run changed, with lines below for what stayed as it was and for everything not measured."""
    comparison = compare(report.before, report.after)
    table = plain_table("", ("before", "right"), ("after", "right"), ("change", "right"))
    same = []
    for line in comparison.lines:
        if line.before == line.after and (not line.main or line.before == NOTHING):
            same += [] if line.before == NOTHING else [f"{line.label} {line.before}"]
            continue
        style = {True: "green", False: "yellow", None: ""}[line.better]
        table.add_row(line.label, line.before, line.after, Text(line.change, style))
    unchanged = f"unchanged: {', '.join(same)}" if same else ""
    return with_remarks(table, unchanged, *comparison.remarks)


def filters_table(report: Report) -> RenderableType:
    """Filters of every layer before -> after; layers that stayed as they were are counted in a line below."""
    table = plain_table("layer", ("filters before", "right"), ("after", "right"), ("left", "right"))
    for layer in report.changed:
        left = units.ratio(layer.before, layer.after)
        table.add_row(Text(layer.name), str(layer.before), str(layer.after), left)
    same = len(report.layers) - len(report.changed)
    return with_remarks(table, f"{same} of {len(report.layers)} layers unchanged" if same else "")


def frozen_table(report: Report) -> RenderableType:
    """What was not touched and why: frozen groups, then refused wishes, equal reasons together."""
    table = plain_table("not touched", ("why", "left"))
    for source in (report.frozen, report.refused):
        names: dict[str, list[str]] = {}
        for name, reason in source.items():
            names.setdefault(reason, []).append(name)
        for reason, held in names.items():
            table.add_row(Text(", ".join(held)), Text(reason))
    return table


def profile_table(profile: "Profile") -> RenderableType:
    """The costs of one model, with a line below for what was not measured or not counted."""
    table = plain_table("", ("", "right"))
    table.show_header = False
    table.add_row("MACs", units.macs(profile.macs))
    if profile.macs_thop is not None:
        table.add_row("MACs (thop)", units.macs(profile.macs_thop))
    table.add_row("parameters", units.amount(profile.params))
    if profile.file_bytes is not None:
        table.add_row("file size", units.size(profile.file_bytes))
    if profile.activation_bytes is not None:
        table.add_row("peak activation memory", units.size(profile.activation_bytes))
    for engine, timing in (profile.latency_ms or {}).items():
        for part in (timing, timing.get("larger")) if timing else ():
            if part is not None:
                spread = f"{units.milliseconds(part['median'])}, p95 {units.milliseconds(part['p95'])}"
                table.add_row(f"latency {units.ENGINES[engine]}, batch {part['batch']}", spread)
    names = {
        "macs": "MACs",
        "macs_thop": "MACs (thop)",
        "activation_bytes": "peak activation memory",
        "latency_ms.torch": "latency torch",
        "latency_ms.onnxruntime": "latency ONNX Runtime",
    }
    remarks = [f"{name}: {profile.reasons[key]}" for key, name in names.items() if key in profile.reasons]
    if profile.uncounted:
        listed = ", ".join(f"{name} ({calls})" for name, calls in profile.uncounted.items())
        remarks.append(f"operators without a rule, counted as zero MACs: {listed}")
    return with_remarks(table, *remarks)


def layers_table(profile: "Profile") -> RenderableType:
    """The cost of every layer that multiplies or has weights."""
    timed = any(layer.ms is not None for layer in profile.layers)
    columns = [("output", "right"), ("MACs", "right"), ("parameters", "right"), *[("ms", "right")] * timed]
    table = plain_table("layer", ("kind", "left"), *columns)
    for layer in profile.layers:
        if layer.macs or layer.params:
            cells = (
                units.or_nothing(layer.macs or None, units.macs),
                units.or_nothing(layer.params or None, units.amount),
            )
            ms = [units.or_nothing(layer.ms, "{:.3f}".format)] * timed
            table.add_row(Text(layer.name), Text(layer.kind), _shape(layer.output_shapes), *cells, *ms)
    table.add_section()
    times = (profile.latency_ms or {}).get("onnxruntime") or {}
    each = times.get("layers", {})
    total = [f"{sum(each.values()):.3f}"] * timed
    table.add_row("total", "", "", units.macs(profile.macs), units.amount(profile.params), *total)
    if not timed:
        return table
    others = {name.strip("()"): ms for name, ms in each.items() if name.startswith("(")}
    rest = f"; total with {sum(others.values()):.3f} for {', '.join(others)}" if others else ""
    return with_remarks(table, f"ms: one image in ONNX Runtime, by its profiler, with what is fused into a layer{rest}")


def findings_table(findings: Sequence[tuple[str, bool | None, str]]) -> RenderableType:
    """What was looked at, whether it is as it should be (nothing where there is no should), and what was found."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for what, good, said in findings:
        mark = {True: Text("✓", "green"), False: Text("!", "bold red"), None: Text("")}[good]
        table.add_row(mark, Text(what), Text(said))
    return table


def section_table(table: "sections.Table") -> Table:
    """A table of a report's section."""
    numbers = number_columns(table)
    sides = ("right" if index in numbers else "left" for index in range(1, len(table.columns)))
    drawn = plain_table(table.columns[0], *zip(table.columns[1:], sides), least=0)
    for row in table.rows:
        drawn.add_row(*(Text(written(cell)) for cell in row))
    return drawn


def plain_table(first: str, *others: tuple[str, str], least: int = 12) -> Table:
    """A table whose first column, at least `least` wide, takes long names by wrapping; numbers never wrap."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold", min_width=least)
    for title, justify in others:
        if justify == "right":
            table.add_column(title, justify="right", no_wrap=True)
        else:
            table.add_column(title, overflow="fold")
    return table


def with_remarks(table: Table, *remarks: str) -> RenderableType:
    texts = [Text(remark, style="dim") for remark in remarks if remark]
    return Group(*([table] if table.row_count or not texts else []), *texts)


def _shape(shapes: "Shapes") -> str:
    return units.shape(shapes[0][1:]) if shapes else NOTHING


def exits_table(manifest: "Manifest") -> RenderableType:
    """Costs, accuracy and latency of every exit; below, what was not measured and how an exit is chosen."""
    quantized = manifest.quantization is not None
    figure = Figure(manifest.figure)
    third = f"{figure.label} float32" if quantized else "convolutions"
    titles = ("MACs", "parameters", third, figure.label, "latency")
    table = plain_table("exit", *((title, "right") for title in titles))
    for each in manifest.exits:
        table.add_row(
            Text(f"{each.number} {each.name}" if len(manifest.exits) > 1 else each.name),
            units.macs(each.macs),
            units.amount(each.params),
            units.or_nothing(each.top1_float, figure.write) if quantized else str(each.convolutions),
            units.or_nothing(each.top1, figure.write),
            units.or_nothing((each.latency_ms or {}).get("median"), units.milliseconds),
        )
    remarks = []
    if manifest.routing is not None:
        found = manifest.routing
        routed = f"{figure.label} {figure.write(found['top1'])} at {units.macs(found['mean_macs'])} on average"
        remarks.append(f"routed: {routed}")
    if manifest.choice is not None:
        remarks.append(f"chosen by the input {manifest.choice['input']!r}: {manifest.choice['meaning']}")
    if any(each.top1 is None for each in manifest.exits):
        remarks.append(f"{figure.label}: measured on {manifest.title} where --data is given")
    if manifest.quantization is not None:
        remarks.append(f"INT8, calibrated on {manifest.quantization['calibrated_on']}; {manifest.quantization['note']}")
        kept = sum(facts["bytes"] for name, facts in manifest.files.items() if not name.endswith((".py", ".npz")))
        params = max(each.params for each in manifest.exits)
        whole = manifest.quantization.get("float32_bytes")
        before = f"the weights alone {units.size(4 * params)}" if whole is None else units.size(whole)
        remarks.append(f"graph and weights take {units.size(kept)}, in float32 {before}")
    timing = next((each.latency_ms for each in manifest.exits if each.latency_ms), None)
    if timing is not None:
        remarks.append(f"latency: {manifest.title}, batch 1, {timing['threads']} thread(s) an operator, median")
    agreement = [each.agreement for each in manifest.exits if each.agreement is not None]
    if agreement and manifest.figure == TOP1:
        remarks.append(f"same class as torch: {units.percent(min(agreement))} of {manifest.checked_on}")
    slower = [each.float_ms for each in manifest.exits if each.float_ms is not None]
    if slower:
        remarks.append(f"before quantization it takes {_times(slower)}, measured in turn")
    times = [each.torch_ms for each in manifest.exits if each.torch_ms is not None]
    if times:
        remarks.append(f"torch takes {_times(times)}, measured in turn")
    return with_remarks(table, *remarks)


def tuned_table(manifest: "Manifest") -> RenderableType:
    """The time of every exit in the portable graph and in the one made for this machine."""
    table = plain_table("exit", ("portable", "right"), ("tuned", "right"))
    tuned = manifest.tuned or {}
    for each, before, after in zip(manifest.exits, tuned.get("portable_ms", ()), tuned.get("latency_ms", ())):
        table.add_row(Text(f"{each.number} {each.name}"), units.milliseconds(before), units.milliseconds(after))
    remark = f"batch 1, {tuned.get('threads')} thread(s) an operator, {tuned.get('machine')}, default options before"
    return with_remarks(table, remark)


def _times(found: list[float]) -> str:
    return ", ".join(map(units.milliseconds, found))
