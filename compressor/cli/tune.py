"""`compressor tune`."""

from shlex import quote

from compressor.cli.options import Json
from compressor.cli.terminal import Terminal
from compressor.errors import UsageError
from compressor.runs.job import TuneJob

HELP = (
    "Make a package fast and small in memory on this machine: write a graph with the weights as this processor wants "
    "them beside the portable one. Run it on the device. With --kit: write what times a model's layers on another "
    "machine, for prune --target-ms."
)
EXAMPLE = "compressor tune deploy"


def tune(job: TuneJob, json: Json = False) -> None:
    terminal = Terminal(as_json=json)
    if job.kit is not None:
        with terminal.progress() as tell:
            from compressor.runs.kit import kit

            count = kit(job, tell)
        terminal.print_json({"kit": job.kit, "samples": count})
        words = {f"{job.kit}/measure.py": f"times {count} layers; copy the folder to the device and run it there"}
        terminal.made(words, f"compressor prune MODEL --target-ms MS --table {quote(f'{job.kit}/table.json')}")
        return
    from compressor.report.manifest import TUNED_MODEL, TUNED_WEIGHTS
    from compressor.report.tables import tuned_table

    folder = job.model.model
    if folder is None:
        raise UsageError("tune takes the folder that `compressor export` made; a model needs --kit FOLDER")
    with terminal.progress():
        from compressor.exporting.tune import tune_package

        manifest = tune_package(folder, threads=job.threads, latency=job.latency)
    terminal.print_json({"folder": folder, **manifest.to_json()})
    if job.latency:
        terminal.show(tuned_table(manifest))
    words = {
        f"{folder}/{TUNED_MODEL}": "for this processor and this ONNX Runtime only: open it with ORT_DISABLE_ALL",
        f"{folder}/{TUNED_WEIGHTS}": "its weights, which sessions and processes share",
    }
    terminal.made(words, f"python {quote(f'{folder}/run.py')} IMAGE")
