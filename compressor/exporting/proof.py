"""The proof that an export does what it should, exit by exit: parity, executed convolutions, accuracy and time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from compressor.errors import CompressorError
from compressor.exporting.builds import flat_name
from compressor.exporting.engines import Run
from compressor.exporting.forms import THRESHOLDS, Cost, Exit, Form, cost_of
from compressor.exporting.routed import check_mixture
from compressor.exporting.run import Network
from compressor.exporting.running import Runner, arrays, executed, opened
from compressor.exporting.runtime import put_together
from compressor.exporting.samples import (
    RELATIVE_LIMIT,
    agreement,
    images,
    largest_difference,
    portable,
    random_like,
    same_classes,
    torch_outputs,
)
from compressor.profiling.latency import Latency, measure
from compressor.report.manifest import Array, ExitFacts
from compressor.report.measurements import Certificate, Figure
from compressor.routing.network import Routed
from compressor.training.task import examples_in

PROOF_IMAGES = 64
_SLOWER = 1.1  # how much slower than a dearer exit a cheaper one may be measured on a machine that others use too
_SLOWER_MS = 0.1
_PATIENCE = (0.3, 0.3, 0.3, 0.3, 1.0, 1.0)  # seconds that each exit is measured, until their order is right


def parity(
    runner: Runner, leaving: Exit, inputs: Any, names: Sequence[str] = ("input",), *, quantized: bool = False
) -> tuple[float, float]:
    """The largest relative difference of an exit from torch, on one image, on five, and on all, and the share of images
    with the same largest score.

    Raises:
        CompressorError: of a float32 graph the difference is too large, or the classes are others.
    """
    worst = 0.0
    for count in (1, 5, examples_in(inputs)):
        batch = images(inputs, count)
        expected = torch_outputs(leaving.module, batch)
        got = runner(*arrays(batch, names).values())
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


_PRODUCTS = ("Gemm", "MatMul")  # in the names of ONNX Runtime's operators, fused and quantized ones too


def count_layers(file: Path, leaving: Exit, promised: Cost, image: Mapping[str, Array]) -> None:
    """Check that an exit executes the convolutions it promises; of a network without any, the matrix products.

    Raises:
        CompressorError: they are more or fewer.
    """
    ran = executed(file, {**image, **leaving.feeds})
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
    runners: Sequence[Runner],
    costs: Sequence[Cost],
    image: Mapping[str, Array],
    threads: int,
    beside: Sequence[Callable[[], object]],
) -> tuple[list[Latency], list[Latency]]:
    """The time of each exit for one image, and of what else is called `beside` them in turn, as the same in torch.

    What else the machine does can make a run longer and never shorter, so exits are judged by the shortest of several
    medians, taken in turn.

    Raises:
        CompressorError: an exit of fewer multiply-adds is clearly slower than one of more, however often they are
            measured.
    """
    best: list[Latency] = []
    calls: list[Callable[[], object]] = [*(partial(run, **image) for run in runners), *beside]
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
        f"{best[dear].median:.2f} ms; nothing was written: if others use this machine, try again, or give "
        "`latency=False`"
    )


# What an exit answers before and after -> what is promised of the difference on fresh images.
Judge = Callable[[Callable[..., Any], Callable[..., Any]], Certificate]
Score = Callable[[Callable[..., Any]], float]  # what maps inputs to what the model returned -> its figure on test data


@dataclass(frozen=True, eq=False)
class Evidence:
    """Images as the model takes them, float `(count, channels, height, width)`, or a tuple or dict of its inputs, and
    what measures accuracy."""

    images: Any = None  # on which ONNX Runtime is compared with torch, 64 or more; None: random ones
    calibration: Any = None  # of the training set, for a quantizer
    score: Score | None = None
    figure: Callable[[], Figure] = Figure  # that it gave: a task's has its name once it is measured
    scored: Mapping[int, float] = field(default_factory=dict)  # by exit, before quantization, where that is known
    promise: Judge | None = None  # that every exit in INT8 has to keep
    words: str = ""

    def on(self, example: Any) -> "Evidence":
        """The same with images in any case, on the CPU, and with words for what they are."""
        real = self.images is not None
        images = portable(self.images) if real else random_like(example, PROOF_IMAGES)
        calibration = None if self.calibration is None else portable(self.calibration)
        kind = "images" if isinstance(images, Tensor) else "examples"
        words = f"{examples_in(images)} {'real' if real else 'random'} {kind}"
        return replace(self, images=images, calibration=calibration, words=words)


@dataclass(frozen=True)
class Demands:
    """What is looked at beyond parity and executed convolutions."""

    runtime: str = "onnx"
    latency: bool = True
    quantized: bool = False  # then accuracy is compared and not outputs
    float32: Run | None = None  # the same before quantization, to be timed beside it


def prove(
    form: Form, evidence: Evidence, folder: Path, graphs: Mapping[str, str], demands: Demands
) -> tuple[ExitFacts, ...]:
    """Compare, count and time every exit of the graphs in a folder, given by name.

    Raises:
        CompressorError: one computes something else than torch, executes something else than it promises, takes longer
            than a dearer one, or lost more accuracy than allowed.
    """
    assert evidence.images is not None
    inputs, threads = evidence.images, torch.get_num_threads()
    network = opened(folder, graphs, demands.runtime, form, threads)
    costs = [cost_of(leaving.module, inputs) for leaving in form.exits]
    runners = [Runner(network, leaving.feeds, form.names, form.gives) for leaving in form.exits]
    worst = [_compare(folder, graphs, form, *each, inputs, demands) for each in zip(form.exits, costs, runners)]
    alone = [partial(_torch_answer, leaving, form.gives) for leaving in form.exits]
    top1 = [_accuracy(evidence, *each, demands) for each in zip(form.exits, alone, runners)]
    promised = [_promised(evidence.promise, *each) for each in zip(form.exits, alone, runners)]
    one = images(inputs, 1)
    if isinstance(form.module, Routed) and not demands.quantized:
        check_mixture(form.module, network, inputs)
    times: tuple[Sequence[Latency | None], ...] = ([None] * len(costs),) * 3
    if demands.latency:
        image = arrays(one, form.names)
        beside: list[Callable[[], object]] = [partial(torch_outputs, leaving.module, one) for leaving in form.exits]
        if demands.float32 is not None:
            whole = [Runner(demands.float32, leaving.feeds, form.names) for leaving in form.exits]
            beside += [partial(run, **image) for run in whole]
        exported, others = latencies(runners, costs, image, threads, beside)
        times = (exported, others[: len(costs)], others[len(costs) :] or times[2])
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
            torch_ms=None if in_torch is None else in_torch.median,
            float_ms=None if before_int8 is None else before_int8.median,
            max_rel=relative,
            agreement=agreement,
            certificate=None if certificate is None else certificate.to_json(),
        )
        for leaving, cost, (before, after), certificate, (relative, agreement), time, in_torch, before_int8 in zip(
            form.exits, costs, top1, promised, worst, *times
        )
    )


def routing_facts(form: Form, score: Score | None, network: Run, exits: Sequence[ExitFacts]) -> dict[str, Any] | None:
    """How a routed model does with its calibrated thresholds on the test images; None for others, and without them."""
    if not isinstance(form.module, Routed) or score is None:
        return None
    run = Runner(network, {THRESHOLDS: form.module.thresholds.numpy()})
    left: list[int] = []  # the depth of each image

    def scores(batch: Array) -> Array:
        found, depths = run(batch)
        left.extend(depths.tolist())
        return found

    top1 = score(scores)
    shares = [left.count(depth) / max(1, len(left)) for depth in range(len(exits))]
    mean = sum(share * each.macs for share, each in zip(shares, exits))
    return {"top1": top1, "mean_macs": round(mean), "left_at": shares}


def _compare(
    folder: Path,
    graphs: Mapping[str, str],
    form: Form,
    leaving: Exit,
    cost: Cost,
    run: Runner,
    inputs: Any,
    demands: Demands,
) -> tuple[float, float]:
    """The largest difference of an exit's graphs from torch, and the smallest agreement; their layers are counted."""
    flat, found = flat_name(leaving.number), [(graphs.get("model"), leaving, cost, run)]
    if "model" in graphs and flat in graphs:
        alone = replace(leaving, module=leaving.alone or leaving.module, feeds={})
        own = Network(folder, about={"runtime": demands.runtime, "graphs": {"model": graphs[flat]}, "tuned": None})
        found.append((graphs[flat], alone, cost_of(alone.module, inputs), Runner(own, {}, form.names)))
    differences, agreements = [], []
    for file, asked, promised, runs in found:
        if demands.runtime == "onnx" and file is not None:
            count_layers(folder / file, asked, promised, arrays(images(inputs, 1), form.names))
        relative, agreed = parity(runs, asked, inputs, form.names, quantized=demands.quantized)
        differences.append(relative)
        agreements.append(agreed)
    return max(differences), min(agreements)


def _accuracy(
    evidence: Evidence, leaving: Exit, alone: Callable[..., Any], run: Runner, demands: Demands
) -> tuple[float | None, float | None]:
    """Top-1 before quantization, None where there was none, and on ONNX Runtime."""
    if evidence.score is None:
        return None, None
    before = evidence.scored.get(leaving.number) if demands.quantized else None
    if demands.quantized and before is None:
        before = evidence.score(alone)
    return before, evidence.score(run.answer)


def _promised(promise: Judge | None, leaving: Exit, alone: Callable[..., Any], run: Runner) -> Certificate | None:
    """What is promised of an exit. Raises CompressorError where nothing can be."""
    if promise is None:
        return None
    found = promise(alone, run.answer)
    if not found.kept:
        raise CompressorError(f"exit {leaving.number} ({leaving.name}): {found.words()} Nothing was written.")
    return found


def _torch_answer(leaving: Exit, gives: Any, *given: Array, **named: Array) -> Any:
    given, named = tree_map_only(np.ndarray, torch.from_numpy, (given, named))
    with torch.inference_mode():
        found = leaving.module(*given, **named)
    return put_together(gives, [leaf.numpy() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)])
