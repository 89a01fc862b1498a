"""The proof that an exported graph does what it should and no more: parity, executed convolutions, and time."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from compressor.errors import CompressorError, first_line
from compressor.exporting.forms import Cost, Exit
from compressor.exporting.run import Run
from compressor.exporting.runtime import open_session
from compressor.exporting.samples import RELATIVE_LIMIT, largest_difference, torch_outputs
from compressor.profiling.latency import Latency, measure
from compressor.report.manifest import Array

PROOF_IMAGES = 64
_TIE = 1e-5  # share of the largest score within which two classes are equally good
_SLOWER = 1.1  # how much slower than a dearer exit a cheaper one may be measured on a machine that others use too
_SLOWER_MS = 0.1
_PATIENCE = (0.3, 0.3, 0.3, 0.3, 1.0, 1.0)  # seconds that each exit is measured, until their order is right


class Runner:
    """One exit of an exported network: (batch, channels, height, width) to a list of outputs."""

    def __init__(self, run: Run, feeds: Mapping[str, Array]) -> None:
        self._run, self._feeds = run, dict(feeds)

    def __call__(self, images: Array) -> list[Array]:
        """All outputs.

        Raises:
            CompressorError: the runtime cannot run it.
        """
        try:
            return self._run({"input": np.ascontiguousarray(images), **self._feeds})
        except Exception as error:  # every runtime has exceptions of its own
            raise CompressorError(f"the exported graph does not run ({first_line(error)})") from error


def parity(runner: Runner, leaving: Exit, images: Tensor, *, quantized: bool = False) -> tuple[float, float]:
    """The largest relative difference of an exit from torch, on one image, on five, and on all, and the share of images
    with the same largest score.

    Raises:
        CompressorError: of a float32 graph the difference is too large, or the classes are others.
    """
    worst = 0.0
    for batch in (images[:1], images[:5], images):
        expected = torch_outputs(leaving.module, batch)
        got = runner(batch.numpy())
        _, relative = largest_difference(expected, got)
        worst = max(worst, relative)
        if not relative <= (float("inf") if quantized else RELATIVE_LIMIT):
            raise CompressorError(
                f"exit {leaving.number} ({leaving.name}) differs from torch by {relative:.1e} of the largest output "
                f"(at most {RELATIVE_LIMIT:.0e} is allowed); nothing was written"
            )
        if not quantized and not same_classes(expected[0], got[0]):
            raise CompressorError(f"exit {leaving.number} ({leaving.name}) gives other classes than torch")
    return worst, agreement(expected[0], got[0])


def agreement(expected: Array, got: Array) -> float:
    """The share of images with the same largest score; 1 for what are no scores."""
    scores = expected.ndim == 2 and expected.shape == got.shape
    return float((expected.argmax(1) == got.argmax(1)).mean()) if scores else 1.0


def same_classes(expected: Array, got: Array) -> bool:
    """Whether the largest scores are at the same places, but for ties; true for what are no scores."""
    if expected.ndim != 2 or not expected.size:
        return True
    chosen = np.take_along_axis(expected, got.argmax(1)[:, None], 1)[:, 0]
    return bool((chosen >= expected.max(1) - _TIE * np.abs(expected).max()).all())


def executed(file: Path, feeds: Mapping[str, Array], image: Array) -> Counter[str]:
    """How often each operator ran for one image, by ONNX Runtime's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(file, profile=Path(folder) / "profile")
        Runner(partial(session.run, None), feeds)(image)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    names = (event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"))
    return Counter(event["args"]["op_name"] for event in names)


_PRODUCTS = ("Gemm", "MatMul")  # in the names of ONNX Runtime's operators, fused and quantized ones too


def count_layers(file: Path, leaving: Exit, promised: Cost, image: Array) -> None:
    """Check that an exit executes the convolutions it promises; of a network without any, the matrix products.

    Raises:
        CompressorError: they are more or fewer.
    """
    ran = executed(file, leaving.feeds, image)
    kind, wanted, found = "convolutions", promised.convolutions, sum(n for name, n in ran.items() if "Conv" in name)
    if not wanted and not found:
        kind, wanted = "matrix products", promised.products
        found = sum(count for name, count in ran.items() if any(part in name for part in _PRODUCTS))
    if found != wanted:
        raise CompressorError(
            f"exit {leaving.number} ({leaving.name}) executes {found} {kind} and not the {wanted} it should; nothing "
            "was written"
        )


def latencies(
    runners: Sequence[Runner], costs: Sequence[Cost], image: Array, threads: int, beside: Sequence[Callable[[], object]]
) -> tuple[list[Latency], list[Latency]]:
    """The time of each exit for one image, and of the same in torch, called in turn.

    What else the machine does can make a run longer and never shorter, so exits are judged by the shortest of several
    medians, taken in turn.

    Raises:
        CompressorError: an exit of fewer multiply-adds is clearly slower than one of more, however often they are
            measured.
    """
    best: list[Latency] = []
    calls: list[Callable[[], object]] = [*(partial(run, image) for run in runners), *beside]
    order = sorted(range(len(runners)), key=lambda index: costs[index].macs)
    for seconds in _PATIENCE:
        found = [measure(call, threads=threads, seconds=seconds) for call in calls]
        best = [min(both, key=lambda each: each.median) for both in zip(best or found, found)]
        wrong = [
            (cheap, dear)
            for cheap, dear in pairwise(order)
            if costs[cheap].macs < costs[dear].macs and best[cheap].median > _SLOWER * best[dear].median + _SLOWER_MS
        ]
        if not wrong:
            return best[: len(runners)], best[len(runners) :]
    cheap, dear = wrong[0]
    raise CompressorError(
        f"exit {cheap} takes {best[cheap].median:.2f} ms and exit {dear}, with more multiply-adds, "
        f"{best[dear].median:.2f} ms; nothing was written: if others use this machine, try again, or give --no-latency"
    )
