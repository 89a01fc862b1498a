"""What an export is judged by, and the judgement: one row of facts for each exit, or an error."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import CompressorError
from compressor.exporting.builds import flat_name
from compressor.exporting.forms import THRESHOLDS, Cost, Exit, Form, cost_of
from compressor.exporting.proof import PROOF_IMAGES, Runner, count_layers, latencies, parity
from compressor.exporting.routed import check_mixture
from compressor.exporting.run import Network, Run
from compressor.exporting.samples import portable, random_like, torch_outputs
from compressor.profiling.latency import Latency
from compressor.report.certificate import Certificate
from compressor.report.manifest import Array, ExitFacts
from compressor.routing.network import Routed

# What an exit's scores are before and after -> what is promised of the difference on fresh images.
Judge = Callable[[Callable[[Array], Array], Callable[[Array], Array]], Certificate]
Score = Callable[[Callable[[Array], Array]], float]  # what maps images to scores -> its top-1 on the test images


@dataclass(frozen=True, eq=False)
class Evidence:
    """Images as the model takes them, float `(count, channels, height, width)`, and what measures accuracy."""

    images: Tensor | None = None  # on which ONNX Runtime is compared with torch, 64 or more; None: random ones
    calibration: Tensor | None = None  # of the training set, for a quantizer
    score: Score | None = None
    promise: Judge | None = None  # that every exit in INT8 has to keep
    words: str = ""

    def on(self, example: Tensor) -> "Evidence":
        """The same with images in any case, on the CPU, and with words for what they are."""
        real = self.images is not None
        images = portable(self.images) if real else random_like(example, PROOF_IMAGES)
        calibration = None if self.calibration is None else portable(self.calibration)
        words = f"{len(images)} {'real' if real else 'random'} images"
        return replace(self, images=images, calibration=calibration, words=words)


@dataclass(frozen=True)
class Demands:
    """What is looked at beyond parity and executed convolutions."""

    runtime: str = "onnx"
    latency: bool = True
    quantized: bool = False  # then accuracy is compared and not outputs


def opened(folder: Path, graphs: Mapping[str, str], runtime: str, form: Form, threads: int) -> Network:
    """The graphs in a folder as the package's own script runs them."""
    about = {"runtime": runtime, "graphs": graphs, "exits": form.exits, "tuned": None}
    return Network(folder, threads, about)


def prove(
    form: Form, evidence: Evidence, folder: Path, graphs: Mapping[str, str], demands: Demands
) -> tuple[ExitFacts, ...]:
    """Compare, count and time every exit of the graphs in a folder, given by name.

    Raises:
        CompressorError: one computes something else than torch, executes something else than it promises, takes longer
            than a dearer one, or lost more accuracy than allowed.
    """
    assert evidence.images is not None
    images, threads = evidence.images, torch.get_num_threads()
    network = opened(folder, graphs, demands.runtime, form, threads)
    costs = [cost_of(leaving.module, images) for leaving in form.exits]
    runners = [Runner(network, leaving.feeds) for leaving in form.exits]
    worst = [_compare(folder, graphs, *each, images, demands) for each in zip(form.exits, costs, runners)]
    top1 = [
        (None, None) if evidence.score is None else _accuracy(evidence.score, *each, demands)
        for each in zip(form.exits, runners)
    ]
    promised = [_promised(evidence.promise, *each) for each in zip(form.exits, runners)]
    image = images[:1].numpy()
    if isinstance(form.module, Routed) and not demands.quantized:
        check_mixture(form.module, network, images)
    times: tuple[Sequence[Latency | None], Sequence[Latency | None]] = ([None] * len(costs),) * 2
    if demands.latency:
        beside = [partial(torch_outputs, leaving.module, images[:1]) for leaving in form.exits]
        times = latencies(runners, costs, image, threads, beside)
    return tuple(
        ExitFacts(
            number=leaving.number,
            name=leaving.name,
            macs=cost.macs,
            params=cost.params,
            convolutions=cost.convolutions,
            feeds={name: value.tolist() for name, value in leaving.feeds.items()},
            file=graphs.get(flat_name(leaving.number)),
            top1=after,
            top1_float=before,
            latency_ms=None if time is None else asdict(time),
            torch_ms=None if beside is None else beside.median,
            max_rel=relative,
            agreement=agreement,
            certificate=None if certificate is None else certificate.to_json(),
        )
        for leaving, cost, (before, after), certificate, (relative, agreement), time, beside in zip(
            form.exits, costs, top1, promised, worst, *times
        )
    )


def routing_facts(form: Form, score: Score | None, network: Run, exits: Sequence[ExitFacts]) -> dict[str, Any] | None:
    """How a routed model does with its calibrated thresholds on the test images; None for others, and without them."""
    if not isinstance(form.module, Routed) or score is None:
        return None
    run = Runner(network, {THRESHOLDS: form.module.thresholds.numpy()})
    left = np.zeros(len(exits), np.int64)

    def scores(batch: Array) -> Array:
        nonlocal left
        found, depths = run(batch)
        left = left + np.bincount(depths, minlength=len(exits))
        return found

    top1 = score(scores)
    shares = [float(count) / max(1, int(left.sum())) for count in left]
    mean = sum(share * each.macs for share, each in zip(shares, exits))
    return {"top1": top1, "mean_macs": round(mean), "left_at": shares}


def _compare(
    folder: Path, graphs: Mapping[str, str], leaving: Exit, cost: Cost, run: Runner, images: Tensor, demands: Demands
) -> tuple[float, float]:
    """The largest difference of an exit in its graphs, and the smallest agreement; in ONNX Runtime they execute the
    convolutions they should.
    """
    flat, found = flat_name(leaving.number), [(graphs.get("model"), leaving, cost, run)]
    if "model" in graphs and flat in graphs:
        module = leaving.alone or leaving.module
        own = Network(folder, about={"runtime": demands.runtime, "graphs": {"model": graphs[flat]}, "tuned": None})
        found.append(
            (graphs[flat], replace(leaving, module=module, feeds={}), cost_of(module, images), Runner(own, {}))
        )
    for file, asked, promised, _ in found:
        if demands.runtime == "onnx" and file is not None:
            count_layers(folder / file, asked, promised, images[:1].numpy())
    pairs = [parity(each, asked, images, quantized=demands.quantized) for _, asked, _, each in found]
    return max(relative for relative, _ in pairs), min(agreement for _, agreement in pairs)


def _accuracy(score: Score | None, leaving: Exit, run: Runner, demands: Demands) -> tuple[float | None, float | None]:
    """Top-1 before quantization, None where there was none, and on ONNX Runtime."""
    if score is None:
        return None, None
    after = score(partial(_scores, run))
    if not demands.quantized:
        return None, after
    before = score(partial(_torch_scores, leaving))
    return before, after


def _promised(promise: Judge | None, leaving: Exit, run: Runner) -> Certificate | None:
    """What is promised of an exit. Raises CompressorError where nothing can be."""
    if promise is None:
        return None
    found = promise(partial(_torch_scores, leaving), partial(_scores, run))
    if not found.kept:
        raise CompressorError(f"exit {leaving.number} ({leaving.name}): {found.words()} Nothing was written.")
    return found


def _scores(run: Runner, batch: Array) -> Array:
    return run(batch)[0]


def _torch_scores(leaving: Exit, batch: Array) -> Array:
    return torch_outputs(leaving.module, torch.from_numpy(batch))[0]
