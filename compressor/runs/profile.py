"""The cost of a model or of an .onnx file: `compressor profile`."""

from dataclasses import replace
from pathlib import Path

from compressor.exporting.onnx_profile import profile_onnx
from compressor.exporting.runtime import onnx_at
from compressor.report.measurements import Profile
from compressor.runs.job import ProfileJob
from compressor.runs.stages import Callback, Stage, note_all, silent
from compressor.training.settings import DataSettings


def profile(job: ProfileJob, tell: Callback = silent) -> Profile:
    """Multiply-adds, parameters, memory, file size and, if asked, latency.

    Raises:
        CompressorError: the model cannot be opened or does not run.
    """
    tell(Stage("opening the model"))
    file = onnx_at(job.model.model, job.model.max_size)
    if file is not None:
        tell(Stage("measuring"))
        return profile_onnx(file, latency=job.latency, exit=job.exit, most_gib=job.model.max_size)
    return _profile_module(job, tell)


def _profile_module(job: ProfileJob, tell: Callback) -> Profile:
    from compressor.exporting.latency import profile as profile_module
    from compressor.runs.subject import open_subject  # with torch, for which an .onnx file need not wait

    subject = open_subject(job.model, None, DataSettings(), job.device)
    note_all(subject.notes, tell)
    tell(Stage("measuring"))
    cost = profile_module(subject.way(job.exit), subject.example, latency=job.latency)
    if job.model.model is None or job.exit is not None:
        return cost
    reasons = {name: reason for name, reason in cost.reasons.items() if name != "file_bytes"}
    return replace(cost, file_bytes=Path(job.model.model).stat().st_size, reasons=reasons)
