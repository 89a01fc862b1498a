"""Classify an image with the package that this file lies in: python run_onnx.py IMAGE [EXIT].

Needs numpy and onnxruntime, and nothing of what trained the model. IMAGE is an array saved by numpy (.npy, uint8,
height x width or height x width x channels); with Pillow installed any picture.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FOLDER = Path(__file__).resolve().parent


def about() -> dict[str, Any]:
    """What the package says of itself."""
    held: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    return held


def machine() -> str:
    """The processor's name."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def fits_here(tuned: dict[str, Any]) -> bool:
    """Whether the files that `compressor tune` made are for this machine."""
    return (tuned.get("machine"), tuned.get("onnxruntime")) == (machine(), onnxruntime.__version__)


def session() -> onnxruntime.InferenceSession:
    """The package, opened: the files that `compressor tune` made where they are for this machine."""
    options = onnxruntime.SessionOptions()
    fits = fits_here(about()["tuned"] or {})
    if fits:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    file = FOLDER / ("model.cpu.onnx" if fits else "model.onnx")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def pixels(path: str, shape: list[int]) -> np.ndarray:
    """An image as numbers in 0..255, (height, width, channels)."""
    if path.endswith(".npy"):
        image: np.ndarray = np.load(path)
        return image if image.ndim == 3 else image[:, :, None]
    from PIL import Image

    picture = Image.open(path).convert("L" if shape[0] == 1 else "RGB").resize((shape[2], shape[1]))
    return np.asarray(picture).reshape(shape[1], shape[2], shape[0])


def classify(path: str, leaving: int | None = None) -> list[tuple[str, float]]:
    """The names and probabilities of the classes, the likeliest first."""
    manifest = about()
    image = manifest["input"]
    x = (pixels(path, image["shape"]) / 255 - image["mean"]) / image["std"]
    feeds = {"input": x.transpose(2, 0, 1)[None].astype(np.float32)}
    chosen = {} if leaving is None else manifest["exits"][leaving]["feeds"]
    for name, value in chosen.items():
        feeds[name] = np.asarray(value, np.int64 if isinstance(value, int) else np.float32)
    scores = session().run(None, feeds)[0][0]
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    names = manifest["classes"] or [str(number) for number in range(len(scores))]
    return [(names[number], float(shares[number])) for number in np.argsort(-scores)]


if __name__ == "__main__":
    for name, share in classify(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)[:5]:
        print(f"{share:6.1%}  {name if name.isprintable() else ascii(name)}")
