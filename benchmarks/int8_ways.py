"""Ways to bring an INT8 network nearer to its float form: published networks, as they come and cut to half.

    python -m benchmarks.int8_ways --nets NETS --data cifar10-jpeg=folder:DIR \\
        --data imagenette=folder:DIR --lite0 efficientnet-lite0-57934424.pth

Half of the multiply-adds are what `prune_` leaves by default, label-free and without training. Each row quantizes the
same graph with ONNX Runtime's quantizer for `--chip` on 128 training images, differing in one thing: "agreement" is the
share of all test images with the same class as in float32, "error" the mean squared error of the scores over their
variance. "rounding with error feedback" chooses rounded weights one input after another and lets the rest make up for
what rounding did (Frantar et al. 2023, GPTQ); "biases" takes each channel's mean error out. Then what the first
convolution in float32 costs in time, of networks without training, whatever `image_convolution` says of it. Writes
benchmarks/results/int8_ways.json and goes on where it was broken off.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import CalibrationMethod
from torch import Tensor, nn
from torch.nn import functional

import compressor
from benchmarks.real import NETWORKS, Network, parser_of
from benchmarks.resumable import opened
from benchmarks.stranger_resnet import resnet20
from compressor.exporting.biases import correct_biases
from compressor.exporting.flatten import OPSET, flatten
from compressor.exporting.onnx_in.reading import open_onnx
from compressor.exporting.quantize import SCHEMES, Chip, free_scores_, image_convolution, quantize
from compressor.exporting.runtime import open_session
from compressor.exporting.samples import agreement
from compressor.files.paths import write_json
from compressor.profiling.costs import macs_of
from compressor.training.data import open_data, with_input_shape
from compressor.vision import door as vision

OUT = Path(__file__).parent / "results" / "int8_ways.json"
COLUMNS = 20_000  # positions of feature maps on which weights are rounded


CALIBRATED = 128  # images


@dataclass(frozen=True)
class Way:
    """What is done beyond rounding all that the quantizer can."""

    free: bool = True  # scores in float32
    first: bool = False  # the convolution that reads the image, too
    images: int = CALIBRATED
    feedback: bool = False
    biases: bool = False  # by what comes out of rounded layers, one after another
    corrected: bool = False  # biases by `correct_biases`, all at once
    cut: bool = False  # ranges by `write_ranges` in place of the smallest and the largest value
    options: Mapping[str, Any] = field(default_factory=dict)  # of the quantizer


WAYS = {
    "scores in 8 bits too": Way(free=False),
    "scores in float32": Way(),
    "512 images": Way(images=512),
    "ranges by entropy": Way(options={"calibrate_method": CalibrationMethod.Entropy}),
    "ranges by percentile 99.99": Way(
        options={"calibrate_method": CalibrationMethod.Percentile, "extra_options": {"CalibPercentile": 99.99}}
    ),
    "ranges by least error": Way(cut=True),
    "biases": Way(biases=True),
    "rounding with error feedback": Way(feedback=True),
    "rounding and biases": Way(feedback=True, biases=True),
    "first convolution in float32": Way(first=True),
    "rounding, biases and the first in float32": Way(feedback=True, biases=True, first=True),
    "rounding, the first in float32 and ranges by least error": Way(feedback=True, first=True, cut=True),
    "as exported": Way(first=True, corrected=True, cut=True),
}
SHORT = (
    "scores in float32",
    "first convolution in float32",
    "ranges by least error",
    "as exported",
    "rounding and biases",
    "rounding, biases and the first in float32",
)
# Networks whose first convolution is timed, its maps pooled in the last two.
STEMS = {
    "resnet20": (3, 32, 32),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnet18", "resnet50"), (3, 224, 224)),
}
ROUNDS = 20  # of all ways in turn


def pieces(images: Tensor) -> Iterator[dict[str, Any]]:
    """What a graph is called with, some images at a time."""
    return ({"input": part.numpy()} for part in images.split(8))


def adjusted(network: nn.Module, images: Tensor, limit: int, *, feedback: bool, biases: bool) -> nn.Module:
    """A copy whose weights lie on the quantizer's grid of `limit` steps, layer by layer on what comes before."""
    made, layers = copy.deepcopy(network), list[str]()
    named = {name: layer for name, layer in made.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    hooks = [each.register_forward_pre_hook(lambda *_, name=name: layers.append(name)) for name, each in named.items()]
    with torch.no_grad():
        made(images[:1])
    for hook in hooks:
        hook.remove()
    for name in layers:
        layer: Any = made.get_submodule(name)
        given, expected = called(made, layer, images)[0], called(network, network.get_submodule(name), images)[1]
        weight = layer.weight.detach().flatten(1).double()
        step = (weight.abs().amax(1) / limit).clamp(min=1e-12)  # a filter may be zero
        hessian = (
            columns(layer, given)
            if feedback and _groups(layer) == 1
            else torch.eye(weight.shape[1], dtype=torch.float64)
        )
        rounded = on_grid(weight, hessian, step, limit)
        largest = weight.abs().argmax(1, keepdim=True)  # stays, since the quantizer takes the step from it
        layer.weight.data = rounded.scatter(1, largest, weight.gather(1, largest)).view_as(layer.weight).float()
        if biases:
            with torch.no_grad():
                layer.bias += (expected - layer(given)).mean([dim for dim in range(expected.dim()) if dim != 1])
    return made


def _groups(layer: Any) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def called(network: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into a layer and what comes out."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    with torch.no_grad():
        network(images)
    hook.remove()
    return seen[0]


def columns(layer: Any, given: Tensor) -> Tensor:
    """The second moments of what each of a layer's filters is multiplied with."""
    if isinstance(layer, nn.Conv2d):
        parts = functional.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        given = parts.transpose(1, 2).flatten(0, 1)
    chosen = given[torch.randperm(len(given), generator=torch.Generator().manual_seed(0))[:COLUMNS]].double()
    return chosen.T @ chosen / len(chosen)


def on_grid(weight: Tensor, hessian: Tensor, step: Tensor, limit: int) -> Tensor:
    """Rounded weights (filters, inputs), inputs of the most power first, by the Cholesky factor of the inverse."""
    size = len(hessian)
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(size, dtype=hessian.dtype)
    order = hessian.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left, rounded = weight[:, order].clone(), torch.empty_like(weight)
    for place in range(size):
        value = left[:, place]
        rounded[:, place] = (value / step).round().clamp(-limit, limit) * step
        error = (value - rounded[:, place]) / factor[place, place]
        left[:, place:] -= error[:, None] * factor[place, place:]
    return rounded[:, order.argsort()]


def table(result: dict[str, Any]) -> str:
    """The result as Markdown: every way on the first network, then what INT8 costs each."""
    rows = {(row["network"], row["left"], row["chip"], row["way"]): row for row in result["rows"]}
    chips = list(dict.fromkeys(row["chip"] for row in result["rows"]))
    first = result["rows"][0]
    lines = ["| ResNet-20 | " + " | ".join(f"`--chip {chip}`, same class | error" for chip in chips) + " |"]
    lines.append("|---" * (1 + 2 * len(chips)) + "|")
    for way in dict.fromkeys(row["way"] for row in result["rows"]):
        of = [rows.get((first["network"], 1.0, chip, way)) for chip in chips]
        if all(of):
            cells = " | ".join(f"{row['agreement']:.2%} | {row['error']:.1e}" for row in of if row)
            lines.append(f"| {way} | {cells} |")
    lines += ["", "| `--chip x86` | MACs | float32 | " + " | ".join(SHORT) + " |", "|---" * (3 + len(SHORT)) + "|"]
    for network, left in dict.fromkeys((row["network"], row["left"]) for row in result["rows"]):
        of = [rows.get((network, left, "x86", way)) for way in SHORT]
        cells = " | ".join(f"{row['top1']:.2%}, {row['agreement']:.1%}" if row else "" for row in of)
        top1 = next(row["float_top1"] for row in of if row)
        lines.append(f"| {network} | {left:.0%} | {top1:.2%} | {cells} |")
    lines += [
        "",
        "| first convolution | its MACs | float32 | all in INT8 | the first in float32 |",
        "|---|---|---|---|---|",
    ]
    for row in result.get("stems", ()):
        pooled = ", pooled" if row["pooled"] else ""
        lines.append(
            f"| {row['network']}{pooled} | {row['share']:.1%} | {row['float_ms']:.2f} ms | {row['int8_ms']:.2f} ms | "
            f"{row['ms'] / row['int8_ms'] - 1:+.0%} |"
        )
    return "\n".join(lines)


def stem(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the first convolution of a network costs in float32, in milliseconds of the whole network."""
    torch.manual_seed(0)
    network = resnet20() if name == "resnet20" else vision.build(name, num_classes=1000)
    images = torch.randn(8, *shape)
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.onnx" for kind in ("float_ms", "int8_ms", "ms")}
        program = flatten(network.eval(), images[:2], OPSET, ["input"])
        program.save(files["float_ms"])
        first = next(node for node in program.model.graph if node.op_type == "Conv")
        for kind, left in (("int8_ms", []), ("ms", [first.name])):
            quantize(files["float_ms"], files[kind], SCHEMES["x86"], pieces(images), nodes_to_exclude=left)
            free_scores_(files[kind])
        sessions = {kind: open_session(file, threads=1) for kind, file in files.items()}
        taken: dict[str, list[float]] = {kind: [] for kind in files}
        for _ in range(ROUNDS + 3):
            for kind, session in sessions.items():
                session.run(None, {"input": images[:1].numpy()})
                begun = time.process_time()
                session.run(None, {"input": images[:1].numpy()})
                taken[kind].append(1e3 * (time.process_time() - begun))
        macs = first.inputs[1].const_value.size * first.outputs[0].shape[2] * first.outputs[0].shape[3]
        pooled = not image_convolution(program.model.graph)
    return {"network": name, "share": macs / macs_of(network, shape), "pooled": pooled} | {
        kind: statistics.median(each[3:]) for kind, each in taken.items()
    }


def main() -> None:
    parser = parser_of(__doc__, [name for name in NETWORKS if name != "vgg11"])
    parser.add_argument("--left", nargs="+", type=float, default=[1.0, 0.5])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    given.device = "cpu"
    torch.set_num_threads(1)
    specs = dict(each.split("=", 1) for each in given.data)
    result = opened(given.out, {"calibrated_on": CALIBRATED}, "cpu", 1)
    result["stems"] = result.get("stems") or [stem(name, shape) for name, shape in STEMS.items()]
    done = {(row["network"], row["left"], row["chip"], row["way"]) for row in result["rows"]}
    for name, left in ((name, left) for name in given.networks for left in given.left):
        chips = ("x86", "x86-old") if (name, left) == ("resnet20", 1.0) else ("x86",)
        wanted = {(name, left, chip, way) for chip in chips for way in (WAYS if len(chips) > 1 else SHORT)}
        wanted = {cell for cell in wanted if cell[3] in given.ways}
        if wanted <= done:
            continue
        case = Case.of(NETWORKS[name], specs[NETWORKS[name].data], left, given)
        for *_, chip, way in sorted(wanted - done, key=lambda cell: (cell[2], list(WAYS).index(cell[3]))):
            row = {"network": name, "left": left, "chip": chip, "way": way, "float_top1": case.top1(case.expected)}
            result["rows"].append(row | case.measured(chip, WAYS[way]))
            print(result["rows"][-1], flush=True)
            write_json(given.out, result)
    print(table(result))


@dataclass(frozen=True)
class Case:
    """A network without batch norms, as it is quantized, and images."""

    network: nn.Module
    more: Tensor  # training images
    test: Tensor
    labels: Tensor
    expected: np.ndarray

    @classmethod
    def of(cls, network: Network, spec: str, left: float, given: argparse.Namespace) -> "Case":
        data = open_data(spec, network.loading)
        if network.side:
            data = with_input_shape(data, (data.input_shape[0], network.side, network.side))
        model = network.open(given, data).eval()
        if left < 1:
            images = data.examples(data.train, 512)
            compressor.prune_(model, images[:1], target_macs=left, data=list(images.split(32)))
        test, more = data.examples(data.test, len(data.test)), data.examples(data.train, 512)
        with torch.inference_mode():
            expected = torch.cat([model(part) for part in test.split(100)]).numpy()
        with tempfile.TemporaryDirectory() as folder:
            flatten(model, more[:2], OPSET, ["input"]).save(Path(folder) / "network.onnx")
            folded = open_onnx(Path(folder) / "network.onnx").module
        return cls(folded, more, test, data.test.labels, expected)

    def top1(self, scores: np.ndarray) -> float:
        return float((scores.argmax(1) == self.labels.numpy()).mean())

    def measured(self, chip: Chip, way: Way) -> dict[str, float]:
        """Of the network, quantized for a chip in some way."""
        module, limit = self.network, 63 if SCHEMES[chip].reduced else 127
        if way.feedback or way.biases:
            few = self.more[:CALIBRATED]
            module = adjusted(module, few, limit, feedback=way.feedback, biases=way.biases)
        if way.corrected:
            module = correct_biases(module, self.more[:CALIBRATED], chip)
        options = dict(way.options)
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            program = flatten(module, self.more[:2], OPSET, ["input"])
            program.save(source)
            if way.first:
                options["nodes_to_exclude"] = image_convolution(program.model.graph)
            quantize(source, target, SCHEMES[chip], pieces(self.more[: way.images]), cut=way.cut, **options)
            if way.free:
                free_scores_(target)
            session = open_session(target, threads=1)
            got = np.concatenate([session.run(None, {"input": part.numpy()})[0] for part in self.test.split(100)])
        error = float(((got - self.expected) ** 2).mean() / self.expected.var())
        return {"agreement": agreement(self.expected, got), "error": error, "top1": self.top1(got)}


if __name__ == "__main__":
    main()
