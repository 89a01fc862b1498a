"""The job that a verb's keywords and objects of settings ask for in Python."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypedDict, get_args, get_type_hints

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
from compressor.settings import Job, filled, read, recorded_of, settings_of
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
    precision: Literal["fp32", "int8"]


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
    called = f"compressor {verb} in Python: " + ", ".join(f"{name}={value!r}" for name, value in values.items())
    kinds, inside = VERBS[verb], [_changed(each) for each in settings]
    told = {name: value for each in (*inside, values) for name, value in each.items()}
    kind = next(kind for kind in kinds if kind.takes(told))
    if "method" not in told:  # the objects say which
        kind = next((each for each in kinds if _homes(each).keys() >= set(map(type, settings))), kind)
    homes, known = _homes(kind), {kind.ALIASES.get(name, name): value for name, value in told.items()}
    whole = kind.bases(known) if settings else {}
    for each, changed in zip(settings, inside):
        if type(each) not in homes:
            classes = ", ".join(sorted(hint.__name__ for hint in homes if hint in get_args(Settings)))
            what = f"compressor.{verb}" + (f" by {told['method']}" if "method" in told else "")
            raise UsageError(f"{type(each).__name__} is not a settings class of {what}: these are {classes}")
        home, others = homes[type(each)], {name: value for name, value in known.items() if name not in changed}
        if whole.get(home) == kind.bases(others).get(home):
            whole[home] = filled(each, settings_of(each))
        else:  # the object itself chose the mode, which sets more
            whole[home] = filled(whole[home], changed)
    values |= {name: told[name] for name in kind.LACKS if name in told}  # refused
    if not kind.takes(values):
        values["method"] = told.get("method", recorded_of(kind)["method"].default)
    job = read(kinds, values, verb=f"compressor.{verb}", chosen=tuple(told), whole=whole, inside={"command": called})
    return job, tell


def _homes(kind: type[Job]) -> dict[type, str]:
    """The fields of a job by the classes of settings that they hold."""
    return {hint: name for name, hint in get_type_hints(kind).items() if isinstance(hint, type)}


def _changed(each: object) -> dict[str, Any]:
    """The settings of an object that are others than usual."""
    if not is_dataclass(each) or isinstance(each, type):
        return {}
    usual = {entry.name: entry.default for entry in fields(each)}
    return {name: value for name, value in settings_of(each).items() if value != usual[name]}
