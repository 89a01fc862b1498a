"""The job that a verb's keywords and objects of settings ask for in Python."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict, get_args, get_type_hints

from compressor.errors import UsageError
from compressor.exits.settings import DetachSettings
from compressor.primenet.settings import PrimeNetSettings
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.settings import PruneSettings
from compressor.routing.settings import RouteSettings
from compressor.runs.jobs import VERBS
from compressor.runs.own import named
from compressor.runs.settings import GoalSettings, ModelSettings, OutputSettings, SweepSettings
from compressor.runs.stages import Callback
from compressor.settings import filled, read, settings_of
from compressor.training.settings import DataSettings, DistillSettings, TrainSettings

Settings = (
    ModelSettings | DataSettings | OutputSettings | TrainSettings | DistillSettings | PruneSettings | AdapNetSettings
    | GoalSettings | DetachSettings | RouteSettings | PrimeNetSettings | SweepSettings
)  # fmt: skip
_OWN = {"settings", "keywords", "tell"}  # parameters of every verb that are not single settings


class Common(TypedDict, total=False):
    """Keywords of every verb that trains; every other setting of the verb can be given by its name, too."""

    task: object
    arch: str
    input: Sequence[int]
    epochs: int
    batch_size: int
    lr: float
    seed: int
    device: str
    overwrite: bool
    latency: bool
    onnx: bool


def asked(verb: str, given: Mapping[str, Any]) -> tuple[Any, Callback]:
    """The job of a verb that was given this, by the names of its parameters, and who hears of it; keywords that are
    None are not given.

    Raises:
        UsageError: a name is unknown, a value has another type, or an object of settings is not of the verb.
    """
    settings, keywords, tell = given["settings"], given["keywords"], given["tell"]
    values = {name: each for name, each in given.items() if name not in _OWN and each is not None} | keywords
    if values.get("task") is not None and not isinstance(values["task"], str):
        values["task"] = named(values["task"])
    kind = next(kind for kind in VERBS[verb] if kind.takes(values))
    homes = {hint: name for name, hint in get_type_hints(kind).items()}
    for each in settings:
        if type(each) not in homes:
            known = ", ".join(sorted(hint.__name__ for hint in homes if hint in get_args(Settings)))
            raise UsageError(f"{type(each).__name__} is not a settings class of compressor.{verb}: these are {known}")
    whole = {homes[type(each)]: filled(each, settings_of(each)) for each in settings}
    changed = (entry.name for each in settings for entry in fields(each) if getattr(each, entry.name) != entry.default)
    chosen = tuple(dict.fromkeys((*changed, *values)))
    called = f"compressor {verb} in Python: " + ", ".join(f"{name}={value!r}" for name, value in values.items())
    job = read(VERBS[verb], values, verb=f"compressor.{verb}", chosen=chosen, whole=whole, inside={"command": called})
    return job, tell
