"""Make a package fast and small in memory on the machine it lies on: `compressor tune`.

ONNX Runtime re-orders the weights of convolutions for the processor when it opens a graph, and then every session has a
copy of its own. Here it does so once and for all: the re-ordered graph and its weights, each once, come to lie beside
the portable ones, and are opened as they are.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, FileError, first_line
from compressor.exporting.running import Runner, executed
from compressor.exporting.runtime import noises, open_session, private_copy, session_options
from compressor.exporting.samples import largest_difference
from compressor.exporting.verify import check_package, read_portable
from compressor.exporting.weights import WeightsFile
from compressor.files.paths import folder_beside, move_files
from compressor.profiling.latency import measure
from compressor.report.manifest import (
    MANIFEST,
    MODEL,
    TUNED_MODEL,
    TUNED_WEIGHTS,
    WEIGHTS,
    Manifest,
    fed,
    file_facts,
)
from compressor.report.progress import counted

_SAME = 1e-5  # relative difference allowed between the portable graph and the tuned one; the same kernels run
_IMAGES = 8
_ROUNDS = 3  # both are timed in turn, so that what else the machine does meets both


def tune_package(folder: str | os.PathLike[str], *, threads: int = 1, latency: bool = True) -> Manifest:
    """Write `model.cpu.onnx` and `weights.cpu.bin` into a package, and say so in its manifest.

    They fit this processor and this version of ONNX Runtime only; open them with `ORT_DISABLE_ALL`. The portable files
    stay as they are, and so do flat graphs of exits (`exit_0.onnx`).

    Args:
        threads: of an operator, while latencies are measured.
        latency: measure each exit in both graphs, for the manifest.

    Raises:
        FileError: the folder holds no package, is damaged, or cannot be written.
        CompressorError: a tuned graph computes or executes something else than the portable one. Nothing is changed
            then.

    Example:
        manifest = tune_package("deploy")
        manifest.tuned["latency_ms"]            # [0.83], and ["portable_ms"] before
    """
    place = Path(folder)
    manifest = read_portable(place)
    with tempfile.TemporaryDirectory(prefix="compressor-") as private, folder_beside(place / MANIFEST) as staging:
        copies = Path(private)
        steps: tuple[Callable[[], object], ...] = (
            partial(check_package, place, manifest, copies),
            partial(_try, copies, place),
            partial(_write, copies, staging),
            partial(_compare, copies, staging, manifest, threads),
        )
        for step in counted("steps of tuning", steps, len(steps)):
            step()
        manifest = replace(
            manifest,
            tuned=_facts(copies, staging, manifest, threads if latency else None),
            files={**manifest.files, **{name: file_facts(staging / name) for name in (TUNED_MODEL, TUNED_WEIGHTS)}},
        )
        (staging / MANIFEST).write_text(manifest.text(), encoding="utf-8")
        move_files(staging, place, last=MANIFEST)
    return manifest


def _try(copies: Path, place: Path) -> None:
    """Raise FileError where the graph takes too much time or memory, before it is opened in this process."""
    try:
        with private_copy(copies / MODEL):
            pass
    except FileError as error:
        raise FileError(str(error).replace(str(copies), str(place))) from error


def _write(place: Path, staging: Path) -> None:
    import onnx_ir as ir

    with WeightsFile(staging / TUNED_WEIGHTS) as weights, _optimized(place / MODEL) as model:
        weights.take(model := uniquified(model))
        ir.save(model, staging / TUNED_MODEL)


def uniquified(model: Any) -> Any:
    """An onnx_ir.Model with names that are unique over all of it: ONNX Runtime takes some twice when it saves a graph
    with branches. Inputs and outputs keep theirs.
    """
    from onnx_ir.passes.common import NameFixPass

    return NameFixPass()(model).model


@contextmanager
def _optimized(file: Path) -> Iterator[Any]:
    """The graph as ONNX Runtime changes it for this processor, whose weights are there meanwhile."""
    import onnx_ir as ir
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = session_options("all")
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", "optimized.bin")
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
        try:
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            model = ir.load(folder / "optimized.onnx")
        except Exception as error:  # onnxruntime's exceptions share no class of their own
            raise FileError(f"{file} cannot be optimized by ONNX Runtime ({first_line(error)})") from error
        # Weights of branches that stay as they are, are still read from the portable file.
        (folder / WEIGHTS).symlink_to((file.parent / WEIGHTS).resolve())
        yield model


def _compare(place: Path, staging: Path, manifest: Manifest, threads: int) -> None:
    """Outputs and executed convolutions, for each exit and for what the graph does unasked."""
    images, files = noises(manifest, _IMAGES), (place / MODEL, staging / TUNED_MODEL)
    sessions, names = [open_session(file, threads=threads) for file in files], tuple(manifest.takes)
    one = {name: each[:1] for name, each in zip(names, images)}
    for feeds in (manifest.default, *(fed(each.feeds) for each in manifest.exits)):
        for batch in ([each[:1] for each in images], images):
            before, after = (Runner(partial(session.run, None), feeds, names)(*batch) for session in sessions)
            _, relative = largest_difference(before, after)
            if not relative <= _SAME:
                raise CompressorError(f"tuned, the outputs differ by {relative:.1e}; nothing was written")
        wanted, found = (_convolutions(executed(file, {**one, **feeds})) for file in files)
        if wanted != found:
            raise CompressorError(f"tuned, {found} convolutions run and not {wanted}; nothing was written")


def _convolutions(ran: Mapping[str, int]) -> int:
    return sum(count for name, count in ran.items() if "Conv" in name)


def _facts(place: Path, staging: Path, manifest: Manifest, threads: int | None) -> dict[str, Any]:
    """What the tuned files are for and, measured with so many threads, how long each exit takes in both graphs."""
    from compressor.exporting.run import machine

    facts: dict[str, Any] = {"machine": machine(), "onnxruntime": version("onnxruntime"), "threads": threads}
    if threads is None:
        return facts
    image, names = noises(manifest, 1), tuple(manifest.takes)
    sessions = [open_session(file, threads=threads) for file in (place / MODEL, staging / TUNED_MODEL)]
    rows = []
    for each in counted("timing exits", manifest.exits, len(manifest.exits)):
        runs = [partial(Runner(partial(session.run, None), fed(each.feeds), names), *image) for session in sessions]
        found = [[measure(run, threads=threads, seconds=0.2).median for run in runs] for _ in range(_ROUNDS)]
        rows.append([min(times) for times in zip(*found)])
    return {**facts, "portable_ms": [row[0] for row in rows], "latency_ms": [row[1] for row in rows]}
