"""`compressor export`."""

from typing import Annotated, Literal

import typer

from compressor.cli.options import Data, Json, check_model
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.runs.settings import ExportJob, ModelSettings
from compressor.training.settings import DataSettings

HELP = (
    "Write a model for another runtime, after it gave the same outputs there.\n\n"
    "--out NAME.onnx writes one file. --out FOLDER writes a package: the graph, the weights each once, a manifest with "
    "cost and accuracy of every exit, and a script that needs numpy and onnxruntime alone. With --data everything is "
    "checked on real images and the accuracy is measured on ONNX Runtime. --to pt2 writes torch's exported program, "
    "which opens without the network's code."
)
EXAMPLE = "compressor export sample_models/digits_cnn.safetensors --to onnx --data digits --out deploy"
_PANEL = "Output"


def export(
    model: ModelSettings,
    loading: DataSettings,
    out: Annotated[
        str | None,
        typer.Option(metavar="PATH", rich_help_panel=_PANEL, help="The file or folder to write.", show_default=False),
    ] = None,
    to: Annotated[
        Literal["onnx", "pt2", "int8"],
        typer.Option(metavar="KIND", rich_help_panel=_PANEL, help="onnx; int8: quantized onnx; pt2: torch's program."),
    ] = ExportJob.to,
    exit: Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=_PANEL, help="Only this exit of a model that has several."),
    ] = None,
    exits: Annotated[
        Literal["one", "separate"],
        typer.Option(
            metavar="HOW",
            rich_help_panel=_PANEL,
            help="one: a graph with branches; separate: also a flat graph for each exit, on the same weights.",
        ),
    ] = ExportJob.exits,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=_PANEL, help="Version of ONNX's operators, 15 to 23.", show_default="20"
        ),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", rich_help_panel=_PANEL, help="Measure each exit of a package.")
    ] = ExportJob.latency,
    chip: Annotated[
        Literal["x86", "x86-old", "arm", "npu"],
        typer.Option(
            metavar="CHIP", rich_help_panel=_PANEL, help="That int8 is for: x86, x86-old (no VNNI), arm, npu."
        ),
    ] = ExportJob.chip,
    calibration_images: Annotated[
        int, typer.Option(metavar="N", min=8, rich_help_panel=_PANEL, help="Training images that int8 is fitted on.")
    ] = ExportJob.calibration_images,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=1, rich_help_panel=_PANEL, help="Of top-1 that int8 may cost: 0.01."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=_PANEL, help="Replace what is there.")
    ] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    if out is None:
        raise UsageError("--out is missing: give a file such as model.onnx, or a folder for a package")
    check_model(model)
    terminal = Terminal(as_json=json)
    from compressor.runs.export import export as run

    job = ExportJob(
        model, out, to, overwrite, opset, exit, exits, latency, chip, calibration_images, max_drop, data, loading
    )
    with terminal.progress() as tell:
        made = run(job, tell)
    terminal.print_json({"format": to, **made.facts})
    if made.manifest is not None:
        from compressor.report.exits import exits_table

        terminal.show(exits_table(made.manifest))
    terminal.made(made.files, f"compressor profile {made.model} --latency")
