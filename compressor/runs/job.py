"""What jobs of verbs share; nothing heavy is imported, so that the command line can read it for `--help`."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, is_dataclass
from typing import Any, ClassVar, Self

from compressor.errors import UsageError
from compressor.runs.settings import ModelSettings, OutputSettings, PromiseSettings, TimeSettings
from compressor.settings import Job, setting
from compressor.training.settings import SPECS, DataSettings, TrainSettings

# What a data set is called, for the verbs that cannot do without one and for those that can.
DATA: dict[str, Any] = {
    "text": f"{', '.join(SPECS[:-1])} or {SPECS[-1]}.",
    "metavar": "DATA",
    "panel": "Data",
}


class ModelJob(Job):
    """A job on a network of a file, or of an architecture with random weights."""

    ALIASES: ClassVar[Mapping[str, str]] = {"task": "data"}  # a data set, or code of one's own that brings its data

    model: ModelSettings

    def completed(self) -> Self:
        """The job itself; raises UsageError where there is neither file nor architecture."""
        if self.model.model is None and self.model.arch is None:
            raise UsageError("no model: give a file, or `arch` for an architecture with random weights")
        return self


@dataclass(frozen=True)
class RunJob(ModelJob):
    """What every verb takes that leaves a run in a folder; a subclass adds what it alone has."""

    RUN: ClassVar[str] = ""  # the module of compressor/runs that carries it out, and the class there

    model: ModelSettings
    data: str = setting(MISSING, **DATA)
    output: OutputSettings = field(default_factory=OutputSettings)
    loading: DataSettings = field(default_factory=DataSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    promise: PromiseSettings = field(default_factory=PromiseSettings)
    time: TimeSettings = field(default_factory=TimeSettings)
    command: str = "compressor"  # as it was typed
    chosen: tuple[str, ...] = ()  # which settings a person chose


def flat(job: Job) -> dict[str, Any]:
    """A job's settings on one level, each under the name of its flag."""
    found: dict[str, Any] = {}
    for name, value in vars(job).items():
        if is_dataclass(value) and not isinstance(value, type):
            found.update(asdict(value))
        elif name == "command":
            found["command"] = value.split()[1]  # without the flags: they are the other entries
            found["typed"] = value
        else:
            found[name] = value
    return found
