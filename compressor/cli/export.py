"""`compressor export`."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from compressor.cli.options import Data, Json
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.pipeline.settings import ExportJob, ModelSettings
from compressor.training.settings import DataSettings

HELP = "Write a model as an ONNX file, after ONNX Runtime gave the same outputs as torch."
EXAMPLE = "compressor export sample_models/digits_cnn.pt --to onnx --out digits.onnx"


def export(
    model: ModelSettings,
    loading: DataSettings,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="The .onnx file.", show_default=False)] = None,
    to: Annotated[Literal["onnx"], typer.Option(help="Kind of file.")] = "onnx",
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators.", show_default="20")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    if out is None:
        raise UsageError("--out is missing: give the name of the file to write, such as model.onnx")
    terminal = Terminal(as_json=json)
    from compressor.pipeline.export import export as run

    with terminal.progress() as tell:
        check = run(ExportJob(model, out, overwrite, opset, data, loading), tell)
    terminal.print_json({"file": out, "format": to, **asdict(check)})
    words = f"ONNX, opset {check.opset}, {check.file_bytes:,} bytes; outputs differ by {check.max_rel:.0e} on {check.inputs} images"
    terminal.made({out: words}, f"compressor profile {out} --latency")
