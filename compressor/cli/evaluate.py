"""`compressor evaluate`."""

from typing import TYPE_CHECKING

from rich.text import Text

from compressor.cli.options import Json, as_typed, is_onnx, named, unused, with_data
from compressor.cli.terminal import Terminal
from compressor.report.measurements import TOP1
from compressor.runs.job import EvaluateJob

if TYPE_CHECKING:
    from compressor.runs.evaluate import Evaluated

HELP = "Measure the accuracy of a model, or of an .onnx file or package, on the test set."
EXAMPLE = "compressor evaluate sample_models/digits_cnn.safetensors --data digits"

# A model that one of these commands made is exported next.
_SMALLER = [["compressor", verb] for verb in ("prune", "detach", "replace", "route")]


def evaluate(job: EvaluateJob, json: Json = False) -> None:
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.runs.evaluate import evaluate as run

        result = run(job, tell)
    terminal.print_json({**result.to_json(), "notes": [as_typed(note) for note in result.notes]})
    line = f"{result.split} {_figures(result)}, on {result.amount}"
    terminal.show(Text(line))
    following = f"prune {named(job.model)} {with_data(job.data, job.loading)} --out {unused('runs/small')}"
    if any(command.split()[:2] in _SMALLER for command in result.history):
        following = f"export {named(job.model)} {with_data(job.data, job.loading)} --out {unused('deploy')}"
    if is_onnx(job.model):
        following = f"profile {named(job.model)} --latency"
    terminal.say("", f"next: compressor {following}")


def _figures(result: "Evaluated") -> str:
    """ "top-1 98.33%, loss 0.0512"."""
    texts = {name: f"{name} {value:.4f}" for name, value in result.figures.items()}
    return ", ".join({**texts, TOP1: f"top-1 {result.top1:.2%}"}.values() if TOP1 in texts else texts.values())
