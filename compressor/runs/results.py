"""Write what a run leaves: the model, its checked ONNX file, the report as data and as a page."""

from dataclasses import replace

from compressor.errors import CompressorError
from compressor.exporting.onnx import export_onnx
from compressor.report.measurements import OnnxCheck
from compressor.report.report import Report, write_page
from compressor.runs.folder import MODEL, ONNX, RunFolder
from compressor.runs.models import save_model
from compressor.runs.stages import Callback, Stage, note_all
from compressor.runs.subject import Subject, card_of
from compressor.training import distributed

Exported = OnnxCheck | CompressorError | None  # None: not asked for


def export_result(subject: Subject, folder: RunFolder, tell: Callback) -> OnnxCheck | CompressorError:
    """Write the checked ONNX file of a run's result; the check, or why there is no file."""
    tell(Stage("exporting to ONNX and comparing ONNX Runtime with torch"))
    try:
        return export_onnx(
            subject.module, subject.example, folder / ONNX, check_inputs=subject.real_images, card=card_of(subject)
        )
    except CompressorError as error:
        return error


def write_results(subject: Subject, report: Report, folder: RunFolder, exported: Exported, tell: Callback) -> Report:
    """Fill the folder, each file whole, the report last; returns the report with what `export_result` found.

    Of several processes the first writes.

    Raises:
        CompressorError: the ONNX file could not be made or computes something else; all other files are there then.
        FileError: the folder cannot be written.
    """
    return distributed.from_first(lambda: _written(subject, report, folder, exported, tell))


def _written(subject: Subject, report: Report, folder: RunFolder, exported: Exported, tell: Callback) -> Report:
    tell(Stage(f"writing {folder.path}"))
    left_out = save_model(
        subject.opened,
        folder / MODEL,
        history=(report.command,),
        measurements=report.after.to_json(),
        overwrite=True,
    )
    note_all(left_out, tell)
    failure = exported if isinstance(exported, CompressorError) else None
    check = exported if isinstance(exported, OnnxCheck) else None
    refused = {} if failure is None else {"export to ONNX": str(failure)}
    settings = {**report.settings, "out": folder.named}
    notes = (*report.notes, *left_out)
    report = replace(report, settings=settings, export=check, refused={**report.refused, **refused}, notes=notes)
    folder.write_rows(report.rows)
    write_page(report, folder.path)
    report.save(folder.path)  # the last: a run with a report is finished
    folder.finish()
    if failure is not None:
        raise CompressorError(
            f"{folder / MODEL} is made, but not {ONNX}: {failure}; leave it out with --no-onnx"
        ) from failure
    return report
