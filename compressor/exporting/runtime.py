"""Run an .onnx file on ONNX Runtime alone: numpy batches in, numpy outputs out, no torch."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compressor.errors import CompressorError, FileError, first_line, shown
from compressor.exporting.outside import take_in
from compressor.files.limits import LARGEST_GIB, allow, apart
from compressor.loading.content import Content, recognise
from compressor.report import units
from compressor.report.manifest import MANIFEST, MODEL, TUNED_MODEL, Array, Manifest, gives_inside, manifest_inside

# ONNX Runtime's names of element types, as far as a model's input may have them.
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


Level = Literal["all", "extended", "basic", "off"]  # of what ONNX Runtime changes in a graph before it runs it
SECONDS = 8.0  # of the processor that opening a graph, and one image, may take


def onnx_at(path: str | None, most_gib: float = LARGEST_GIB) -> Path | None:
    """The .onnx file at a path, which may also be a package's folder; None where something else is there.

    Raises FileError where nothing is there, or something that is no model.
    """
    if path is None:
        return None
    package = (Path(path) / MANIFEST).is_file()
    if package and not (Path(path) / MODEL).exists():
        raise FileError(f"{path} has no {MODEL}: a package for another runtime is run by its run.py")
    file = Path(path) / MODEL if package else Path(path)
    return file if recognise(file, most_gib) is Content.ONNX else None


class Outputs(dict[str, Any]):
    """Outputs by name, which are attributes, too, and numbered."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: Any) -> Any:
        return super().__getitem__(name) if name in self else tuple(self.values())[name]


def put_together(gives: Any, outputs: Sequence[Any]) -> Any:
    """A graph's outputs as the model returned them; see `Manifest.gives`."""
    if isinstance(gives, Mapping):
        return Outputs({name: put_together(each, outputs) for name, each in gives.items()})
    if isinstance(gives, list):
        return tuple(put_together(each, outputs) for each in gives)
    return None if gives is None else outputs[gives]


def by_name(names: Sequence[str], given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments, by position or by keyword or in one dict, by the names of a graph's inputs."""
    if len(given) == 1 and isinstance(given[0], Mapping):
        return dict(given[0])
    return {**dict(zip(names, given)), **named}


class OnnxModel:
    """An .onnx file, called with a batch of images; with `several` with a batch of each input, as the model was.

    A graph that was exported for one fixed batch size is fed in pieces of that size, the last one filled up. The input
    of a package that chooses an exit has what its manifest says, or what `feeds` give.

    The file is first tried on one image in a process of its own with limited means; what is opened here is the copy
    that was tried. With `own` it is a file that this process wrote, opened as it is; `named` is what messages call it.

    Example:
        model = OnnxModel("small.onnx")
        logits = model(images)                # (batch, channels, height, width) -> (batch, classes)
        model.input_shape                     # (3, 224, 224)

    Raises:
        FileError: the file is missing, empty, no ONNX file, reads outside of its folder, takes too much time or memory,
            needs what this ONNX Runtime lacks, or wants other inputs than one tensor of numbers.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        feeds: Mapping[str, Array] | None = None,
        most_gib: float = LARGEST_GIB,
        own: bool = False,
        named: Path | None = None,
        several: bool = False,
    ) -> None:
        self.path = named or Path(path)
        if own:
            self.session = open_session(Path(path), threads=threads, named=named)
        else:
            with private_copy(self.path, most_gib) as copy:
                self.session = open_session(copy, threads=threads, named=self.path)
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.feeds = {**_default(self.session, str(self.path)), **(feeds or {})}
        inputs = [entry for entry in self.session.get_inputs() if entry.name not in self.feeds]
        if len(inputs) != 1 and not (several and inputs):
            names = ", ".join(shown(entry.name, 40) for entry in inputs[:8]) or "none"
            what_to_do = "images are one, give a task whose batches hold all of them" if inputs else "it cannot be run"
            raise FileError(f"{self.path} takes {len(inputs)} inputs ({names}): {what_to_do}")
        for entry in inputs:
            if entry.type not in _DTYPES:
                raise FileError(f"{self.path} takes an input of type {entry.type}, which is no tensor of numbers")
        self._dtypes = {entry.name: _DTYPES[entry.type] for entry in inputs}
        self.input_name = inputs[0].name
        self.gives: Any = gives_inside(self.metadata, str(self.path)) if several else 0
        shapes = [tuple(size if isinstance(size, int) else None for size in entry.shape) for entry in inputs]
        self.batch: int | None = shapes[0][0] if shapes[0] else None
        # Of each input without the batch; None where the file leaves it open.
        self.sizes = {entry.name: sizes[1:] for entry, sizes in zip(inputs, shapes)}
        self.input_shape: tuple[int | None, ...] = self.sizes[self.input_name]

    def noise(self, count: int) -> dict[str, Array]:
        """Noise for each input, the same in every run; ones for sizes that are left open."""
        return {name: noise((count, *(size or 1 for size in sizes))) for name, sizes in self.sizes.items()}

    def __call__(self, *given: Array, **named: Array) -> Any:
        """The first output for `images`, both with the batch first; with `several` what the model returned.

        Raises:
            CompressorError: what is given does not have the shape that the file takes.
        """
        batches = by_name(tuple(self._dtypes), given, named)
        count = len(next(iter(batches.values())))
        if self.batch is None or count == self.batch:
            return put_together(self.gives or 0, self._run(batches))
        starts = range(0, count, self.batch)
        pieces = [self._run_filled({name: x[i : i + self.batch] for name, x in batches.items()}) for i in starts]
        return put_together(self.gives or 0, [np.concatenate(each) for each in zip(*pieces)])

    def _run_filled(self, batches: Mapping[str, Array]) -> list[Array]:
        count = len(next(iter(batches.values())))
        filled = np.arange(self.batch or count) % count
        return [each[:count] for each in self._run({name: x[filled] for name, x in batches.items()})]

    def _run(self, batches: Mapping[str, Array]) -> list[Array]:
        fed = {name: np.ascontiguousarray(x, dtype=self._dtypes.get(name)) for name, x in batches.items()}
        try:
            outputs: list[Array] = self.session.run(None, {**fed, **self.feeds})
        except Exception as error:  # onnxruntime's exceptions share no class of their own
            first = units.shape(next(iter(fed.values())).shape)
            raise CompressorError(
                f"{self.path} does not run on an input of shape {first}, "
                f"it takes {units.shape((self.batch, *self.input_shape))} ({first_line(error)})"
            ) from error
        return outputs


@contextmanager
def private_copy(path: Path, most_gib: float = LARGEST_GIB) -> Iterator[Path]:
    """A copy of a model from outside and its weights, tried on one image; there until the end of the block.

    Raises FileError as OnnxModel does.
    """
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        yield Path(apart(path, "compressor.exporting.runtime:tried", str(path), folder, most_gib))


def tried(source: str, folder: str, most_gib: float) -> str:
    """Take a model in, open it and run it on one image, in the process of `apart`; the copy's path.

    Raises FileError.
    """
    taken = take_in(Path(source), Path(folder), most_gib)
    allow(seconds=SECONDS)
    session = open_session(taken.copy, threads=1, named=Path(source))
    image = _any_image(session, source)
    if image is not None:
        allow(seconds=SECONDS)
        try:
            session.run(None, image)
        except Exception as error:  # onnxruntime's exceptions share no class of their own
            raise FileError(f"{source} does not run on an image of its own input ({first_line(error)})") from error
    return str(taken.copy)


def _any_image(session: Any, source: str) -> dict[str, Array] | None:
    """Random numbers for the input, a batch of one where it is free, and of a package what chooses an exit; None where
    there are several inputs, or another size is left open."""
    default = _default(session, source)
    entry, *others = [each for each in session.get_inputs() if each.name not in default] or [None]
    if entry is None or others or entry.type not in _DTYPES:
        return None
    sizes = [1 if not place and not isinstance(size, int) else size for place, size in enumerate(entry.shape)]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return None
    return {
        entry.name: np.random.default_rng(0).standard_normal(sizes, np.float32).astype(_DTYPES[entry.type]),
        **default,
    }


def _default(session: Any, where: str) -> dict[str, Array]:
    """What a package's manifest gives its graph besides the images. Raises FileError for a damaged manifest."""
    manifest = manifest_inside(session.get_modelmeta().custom_metadata_map, where)
    taken = {entry.name for entry in session.get_inputs()}
    return {} if manifest is None else {name: value for name, value in manifest.default.items() if name in taken}


def noise(shape: Sequence[int]) -> Array:
    """Normal noise to time or compare on, float32, the same in every run."""
    values: Array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return values


def noises(manifest: Manifest, count: int) -> tuple[Array, ...]:
    """Noise for each input of a package; zeros for whole numbers."""
    return tuple(
        noise((count, *shape)) if dtype == "float32" else np.zeros((count, *shape), dtype)
        for shape, dtype in manifest.takes.values()
    )


def open_session(
    path: Path,
    *,
    threads: int | None = None,
    level: Level | None = None,
    profile: Path | None = None,
    named: Path | None = None,
) -> Any:
    """An onnxruntime.InferenceSession on the CPU with `threads` threads an operator (None: one per core), of a file
    that this process wrote or copied; `named` is what messages call it.

    Without a level a file of `compressor tune` is taken as it is, any other changed as far as ONNX Runtime can. With
    `profile` the session writes what it runs to a file of that name and more.

    Raises:
        FileError: ONNX Runtime cannot open the file.
    """
    import onnxruntime

    options = session_options(level or ("off" if path.name == TUNED_MODEL else "all"), threads)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no class of their own
        reason = first_line(error).replace(str(path), str(named or path))
        raise FileError(f"{named or path} cannot be opened by ONNX Runtime ({reason})") from error


def session_options(level: Level = "all", threads: int | None = None) -> Any:
    """An onnxruntime.SessionOptions that keeps quiet: what goes wrong comes as an exception."""
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = {
        "all": levels.ORT_ENABLE_ALL,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "basic": levels.ORT_ENABLE_BASIC,
        "off": levels.ORT_DISABLE_ALL,
    }[level]
    if threads is not None:
        options.intra_op_num_threads = threads
    return options
