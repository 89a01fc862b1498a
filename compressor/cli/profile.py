"""`compressor profile`."""

from typing import Annotated

import typer

from compressor.cli.options import Exit, Json, check_model, is_onnx, named
from compressor.cli.terminal import Terminal
from compressor.runs.settings import ModelSettings, ProfileJob

HELP = "Say what a model, or an .onnx file, costs to run: MACs, parameters, memory, time."
EXAMPLE = "compressor profile --arch torchvision:resnet18 --layers --latency"


def profile(
    model: ModelSettings,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    latency: Annotated[bool, typer.Option("--latency", help="Measure milliseconds, which takes some seconds.")] = False,
    exit: Exit = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Where latency is measured.")] = ProfileJob.device,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    check_model(model)
    terminal = Terminal(as_json=json)
    from compressor.runs.profile import profile as run

    with terminal.progress() as tell:
        result = run(ProfileJob(model, latency, device, exit), tell)
    from compressor.report.tables import layers_table, profile_table

    terminal.print_json(result.to_json())
    if layers:
        terminal.show(layers_table(result))
    terminal.show(profile_table(result))
    following = f"evaluate {model.model} --data DATA" if is_onnx(model) else f"prune {named(model)} --dry-run"
    terminal.say("", f"next: compressor {following}")
