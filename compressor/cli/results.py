"""What a command that changed a model prints at its end."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rich.text import Text

from compressor.cli.options import DryRun, Json, all_as_typed, named, unused, with_data
from compressor.cli.terminal import Terminal
from compressor.report import units
from compressor.runs.job import RunJob
from compressor.runs.jobs import PruneJob

if TYPE_CHECKING:
    from compressor.report.report import Report


def carry_out(job: RunJob, dry_run: DryRun = False, json: Json = False) -> None:
    """What every command does that leaves a run: carry its job out, or only say what would be done, and print that."""
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.runs import run as runs

        report = runs.dry_run(job, tell) if dry_run else runs.run(job, tell)
    if not dry_run:
        show_run(terminal, report, job.output.out)
        return
    terminal.print_json({"dry_run": True, **report.to_json()})
    _show_details(terminal, report, planned=True)
    terminal.show(Text("\n".join(_predicted(report))))
    if job.output.out is not None and isinstance(job, PruneJob):
        from compressor.runs.plans import NAME

        plan = Path(job.output.out) / NAME
        given = "" if job.data is None else f"{with_data(job.data, job.loading)} "
        asked = f"{given}--plan {quote(str(plan))} --out {quote(job.output.out)}"
        terminal.made({str(plan): "what would go, to read and edit"}, f"compressor prune {named(job.model)} {asked}")
    else:
        terminal.say("", "a dry run: nothing was changed and nothing written", "next: the same without --dry-run")


def show_run(terminal: Terminal, report: "Report", out: str | None) -> None:
    """The answer, then tables, the files that were made and what to do next."""
    from compressor.report.tables import before_after_table
    from compressor.runs.folder import MODEL

    terminal.print_json({"dry_run": False, **report.to_json()})
    folder = Path(str(out))
    terminal.answer(str(folder / MODEL), report.answers)
    terminal.show(before_after_table(report))
    _show_details(terminal, report, planned=False)
    terminal.made(_files(folder, report), _following(folder, report))


def _show_details(terminal: Terminal, report: "Report", *, planned: bool) -> None:
    """A row for every sub-model or way of using the network, what is changed and what is not."""
    from compressor.report.tables import filters_table, frozen_table, section_table

    if planned or report.variants:
        terminal.show(*(section_table(section.tables[0]) for section in report.sections))
    if report.edits and (planned or terminal.verbosity > 0):
        terminal.show(filters_table(report))
    if report.frozen or report.refused:
        terminal.show(frozen_table(replace(report, refused=all_as_typed(report.refused))))


def _predicted(report: "Report") -> Iterator[str]:
    for name, key, write in (("MACs", "macs", units.macs), ("parameters", "params", units.amount)):
        before, after = getattr(report.before, key), getattr(report.after, key)
        if after is None:
            yield f"{name:<12}{write(before)} -> {report.after.reasons[key]}"
        else:
            yield f"{name:<12}{write(before)} -> {write(after)}  ({units.ratio(before, after)})"
    latency = report.details.get("latency")
    if latency is not None:
        times = f"{units.milliseconds(latency['before'])} -> {units.milliseconds(latency['after'])}"
        spread = f"{latency['low']:.2f} to {latency['high']:.2f} in 90% of rounds"
        yield f"{'latency':<12}{times}  ({latency['ratio']:.2f}x, {spread})"
    expected = report.details.get("estimate")
    if expected is not None:
        yield f"{'wall time':<12}about {units.duration(expected['seconds'])} on this machine: an estimate"
        if expected["peak_bytes"] is not None:
            yield f"{'memory':<12}about {units.size(expected['peak_bytes'])} at most: an estimate"


def _files(folder: Path, report: "Report") -> dict[str, str]:
    from compressor.runs.folder import INT8, MODEL, ONNX

    files = {str(folder / MODEL): "the model"}
    if report.export is not None:
        check = report.export
        files[str(folder / ONNX)] = f"the same as ONNX; differs by {check.max_rel:.0e} on {check.inputs} images"
    if "int8" in report.details:
        figure, exits = report.after.figure, report.details["int8"]
        worst = max(exits, key=lambda each: figure.drop(each["top1_float"], each["top1"]))
        where = f" at {worst['exit']}, which loses most" if len(exits) > 1 else ""
        change = f"{figure.write(worst['top1_float'])} to {figure.write(worst['top1'])}"
        files[str(folder / INT8)] = f"a package in INT8; test {figure.label} {change}{where}"
    files[str(folder / "report.html")] = "the report, to look at in a browser"
    return files


def _following(folder: Path, report: "Report") -> str:
    from compressor.runs.folder import MODEL

    model = quote(str(folder / MODEL))
    if report.settings["data"] is not None:
        return f"compressor export {model} {with_data(report.settings['data'])} --out {unused('deploy')}"
    return f"compressor finetune {model} --data DATA --epochs 10 --out {unused(f'{folder}-finetuned')}"
