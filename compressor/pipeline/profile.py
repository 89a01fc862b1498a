"""The cost of a model or of an .onnx file: `compressor profile`."""

from dataclasses import replace
from pathlib import Path

from compressor.loading.content import Content, recognise
from compressor.pipeline.settings import ProfileJob
from compressor.pipeline.stages import Stage, Tell, note_all, silent
from compressor.pipeline.subject import open_subject
from compressor.profiling.model_profile import Profile
from compressor.profiling.model_profile import profile as profile_module
from compressor.profiling.onnx_profile import profile_onnx
from compressor.training.settings import DataSettings


def profile(job: ProfileJob, tell: Tell = silent) -> Profile:
    """Multiply-adds, parameters, memory, file size and, if asked, latency.

    Raises:
        CompressorError: the model cannot be opened or does not run.
    """
    tell(Stage("opening the model"))
    path = None if job.model.model is None else Path(job.model.model)
    if path is not None and recognise(path, job.model.max_size) is Content.ONNX:
        tell(Stage("measuring"))
        return profile_onnx(path, latency=job.latency, exit=job.exit)
    subject = open_subject(job.model, None, DataSettings(), job.device)
    note_all(subject.notes, tell)
    tell(Stage("measuring"))
    cost = profile_module(subject.way(job.exit), subject.example, latency=job.latency)
    if path is None or job.exit is not None:
        return cost
    reasons = {name: reason for name, reason in cost.reasons.items() if name != "file_bytes"}
    return replace(cost, file_bytes=path.stat().st_size, reasons=reasons)
