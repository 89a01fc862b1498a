"""Who is tied to whom in a model, and what it costs to prune them: `compressor inspect`."""

from dataclasses import dataclass
from typing import Any

from compressor.graph import Channels, capture
from compressor.pruning.oneshot import sensitivity
from compressor.runs.job import InspectJob
from compressor.runs.stages import Callback, Stage, note_all, silent
from compressor.runs.subject import Subject, calibration_inputs, open_subject


def inspect(job: InspectJob, tell: Callback = silent) -> Channels:
    """Open the model and find its groups of channels.

    Raises:
        CompressorError: the model cannot be opened or does not run.
    """
    return _inspected(job, tell)[1]


@dataclass(frozen=True)
class Sensitivity:
    """Groups of channels, and for each free one how far the outputs move when shares of it go, see `sensitivity`."""

    channels: Channels
    moved: dict[str, dict[float, float]]

    def to_json(self) -> dict[str, Any]:
        """What `Channels.to_json` gives, with how far the outputs move beside every group."""
        data = self.channels.to_json()
        data["groups"] = [{**group, "outputs_moved": self.moved.get(group["name"], {})} for group in data["groups"]]
        return data


def measure_sensitivity(job: InspectJob, tell: Callback = silent) -> Sensitivity:
    """Open model and data, and predict what pruning each group costs.

    Raises:
        CompressorError: the model or the data cannot be opened or do not fit together.
    """
    subject, channels = _inspected(job, tell)
    tell(Stage("measuring what every group is worth"))
    return Sensitivity(channels, sensitivity(subject.module, channels, calibration_inputs(subject, job.loading.seed)))


def _inspected(job: InspectJob, tell: Callback) -> tuple[Subject, Channels]:
    tell(Stage("opening the model" if job.data is None else "opening the model and the data"))
    subject = open_subject(job.model, job.data, job.loading, "cpu")
    note_all(subject.notes, tell)
    tell(Stage("finding which channels belong together"))
    return subject, capture(subject.module, subject.example, keep=job.keep, also=job.also)
