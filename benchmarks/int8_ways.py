"""Ways to bring an INT8 network nearer to its float form: ResNet-20 with published weights, all test images.

    python -m benchmarks.int8_ways --nets NETS --cifar folder:CIFAR --out benchmarks/results/int8_ways.json

Each row quantizes the same graph with ONNX Runtime's quantizer for `--chip` on 128 training images, differing in one
thing: "agreement" is the share of test images with the same class as in float32, "error" the mean squared error of the
scores over their variance. "rounding with error feedback" chooses rounded weights one input after another and
lets the rest make up for what rounding did (Frantar et al. 2023, GPTQ); "biases" takes each channel's mean error out.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.real import _resnet
from benchmarks.stranger_resnet import resnet20
from compressor.exporting.onnx import OPSET, flatten
from compressor.exporting.onnx_in.reading import open_onnx
from compressor.exporting.proof import agreement
from compressor.exporting.quantize import SCHEMES, free_scores_, quantize
from compressor.exporting.runtime import open_session
from compressor.files.paths import write_json
from compressor.report.environment import device_words, versions
from compressor.training.data import open_data
from compressor.training.settings import DataSettings

PHOTOGRAPHS = DataSettings(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
COLUMNS = 20_000  # positions of feature maps on which weights are rounded


class Reader:
    """Hands the quantizer some images at a time."""

    def __init__(self, images: Tensor) -> None:
        self._pieces: Iterator[Tensor] = iter(images.split(8))

    def get_next(self) -> Any:
        piece = next(self._pieces, None)
        return None if piece is None else {"input": piece.numpy()}


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
        step = weight.abs().amax(1) / limit
        hessian = columns(layer, given) if feedback else torch.eye(weight.shape[1], dtype=torch.float64)
        rounded = on_grid(weight, hessian, step, limit)
        largest = weight.abs().argmax(1, keepdim=True)  # stays, since the quantizer takes the step from it
        layer.weight.data = rounded.scatter(1, largest, weight.gather(1, largest)).view_as(layer.weight).float()
        if biases:
            with torch.no_grad():
                layer.bias.data += (expected - layer(given)).mean([dim for dim in range(expected.dim()) if dim != 1])
    return made


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
    """The result as Markdown, a row for each way."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        rows.setdefault(row["way"], {})[row["chip"]] = row
    chips = list(next(iter(rows.values())))
    cells = (
        " | ".join(f"{row[chip]['agreement']:.2%} | {row[chip]['error']:.1e}" for chip in chips)
        for row in rows.values()
    )
    lines = [f"| {way} | {cell} |" for way, cell in zip(rows, cells)]
    head = "| ResNet-20 | " + " | ".join(f"`--chip {chip}`, same class | error" for chip in chips) + " |"
    return "\n".join([head, "|---" * (1 + 2 * len(chips)) + "|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True, help="folder with the published ResNets")
    parser.add_argument("--cifar", required=True, help="CIFAR-10, as --data takes it")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(given.cifar, PHOTOGRAPHS)
    test, more = data.examples(data.test, given.images), data.examples(data.train, 512)
    model = _resnet(resnet20, "resnet20-12fca82f.th", given, data).eval()
    with torch.inference_mode():
        expected = torch.cat([model(part) for part in test.split(100)]).numpy()
    result: dict[str, Any] = {
        "network": "ResNet-20 of akamaster/pytorch_resnet_cifar10, CIFAR-10 (JPEG copy)", "images": len(test),
        "machine": device_words("cpu"), "versions": versions(), "rows": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def measure(
            chip: str, way: str, module: nn.Module, free: bool = True, first: bool = False, **options: Any
        ) -> None:
            source, target = folder / "float.onnx", folder / "int8.onnx"
            program = flatten(module, more[:2], OPSET, ["input"])
            program.save(source)
            convolutions = [node.name for node in program.model.graph if node.op_type == "Conv"]
            options["nodes_to_exclude"] = convolutions[:first]
            quantize(source, target, SCHEMES[chip], Reader(options.pop("images", more[:128])), **options)  # type: ignore[index]
            if free:
                free_scores_(target)
            session = open_session(target, threads=1)
            got = np.concatenate([session.run(None, {"input": part.numpy()})[0] for part in test.split(100)])
            error = float(((got - expected) ** 2).mean() / expected.var())
            row = {"chip": chip, "way": way, "agreement": agreement(expected, got), "error": error}
            result["rows"].append(row)
            print(row, flush=True)
            write_json(given.out, result)

        flatten(model, more[:2], OPSET, ["input"]).save(folder / "network.onnx")
        folded = open_onnx(folder / "network.onnx").module  # without batch norms, as it is quantized
        for chip in ("x86", "x86-old"):
            ways(partial(measure, chip), folded, more, 63 if SCHEMES[chip].reduced else 127)  # type: ignore[index]


def ways(measure: Callable[..., None], network: nn.Module, images: Tensor, limit: int) -> None:
    """Everything that is tried for one chip."""
    from onnxruntime.quantization import CalibrationMethod

    measure("scores in 8 bits too", network, False)
    measure("as exported", network)
    measure("512 images", network, images=images)
    measure("ranges by entropy", network, calibrate_method=CalibrationMethod.Entropy)
    percentile = {"calibrate_method": CalibrationMethod.Percentile, "extra_options": {"CalibPercentile": 99.99}}
    measure("ranges by percentile 99.99", network, **percentile)
    measure("first convolution in float32", network, first=True)
    few = images[:128]
    measure("biases", adjusted(network, few, limit, feedback=False, biases=True))
    measure("rounding with error feedback", adjusted(network, few, limit, feedback=True, biases=False))
    measure("rounding and biases", adjusted(network, few, limit, feedback=True, biases=True))


if __name__ == "__main__":
    main()
