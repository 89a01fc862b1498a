"""Classify an image with the package that this file lies in: python run_onnx.py IMAGE [EXIT].

Needs numpy and onnxruntime, and nothing of what trained the model. IMAGE is an array saved by numpy (.npy, uint8,
height x width or height x width x channels); with Pillow installed any picture.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

FOLDER = Path(__file__).resolve().parent


def session() -> onnxruntime.InferenceSession:
    """The package, opened: the files tuned for this machine where they are there."""
    options = onnxruntime.SessionOptions()
    tuned = FOLDER / "model.cpu.onnx"
    if tuned.exists():
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    file = tuned if tuned.exists() else FOLDER / "model.onnx"
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
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    about = manifest["input"]
    x = (pixels(path, about["shape"]) / 255 - about["mean"]) / about["std"]
    feeds = {"input": x.transpose(2, 0, 1)[None].astype(np.float32)}
    chosen = {} if leaving is None else manifest["exits"][leaving]["feeds"]
    for name, value in chosen.items():
        feeds[name] = np.asarray(value, np.float32 if name == "thresholds" else np.int64)
    scores = session().run(None, feeds)[0][0]
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    names = manifest["classes"] or [str(number) for number in range(len(scores))]
    return [(names[number], float(shares[number])) for number in np.argsort(-scores)]


if __name__ == "__main__":
    for name, share in classify(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)[:5]:
        print(f"{share:6.1%}  {name}")
