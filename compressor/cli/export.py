"""`compressor export`."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from compressor.cli.options import Data, Json, check_model
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.pipeline.settings import ExportJob, ModelSettings
from compressor.training.settings import DataSettings

HELP = "Write a model as an ONNX file, after ONNX Runtime gave the same outputs as torch."
EXAMPLE = "compressor export sample_models/digits_cnn.pt --to onnx --out digits.onnx"


def export(
    model: ModelSettings,
    loading: DataSettings,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", rich_help_panel="Output", help="The .onnx file.", show_default=False)
    ] = None,
    to: Annotated[
        Literal["onnx"], typer.Option(metavar="KIND", rich_help_panel="Output", help="Kind of file: onnx.")
    ] = "onnx",
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel="Output", help="Version of ONNX's operators, 15 to 23.", show_default="20"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", rich_help_panel="Output", help="Replace the file.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    if out is None:
        raise UsageError("--out is missing: give the name of the file to write, such as model.onnx")
    check_model(model)
    terminal = Terminal(as_json=json)
    from compressor.pipeline.export import export as run

    with terminal.progress() as tell:
        check = run(ExportJob(model, out, overwrite, opset, data, loading), tell)
    terminal.print_json({"file": out, "format": to, **asdict(check)})
    words = f"{check.file_bytes:,} bytes; on {check.inputs} images its outputs differ by {check.max_rel:.0e}"
    terminal.made({out: words}, f"compressor profile {out} --latency")
