"""`compressor shrink`."""

from compressor.cli.compare import show_comparison
from compressor.cli.options import Json
from compressor.cli.terminal import Terminal
from compressor.runs.jobs import ShrinkJob

HELP = (
    "Find the cheapest network that keeps a promise, within a time.\n\n"
    "One network after the other is pruned, refitted and fine-tuned, each to the target that the validation images of "
    "those before it suggest; then another criterion, early exits and INT8 of the best sizes, as there is time. Of the "
    "results the cheapest is left in the folder that loses at most --max-drop of top-1 on fresh images, with "
    "--confidence; half of the test images, which nothing else looks at, say so."
)
EXAMPLE = (
    "compressor shrink sample_models/digits_cnn.safetensors --data digits --max-drop 0.05 --for 2m --out runs/shrunk"
)


def shrink(job: ShrinkJob, json: Json = False) -> None:
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.runs import shrink as runs

        compared = runs.shrink(job, tell)
    assert job.output.out is not None
    show_comparison(terminal, compared, job.output.out)
