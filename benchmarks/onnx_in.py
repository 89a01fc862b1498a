"""Networks written by torch's two ONNX exporters, opened again and pruned by half without any Python model.

    python -m benchmarks.onnx_in                # those whose library is installed; goes on where it was broken off
    python -m benchmarks.onnx_in --only resnet  # names that contain it

Half of every free group is pruned from what was opened (random weights), held against the masked original, exported to
ONNX again and compared. "free": groups and channels that may go, of the code and of the file. Writes
benchmarks/results/onnx_in.json, one process a network and exporter.
"""

import argparse
import io
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.editable import names as others
from benchmarks.networks import build
from benchmarks.one_network import alone, halved
from benchmarks.resumable import opened
from compressor.errors import CompressorError
from compressor.exporting.onnx import export_onnx
from compressor.exporting.onnx_in.reading import open_onnx
from compressor.files.paths import write_json
from compressor.graph import capture
from tests.equivalence import calibrated, randomise_

OUT = Path(__file__).parent / "results" / "onnx_in.json"
LIMIT = 600  # seconds of one CPU, a network and exporter
EXPORTERS = "torchscript", "dynamo"
SIDE = 96  # of images; of networks that are pooled to a fixed grid their own
OWN_SIDE = "torchvision:alexnet", "torchvision:vgg11_bn"
NAMES = {
    "torchvision": """alexnet vgg11_bn squeezenet1_1 resnet18 resnet50 resnext50_32x4d densenet121 googlenet
        mobilenet_v2 mobilenet_v3_small mnasnet1_0 shufflenet_v2_x1_0 regnet_x_400mf regnet_y_400mf efficientnet_b0
        efficientnet_v2_s convnext_tiny""",
    "timm": """hrnet_w18_small convnext_atto mobilenetv3_small_050 ghostnet_050 efficientnet_lite0 res2next50 seresnet18
        cspresnet50 repvgg_a0 vovnet39a""",
    "segmentation": "deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large",
    "ultralytics": "yolo11n-cls.yaml yolo11n.yaml yolov8n.yaml",
    "segmentation_models_pytorch": "Unet FPN",
}


def networks() -> dict[str, Any]:
    """Of each the function that builds it, and an image."""
    builders = {"torchvision": build, "timm": build, **{library: made for library, (made, _) in others().items()}}
    return {
        f"{library}:{name}": builders[library]
        for library, names in NAMES.items()
        if library in builders
        for name in names.split()
    }


def measured(name: str, exporter: str) -> dict[str, Any]:
    """One row: what may go by the code and by the file, and how far off everything is."""
    made = networks()[name]
    torch.manual_seed(0)
    model, image, *_ = made(name) if made is build else made(name.partition(":")[2])
    image = image if name in OWN_SIDE else image[..., :SIDE, :SIDE]
    images = torch.cat([image, torch.randn_like(image)])
    model = calibrated(randomise_(model), images.double()).float()
    for layer in model.modules():
        if hasattr(layer, "export"):  # ultralytics' heads: one output, as its own exporter sets it
            layer.export, layer.format = True, "onnx"  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        written(model, images, file, exporter)
        try:
            network = open_onnx(file).module
        except CompressorError as error:
            return {"status": "refused", "failures": [str(error).replace(str(file), "it")]}
        row: dict[str, Any] = {"code": _free(model, image), "file": _free(network, image)}
        row |= halved(network.double(), image.double(), images.double())
        check = export_onnx(network.float().eval(), images, Path(folder) / "half.onnx", check_inputs=images)
    return row | {"back": check.max_rel}


def written(model: nn.Module, images: Tensor, file: Path, exporter: str) -> None:
    """The network as one of torch's exporters writes it, with a free batch size."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            free = ({0: "batch"},)
            torch.onnx.export(
                model, (images,), file, dynamo=True, dynamic_shapes=free, verbose=False, external_data=False
            )
        else:
            axes = {"image": {0: "batch"}}
            torch.onnx.export(model, (images,), file, dynamo=False, input_names=["image"], dynamic_axes=axes)


def _free(model: nn.Module, image: Tensor) -> list[int]:
    """Groups and channels that may go."""
    free = capture(model, image).free
    return [len(free), sum(group.size for group in free)]


def words(result: dict[str, Any]) -> str:
    """The result in sentences."""
    return " ".join(
        _told(exporter, rows)
        for exporter in EXPORTERS
        if (rows := [row for row in result["rows"] if row["exporter"] == exporter])
    )


def _told(exporter: str, rows: list[dict[str, Any]]) -> str:
    good = [row for row in rows if row["status"] == "pruned"]
    error, back = (max(row[key] for row in good) for key in ("error", "back"))
    more = sum(row["file"][1] > row["code"][1] for row in good)
    fewer = [row["network"].partition(":")[2] for row in good if row["file"][1] < row["code"][1]]
    as_many, none = len(good) - more - len(fewer), "none"
    others = [f"{row['network'].partition(':')[2]} ({row['failures'][0]})" for row in rows if row["status"] != "pruned"]
    return (
        f"By the {exporter} exporter {len(good)} of {len(rows)} networks are opened, pruned by half, equal to the "
        f"masked original within {error:.0e} and, exported again, to ONNX Runtime within {back:.0e}. As many channels "
        f"may go as in the code of {as_many}, more in {more}, fewer in {', '.join(fewer) or none}. Not so: "
        f"{'; '.join(others) or none}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = opened(given.out, {"limit": LIMIT, "side": SIDE}, "cpu", 1)
    done = {(row["network"], row["exporter"]) for row in result["rows"]}
    for exporter in EXPORTERS:
        for name in networks():
            if given.only in name and (name, exporter) not in done:
                row = {"network": name, "exporter": exporter} | alone(LIMIT, measured, name, exporter)
                result["rows"].append(row)
                write_json(given.out, result)
                shown = {key: row[key] for key in ("status", "code", "file", "error", "back", "failures") if key in row}
                print(name, exporter, shown, flush=True)


if __name__ == "__main__":
    main()
