"""`compressor evaluate`."""

from dataclasses import asdict

from rich.text import Text

from compressor.cli.options import Json, is_onnx, named
from compressor.cli.terminal import Terminal
from compressor.runs.looking import EvaluateJob

HELP = "Measure the accuracy of a model, or of an .onnx file or package, on the test set."
EXAMPLE = "compressor evaluate sample_models/digits_cnn.safetensors --data digits"

# A model that one of these commands made is exported next.
_SMALLER = [["compressor", verb] for verb in ("prune", "detach", "replace", "route")]


def evaluate(job: EvaluateJob, json: Json = False) -> None:
    """Parse, run, print."""
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.runs.evaluate import evaluate as run

        result = run(job, tell)
    terminal.print_json(asdict(result))
    line = f"{result.split} top-1 {result.top1:.2%}, loss {result.loss:.4f}, on {result.count:,} images"
    terminal.show(Text(line))
    following = f"prune {named(job.model)} --data {job.data} --out runs/small"
    if any(command.split()[:2] in _SMALLER for command in result.history):
        following = f"export {named(job.model)} --data {job.data} --out deploy"
    if is_onnx(job.model):
        following = f"profile {job.model.model} --latency"
    terminal.say("", f"next: compressor {following}")
