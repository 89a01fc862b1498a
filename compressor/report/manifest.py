"""What a package says of itself: the file manifest.json, and the same inside the graph."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from compressor.errors import FileError, UsageError, shown
from compressor.files.paths import beside, copied
from compressor.files.plain import from_plain
from compressor.report.card import CARD_KEY, Card, check_gives, input_from, preparation_of
from compressor.report.measurements import TOP1

Array = NDArray[Any]
FORMAT, VERSION = "compressor package", 1
MANIFEST, MODEL, WEIGHTS, RUNNER = "manifest.json", "model.onnx", "weights.bin", "run.py"
SAMPLE = "sample.npz"
PREPARATION, WATCH, ENGINES = "preparation.py", "watch.py", "engines.py"  # beside the runner, which imports them
TUNED_MODEL, TUNED_WEIGHTS = "model.cpu.onnx", "weights.cpu.bin"  # of `compressor tune`
METADATA_KEY = "compressor.manifest"

_LONGEST = 1 << 26  # bytes of a manifest

# An entry for ONNX Runtime's session options: no scale of one sub-model is multiplied into weights that are shared.
KEEP_SHARED = ("optimization.disable_specified_optimizers", "ConvMulFusion;ConvAddFusion")

# How ONNX Runtime is to open the files; docs/deploying.md says why.
SESSION = {
    "fastest": {
        "file": MODEL,
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "note": "the default; every session keeps a re-ordered copy of the weights for itself",
    },
    "least memory": {
        "file": MODEL,
        "graph_optimization_level": "ORT_ENABLE_EXTENDED",
        KEEP_SHARED[0]: KEEP_SHARED[1],
        "note": "sessions and processes share the mapped weights; slower",
    },
    "tuned": {
        "file": TUNED_MODEL,
        "graph_optimization_level": "ORT_DISABLE_ALL",
        "note": "written by `compressor tune` on the device itself: fast, and the weights are shared",
    },
}


@dataclass(frozen=True)
class ExitFacts:
    """One way through the model: how to ask for it, what it costs, how well it does."""

    number: int
    name: str
    macs: int  # for one image
    params: int  # used by it, shared ones counted in full
    convolutions: int  # executed for one batch, as ONNX Runtime's profiler counts
    feeds: dict[str, Any] = field(default_factory=dict)  # input -> value that chooses this exit
    file: str | None = None  # of the flat graph, where there is one
    top1: float | None = None  # fraction of the test images, or the manifest's `figure`; None without data
    top1_float: float | None = None  # the same before quantization
    latency_ms: dict[str, Any] | None = None  # batch 1 where it was exported: median, p95, runs, threads
    torch_ms: float | None = None  # median in torch, measured in turn with it
    float_ms: float | None = None  # the same of the package before quantization
    max_rel: float | None = None  # largest difference from torch, as a share of the largest output
    agreement: float | None = None  # share of the images compared whose largest score is torch's
    certificate: dict[str, Any] | None = None  # what is promised of its quantization on fresh images


@dataclass(frozen=True)
class Manifest:
    """A package: its inputs and outputs, its exits, and the hash of every file."""

    kind: str
    input: dict[str, Any]  # name, shape of one image, layout, dtype, scale, mean, std
    outputs: tuple[str, ...]
    exits: tuple[ExitFacts, ...]
    classes: tuple[str, ...] | None = None
    choice: dict[str, Any] | None = None  # input, default, what it means
    title: str = "ONNX Runtime"  # of the runtime, in words
    runtime: str = "onnx"  # `exporting/runtimes.py` has them
    graphs: dict[str, str] = field(default_factory=lambda: {"model": MODEL})  # what is run -> file; see `run.Network`
    sample: dict[str, Any] | None = None  # file of an image and each exit's output, and how far another's may be
    routing: dict[str, Any] | None = None  # with the default thresholds: top1, mean_macs, share that left at each depth
    opset: int = 0
    certificate: dict[str, Any] | None = None  # what is promised of the model on fresh images
    watch: dict[str, Any] | None = None  # by what a device tells that it no longer holds; see `watch.Watched`
    figure: str = TOP1  # what every `top1` is: a task of the user's own may have another figure
    checked_on: str = ""  # the images on which ONNX Runtime was compared with torch
    quantization: dict[str, Any] | None = None
    further: tuple[dict[str, Any], ...] = ()  # inputs after the first, in their order: name, shape of one, dtype
    gives: Any = 0  # how the model returns its outputs, in lists and objects: numbers in their place
    session: dict[str, dict[str, str]] = field(default_factory=lambda: dict(SESSION))
    tuned: dict[str, Any] | None = None  # what the .cpu files were made for: machine, onnxruntime; latency of each exit
    made_with: dict[str, str] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> bytes, sha256

    @property
    def card(self) -> Card:
        """What it says of the model."""
        return Card(self.classes, preparation_of(self.input), self.history, self.certificate)

    @property
    def takes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What is given for each example: name -> shape and dtype."""
        return {each["name"]: (tuple(each["shape"]), each["dtype"]) for each in (self.input, *self.further)}

    @property
    def default(self) -> dict[str, Array]:
        """The inputs of the graph besides the images, as they are where no exit is asked for."""
        return {} if self.choice is None else fed({self.choice["input"]: self.choice["default"]})

    def to_json(self) -> dict[str, Any]:
        """Plain data, as it is written."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.to_json(), indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a package.

    Raises:
        FileError: the folder holds no package, or its manifest is damaged or newer than this compressor.
    """
    return parsed(manifest_bytes(folder), str(folder / MANIFEST))


def manifest_bytes(folder: Path) -> bytes:
    """The manifest of a package as it lies there; raises FileError as `read_manifest` does."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise FileError(f"{folder} is not a folder: give the folder that `compressor export --out FOLDER` made")
    if not path.exists():
        raise FileError(f"{folder} is not a package: it has no {MANIFEST}")
    with beside(folder, MANIFEST) as file:
        return file.read(_LONGEST + 1)


def parsed(text: bytes, where: str) -> Manifest:
    """The manifest in a file's content; raises FileError as `read_manifest` does."""
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"it has more than {_LONGEST:,} bytes")
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is damaged ({shown(str(error))}): export the package again") from error
    return manifest_from(held, where)


def manifest_from(held: Any, where: str) -> Manifest:
    """The manifest in plain data; keys that it does not know are left out. Raises FileError as `read_manifest` does."""
    if not isinstance(held, Mapping) or held.get("format") != FORMAT:
        raise FileError(f"{where} is not the manifest of a package: export the package again")
    if not isinstance(held.get("version"), int) or held["version"] > VERSION:
        raise FileError(f"{where} has version {held.get('version')}, this compressor reads {VERSION}: upgrade it")
    try:
        further = [_further(each) for each in held.get("further", ())]
        manifest = from_plain(Manifest, {**held, "input": input_from(held["input"]), "further": further})
        for each in manifest.exits:
            fed(each.feeds)
        for facts in manifest.files.values():
            int(facts["bytes"]), str(facts["sha256"])
        check_gives(manifest.gives)
        fed(manifest.default)
        return manifest
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = shown(f"{type(error).__name__}: {error}")
        raise FileError(f"{where} is damaged ({reason}): export the package again") from error


def manifest_inside(metadata: Mapping[str, str], where: str) -> Manifest | None:
    """The manifest in a graph's metadata; None where there is none. Raises FileError for a damaged one."""
    if METADATA_KEY not in metadata:
        return None
    try:
        held = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} holds a damaged manifest ({shown(str(error))}): export it again") from error
    return manifest_from(held, where)


def card_inside(metadata: Mapping[str, str], where: str) -> Card:
    """What a graph's metadata say of the model, of a package or of a file alone. Raises FileError for damaged ones."""
    manifest = manifest_inside(metadata, where)
    if manifest is not None:
        return manifest.card
    if CARD_KEY not in metadata:
        return Card()
    try:
        held = json.loads(metadata[CARD_KEY])
        classes = None if held["classes"] is None else tuple(map(str, held["classes"]))
        return Card(
            classes,
            preparation_of(input_from(held["input"])),
            tuple(map(str, held["history"])),
            held.get("certificate"),
        )
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise FileError(f"{where} holds a damaged description ({shown(str(error))}): export it again") from error


def gives_inside(metadata: Mapping[str, str], where: str) -> Any:
    """How the model that a graph was made of returns its outputs; None where the graph does not say.

    Raises FileError for damaged metadata.
    """
    manifest = manifest_inside(metadata, where)
    if manifest is not None:
        return manifest.gives
    try:
        found = json.loads(metadata.get(CARD_KEY, "{}")).get("gives")
        check_gives(found)
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise FileError(f"{where} holds a damaged description ({shown(str(error))}): export it again") from error
    return found


def _further(held: Mapping[str, Any]) -> dict[str, Any]:
    np.dtype(held["dtype"])
    return {"name": str(held["name"]), "shape": tuple(map(int, held["shape"])), "dtype": str(held["dtype"])}


class Numbered(Protocol):
    """An exit of a model, or what a manifest says of one."""

    @property
    def number(self) -> int: ...

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Numbered)


def chosen(exits: Sequence[N], number: int) -> N:
    """The exit of a number. Raises UsageError where there is none."""
    if 0 <= number < len(exits):
        return exits[number]
    names = ", ".join(f"{each.number} ({each.name})" for each in exits)
    raise UsageError(f"there is no exit {number}: the model has {names}")


def packaged(manifest: Manifest | None, number: int, path: Path) -> ExitFacts:
    """What a package says of one of its exits. Raises UsageError where there is none, or the file is of no package."""
    if manifest is None:
        raise UsageError(f"{path} has no exits to choose from, only a package's model.onnx has: leave `exit` away")
    return chosen(manifest.exits, number)


def fed(values: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs that choose an exit, from plain data to what a runtime takes: whole numbers int64, others float32."""
    return {
        name: np.asarray(value, np.int64 if isinstance(value, int) else np.float32) for name, value in values.items()
    }


def file_facts(path: Path) -> dict[str, Any]:
    """Size and hash of a file of this process."""
    with path.open("rb") as file:
        return copied(file)
