"""Write a model as a file for another runtime, checked: `compressor export`."""

from pathlib import Path

from compressor.errors import UsageError
from compressor.exporting.flat import OPSET
from compressor.exporting.onnx import export_onnx
from compressor.exporting.parity import OnnxCheck
from compressor.pipeline.settings import ExportJob
from compressor.pipeline.stages import Stage, Tell, note_all, silent
from compressor.pipeline.subject import open_subject


def export(job: ExportJob, tell: Tell = silent) -> OnnxCheck:
    """Write one .onnx file after its outputs were compared with torch's.

    Raises:
        CompressorError: the model cannot be opened or exported, or the file computes something else, or exists.
    """
    path = Path(job.out).expanduser()
    if path.exists() and not path.is_dir() and not job.overwrite:
        raise UsageError(f"{path} exists: give another --out, or --overwrite to replace it")
    tell(Stage("opening the model"))
    subject = open_subject(job.model, job.data, job.loading, "cpu")
    note_all(subject.notes, tell)
    tell(Stage("exporting to ONNX and comparing ONNX Runtime with torch"))
    opset = OPSET if job.opset is None else job.opset
    return export_onnx(subject.module, subject.example, path, opset=opset, check_inputs=subject.real_images)
