"""`compressor evaluate`."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.text import Text

from compressor.cli.options import Data, Exit, Json, check_model, is_onnx, named, needed
from compressor.cli.terminal import Terminal
from compressor.runs.settings import EvaluateJob, ModelSettings
from compressor.training.settings import DataSettings

HELP = "Measure the accuracy of a model, or of an .onnx file or package, on the test set."
EXAMPLE = "compressor evaluate sample_models/digits_cnn.safetensors --data digits"


def evaluate(
    model: ModelSettings,
    loading: DataSettings,
    data: Data = None,
    split: Annotated[
        Literal["test", "validation", "train"], typer.Option(metavar="SPLIT", help="test, validation or train.")
    ] = EvaluateJob.split,
    exit: Exit = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:NUMBER.")] = EvaluateJob.device,
    json: Json = False,
) -> None:
    """Parse, run, print."""
    check_model(model)
    terminal = Terminal(as_json=json)
    job = EvaluateJob(model, needed(data), loading, device, split, exit)
    from compressor.runs.evaluate import evaluate as run

    with terminal.progress() as tell:
        result = run(job, tell)
    terminal.print_json(asdict(result))
    line = f"{result.split} top-1 {result.top1:.2%}, loss {result.loss:.4f}, on {result.count:,} images"
    terminal.show(Text(line))
    following = f"prune {named(model)} --data {data} --out runs/small"
    if is_onnx(model):
        following = f"profile {model.model} --latency"
    terminal.say("", f"next: compressor {following}")
