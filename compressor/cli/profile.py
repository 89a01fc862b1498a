"""`compressor profile`."""

from dataclasses import replace
from typing import Annotated

import typer

from compressor.cli.options import Json, all_as_typed, is_onnx, named
from compressor.cli.terminal import Terminal
from compressor.runs.job import ProfileJob

HELP = "Measure what a model, or an .onnx file, costs to run: MACs, parameters, memory, latency."
EXAMPLE = "compressor profile --arch torchvision:resnet18 --layers --latency"


def profile(
    job: ProfileJob,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    json: Json = False,
) -> None:
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.runs.profile import profile as run

        result = run(job, tell)
    result = replace(result, reasons=all_as_typed(result.reasons))
    from compressor.report.tables import layers_table, profile_table

    terminal.print_json(result.to_json())
    if layers:
        terminal.show(layers_table(result))
    terminal.show(profile_table(result))
    model = job.model
    following = f"evaluate {named(model)} --data DATA" if is_onnx(model) else f"prune {named(model)} --dry-run"
    terminal.say("", f"next: compressor {following}")
