"""What a command that changed a model prints at its end."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from compressor.cli.terminal import Terminal
from compressor.report import units

if TYPE_CHECKING:
    from compressor.report.report import Report


def show_run(
    terminal: Terminal,
    report: "Report",
    out: str | None,
    *,
    dry_run: bool,
    trained: bool,
    more: Mapping[str, Any] | None = None,
    plan: Path | None = None,
) -> None:
    """Whether the result is faster, tables, the files that were made and what to do next; `more` joins the JSON.

    `plan` is the file that a dry run left.
    """
    from compressor.report.comparison import speed
    from compressor.report.tables import before_after_table, filters_table, frozen_table

    terminal.print_json({"dry_run": dry_run, **report.to_json(), **(more or {})})
    if not dry_run and (answer := speed(report.before, report.after, report.settings.get("round_to"))) is not None:
        terminal.show(Text(answer))
    if report.edits and (dry_run or terminal.verbosity > 0):
        terminal.show(filters_table(report))
    if report.frozen or report.refused:
        terminal.show(frozen_table(report))
    if dry_run:
        terminal.show(Text("\n".join(_predicted(report))))
        if plan is None:
            terminal.say("", "a dry run: nothing was changed and nothing written", "next: the same without --dry-run")
        else:
            terminal.made({str(plan): "what would go, to read and edit"}, f"compressor prune MODEL --plan {plan}")
        return
    terminal.show(before_after_table(report))
    assert out is not None
    folder = Path(out)
    terminal.made(_files(folder, report), _following(folder, trained))


def _predicted(report: "Report") -> Iterator[str]:
    for name, key, write in (("MACs", "macs", units.macs), ("parameters", "params", units.amount)):
        before, after = getattr(report.before, key), getattr(report.after, key)
        if after is None:
            yield f"{name:<12}{write(before)} -> {report.after.reasons[key]}"
        else:
            yield f"{name:<12}{write(before)} -> {write(after)}  ({units.ratio(before, after)})"


def _files(folder: Path, report: "Report") -> dict[str, str]:
    from compressor.runs.folder import MODEL, ONNX

    files = {str(folder / MODEL): "the model"}
    if report.export is not None:
        check = report.export
        files[str(folder / ONNX)] = f"the same as ONNX; differs by {check.max_rel:.0e} on {check.inputs} images"
    files[str(folder / "report.html")] = "the report, to look at in a browser"
    return files


def _following(folder: Path, trained: bool) -> str:
    from compressor.runs.folder import MODEL

    if trained:
        return f"compressor profile {folder / MODEL} --layers"
    return f"compressor finetune {folder / MODEL} --data DATA --epochs 10 --out {folder}-finetuned"
