"""Who is tied to whom in a model, and what it costs to prune them: `compressor inspect`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from compressor.graph import Channels, capture
from compressor.pruning.oneshot import sensitivity
from compressor.runs.job import InspectJob
from compressor.runs.stages import Callback, Stage, note_all, silent
from compressor.runs.subject import calibration_inputs, open_subject


@dataclass(frozen=True)
class Inspected(Channels):
    """Groups of channels; and, where data were given, how far the outputs move when shares of each free one go."""

    outputs_moved: Mapping[str, Mapping[float, float]] | None = None  # see `sensitivity`

    def to_json(self) -> dict[str, Any]:
        """What `Channels.to_json` gives, with how far the outputs move beside every group."""
        data, moved = super().to_json(), self.outputs_moved
        if moved is not None:
            data["groups"] = [{**group, "outputs_moved": moved.get(group["name"], {})} for group in data["groups"]]
        return data


def inspect(job: InspectJob, tell: Callback = silent) -> Inspected:
    """Open the model and find its groups of channels; with data, predict what pruning each group costs.

    Raises:
        CompressorError: the model or the data cannot be opened, do not run or do not fit together.
    """
    tell(Stage("opening the model" if job.data is None else "opening the model and the data"))
    subject = open_subject(job.model, job.data, job.loading, "cpu")
    note_all(subject.notes, tell)
    tell(Stage("finding which channels belong together"))
    channels = capture(subject.module, subject.example, keep=job.keep, also=job.also)
    moved = None
    if job.sensitivity:
        tell(Stage("measuring what every group is worth"))
        moved = sensitivity(subject.module, channels, calibration_inputs(subject, job.loading.seed))
    return Inspected(**{each.name: getattr(channels, each.name) for each in fields(channels)}, outputs_moved=moved)
