"""The price of a network in milliseconds: its exported graph's layers, each timed by the runtime at some widths."""

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compressor.errors import FileError
from compressor.exporting import measure
from compressor.exporting.measure import PASSES, machine
from compressor.exporting.onnx_layers import Placed, others, placed, samples, single
from compressor.exporting.onnx_profile import shapes_of, with_one_image
from compressor.exporting.runtime import noise
from compressor.exporting.runtimes import ENGINES
from compressor.files.paths import own_folder, write_json
from compressor.graph.channels import Channels
from compressor.profiling.timetable import FORMAT, Grid, Layer, Machine, Timetable, Widths, preferred_multiple
from compressor.pruning.price import Price, Term
from compressor.report.progress import progress

_SECONDS = 60.0  # that all timing may take together


@dataclass(frozen=True)
class Timed:
    """What the whole graph took when it was profiled."""

    layers: float  # ms of convolutions and matrix products
    others: float  # of everything else


def here(threads: int, runtime: str = "onnxruntime") -> Machine:
    """This machine with a runtime that is installed."""
    return Machine(machine(), f"{runtime} {ENGINES[runtime].version}", threads, 1)


def timed(
    layers: Sequence[Placed],
    table: Timetable,
    time_layer: Callable[[Layer, Widths, Machine], float],
    clock: Callable[[], float],
) -> bool:
    """Add to a table what it lacks, the least of two passes; False where a minute was not enough for all widths, of
    which every layer's own are timed in any case.
    """
    missing = [(layer, widths) for layer, widths in samples(layers) if widths not in table.samples.get(layer, {})]
    needed = {(each.layer, each.dense) for each in layers}
    began, late = clock(), False
    for passed in range(PASSES):
        for number, (layer, widths) in enumerate(missing):
            late = late or clock() - began > _SECONDS
            if late and (passed or (layer, widths) not in needed):
                continue
            ms = time_layer(layer, widths, table.machine)
            table.add(layer, widths, min(ms, table.samples.get(layer, {}).get(widths, ms)))
            progress("layers", passed * len(missing) + number + 1, PASSES * len(missing))
    return all(widths in table.samples.get(layer, {}) for layer, widths in missing)


def time_here(layer: Layer, widths: Widths, on: Machine) -> float:
    """Milliseconds of a layer on this machine."""
    model, shape = single(layer, widths, on.batch)
    return ENGINES[on.runtime.split()[0]].layer_ms(model, shape, on.threads)


def profile_whole(file: Path, name: str, shape: tuple[int, ...], threads: int, runtime: str) -> Timed:
    """What a graph takes, by layers and everything else."""
    return sorted_times(ENGINES[runtime].operators(str(file), {name: noise(shape)}, threads, 1.0))


def sorted_times(times: dict[str, float]) -> Timed:
    """From the milliseconds of every operator."""
    layers = sum(ms for operator, ms in times.items() if any(part in operator for part in ("Conv", "Gemm")))
    return Timed(layers, sum(times.values()) - layers)


def price(proto: Any, layers: Sequence[Placed], channels: Channels, table: Timetable, whole: Timed) -> Price:
    """Milliseconds of the network by its channels.

    Layers cost what the table says, times what they take in the whole graph for what they take alone; everything else
    in proportion to the elements that it makes.
    """
    grids = [table.grid(each.layer, each.ins, each.outs) for each in layers]
    alone = sum(grid.at(*each.dense) for each, grid in zip(layers, grids, strict=True))
    scale = whole.layers / alone if alone else 1.0
    terms = [_term(each, grid, scale) for each, grid in zip(layers, grids, strict=True)]
    made = list(others(proto, channels))
    known = sum(size * len(ids) for ids, size in made)
    fixed = whole.others if not known else 0.0
    terms += [Term((ids,), partial(_linear, size * whole.others / known)) for ids, size in made]
    return Price("ms", tuple(terms), fixed)


def _linear(each: float, count: int) -> float:
    return each * count


def _term(each: Placed, grid: Grid, scale: float) -> Term:
    sides = (each.taken,) if each.diagonal else (each.taken, each.made)
    axes = tuple(side for side in sides if not isinstance(side, int))
    known: dict[tuple[int, ...], float] = {}

    def cost(*counts: int) -> float:
        if counts not in known:
            given = iter(counts)
            widths = [side if isinstance(side, int) else next(given) for side in sides]
            taken, made = (widths[0], widths[0]) if each.diagonal else widths
            known[counts] = scale * grid.at(taken, made) if taken and made else 0.0
        return known[counts]

    return Term(axes, cost)


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """All that tells how long a network takes for one image while its channels go."""

    proto: Any  # onnx.ModelProto of the network as it came
    layers: tuple[Placed, ...]
    table: Timetable
    whole: Timed
    measured: int  # samples taken now; the others were known
    complete: bool  # or a minute was not enough for all

    def price(self, channels: Channels) -> Price:
        """Milliseconds by channels."""
        return price(self.proto, self.layers, channels, self.table, self.whole)


def layer_times(
    file: Path,
    channels: Channels,
    *,
    threads: int,
    runtime: str = "onnxruntime",
    given: Timetable | None = None,
    time_layer: Callable[[Layer, Widths, Machine], float] = time_here,
    clock: Callable[[], float] = time.monotonic,
) -> LayerTimes:
    """Time a network's layers on this machine, as far as earlier runs have not, or take the times of another machine.

    `file` is the network as `export_onnx` wrote it, with an input of one image. What was measured is kept for this
    chip, runtime, version and number of threads in $XDG_CACHE_HOME/compressor/times (~/.cache where that is not set).

    Raises FileError for a given table that lacks layers of this network.
    """
    import onnx

    proto = with_one_image(onnx.load(file))
    layers = tuple(placed(proto, channels, preferred_multiple()[0]))
    if given is not None:
        lacking = {layer for layer, widths in samples(layers) if widths not in given.samples.get(layer, {})}
        if lacking or given.whole is None:
            raise FileError(
                f"the timetable of {given.machine.chip} is of another network: it lacks {len(lacking)} layers of this "
                "one, write a kit of this network with tune --kit"
            )
        return LayerTimes(proto, layers, given, sorted_times(given.whole), 0, complete=True)
    on = here(threads, runtime)
    place = cache_file(on)
    table = Timetable.read(place) if place.is_file() else Timetable(on)
    before = sum(map(len, table.samples.values()))
    complete = timed(layers, table, time_layer, clock)
    measured = sum(map(len, table.samples.values())) - before
    if measured:
        place.parent.mkdir(parents=True, exist_ok=True)
        table.write(place)
    name, shape = proto.graph.input[0].name, shapes_of(proto.graph)[proto.graph.input[0].name]
    return LayerTimes(proto, layers, table, profile_whole(file, name, shape, threads, runtime), measured, complete)


def cache_file(on: Machine) -> Path:
    """Where the times of a machine are kept."""
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in (on.chip, on.runtime, f"{on.threads} threads"))
    return own_folder("XDG_CACHE_HOME", ".cache") / "times" / f"{name}.json"


def write_kit(file: Path, channels: Channels, folder: Path) -> int:
    """Write a folder with which another machine times a network's layers (`measure.py`, its graphs, `layers.json`);
    returns the number of samples. The folder must be there.
    """
    import onnx

    proto = with_one_image(onnx.load(file))
    layers = placed(proto, channels, preferred_multiple()[0])
    (folder / "layers").mkdir()
    rows: dict[Layer, list[list[Any]]] = {}
    for number, (layer, widths) in enumerate(samples(layers)):
        model, shape = single(layer, widths)
        name = f"layers/{number:04}.onnx"
        (folder / name).write_bytes(model)
        rows.setdefault(layer, []).append([*widths, name, shape])
    shutil.copyfile(file, folder / "whole.onnx")
    given = proto.graph.input[0].name
    whole = {"file": "whole.onnx", "input": given, "shape": shapes_of(proto.graph)[given]}
    listed = [{**asdict(layer), "samples": found} for layer, found in rows.items()]
    write_json(folder / "layers.json", {"format": FORMAT, "layers": listed, "whole": whole})
    shutil.copyfile(Path(measure.__file__), folder / "measure.py")
    return sum(map(len, rows.values()))
