"""`compressor export`."""

from shlex import quote

from compressor.cli.options import Json
from compressor.cli.terminal import Terminal
from compressor.runs.job import ExportJob

HELP = (
    "Write a model for another runtime, after it gave the same outputs there.\n\n"
    "--out NAME.onnx writes one file. --out FOLDER writes a package: the graph, its weights, a manifest with cost and "
    "accuracy of every exit, and a script that needs numpy and the runtime alone. With --data everything is checked on "
    "real images and the accuracy is measured on the runtime. --to torch writes the network as a Python file, --to pt2 "
    "as torch's exported program; both open without the network's code."
)
EXAMPLE = "compressor export sample_models/digits_cnn.safetensors --to onnx --data digits --out deploy"


def export(job: ExportJob, json: Json = False) -> None:
    terminal = Terminal(as_json=json)
    with terminal.progress() as tell:
        from compressor.runs.export import export as run

        made = run(job, tell)
    terminal.print_json({"format": job.to, **made.facts})
    if made.manifest is not None:
        from compressor.report.tables import exits_table

        terminal.show(exits_table(made.manifest))
    package = made.manifest is not None
    following = f"verify {quote(job.out)}" if package else f"profile {quote(made.model)} --latency"
    terminal.made(made.files, f"compressor {following}")
