"""Who is tied to whom in a model: `compressor inspect`."""

from compressor.graph import Channels, capture
from compressor.pipeline.settings import InspectJob
from compressor.pipeline.stages import Stage, Tell, note_all, silent
from compressor.pipeline.subject import open_subject
from compressor.training.settings import DataSettings


def inspect(job: InspectJob, tell: Tell = silent) -> Channels:
    """Open the model and find its groups of channels.

    Raises:
        CompressorError: the model cannot be opened or does not run.
    """
    tell(Stage("opening the model"))
    subject = open_subject(job.model, None, DataSettings(), "cpu")
    note_all(subject.notes, tell)
    tell(Stage("finding who is tied to whom"))
    return capture(subject.module, subject.example, keep=job.keep, also=job.also)
