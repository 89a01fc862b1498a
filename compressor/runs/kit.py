"""A folder with which another machine times a model's layers: `compressor tune MODEL --kit FOLDER`."""

import tempfile
from pathlib import Path

from compressor.errors import UsageError
from compressor.exporting.layer_times import write_kit
from compressor.exporting.onnx import export_onnx
from compressor.files.paths import check_writable, folder_beside, move_folder
from compressor.graph import capture
from compressor.runs.job import TuneJob
from compressor.runs.stages import Callback, Stage, note_all, silent
from compressor.runs.subject import open_subject
from compressor.training.settings import DataSettings


def kit(job: TuneJob, tell: Callback = silent) -> int:
    """Write the kit; returns how often a layer will be timed. The folder appears whole or not at all.

    Raises:
        UsageError: the folder is there and not empty.
        CompressorError: the model cannot be opened or exported.
    """
    assert job.kit is not None
    target = Path(job.kit).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is not empty: give another `kit`")
    check_writable(target)
    tell(Stage("opening the model"))
    subject = open_subject(job.model, None, DataSettings(), "cpu")
    note_all(subject.notes, tell)
    tell(Stage("finding which channels belong together"))
    channels = capture(subject.module, subject.example)
    tell(Stage("exporting it"))
    with tempfile.TemporaryDirectory(prefix="compressor-") as scratch, folder_beside(target) as staging:
        file = Path(scratch) / "whole.onnx"
        export_onnx(subject.module, subject.example, file)
        count = write_kit(file, channels, staging)
        move_folder(staging, target, last="measure.py")
    return count
