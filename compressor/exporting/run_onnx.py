"""Classify an image with the package that this file lies in: python run_onnx.py IMAGE [EXIT].

Needs numpy, onnxruntime and pillow, and nothing of what trained the model. IMAGE is a picture, which is prepared as
manifest.json says (the code is in preparation.py), or an array saved by numpy (.npy): uint8, of the model's own height
and width, with channels last or grey. EXIT is the number of an exit in manifest.json.
"""

import argparse
import functools
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FOLDER = Path(__file__).resolve().parent


@functools.cache
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


@functools.cache
def session() -> onnxruntime.InferenceSession:
    """The package, opened: the files that `compressor tune` made where they are for this machine."""
    options = onnxruntime.SessionOptions()
    fits = fits_here(about()["tuned"] or {})
    if fits:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    file = FOLDER / ("model.cpu.onnx" if fits else "model.onnx")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def prepared(path: str) -> np.ndarray:
    """An image as the network takes it: float32 (channels, height, width)."""
    image = about()["input"]
    channels, height, width = image["shape"]
    if not path.endswith(".npy"):
        from compressor.vision.preparation import Preparation, normalised, pixels

        preparation = Preparation.from_json(image)
        return normalised(pixels(path, (channels, height, width), preparation), preparation)
    array: np.ndarray = np.load(path)
    if array.dtype != np.uint8 or array.size != channels * height * width or array.shape[:2] != (height, width):
        raise ValueError(f"{path} holds {array.dtype} {array.shape}, not uint8 {(height, width, channels)}")
    x = array.reshape(height, width, channels).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(image[name], np.float32)[:, None, None] for name in ("mean", "std"))
    result: np.ndarray = (x - mean) / std
    return result


def classify(path: str, leaving: int | None = None) -> list[tuple[str, float]]:
    """The names and probabilities of the classes, the likeliest first. Raises ValueError for what does not fit."""
    exits, choice = about()["exits"], about()["choice"]
    if leaving is not None and not 0 <= leaving < len(exits):
        raise ValueError(f"there is no exit {leaving}: the package has " + ", ".join(str(n) for n in range(len(exits))))
    feeds = {"input": prepared(path)[None]}
    unasked = {} if choice is None else {choice["input"]: choice["default"]}
    for name, value in (unasked if leaving is None else exits[leaving]["feeds"]).items():
        feeds[name] = np.asarray(value, np.int64 if isinstance(value, int) else np.float32)
    scores = session().run(None, feeds)[0][0]
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    names = about()["classes"] or [str(number) for number in range(len(scores))]
    return [(names[number], float(shares[number])) for number in np.argsort(-scores)]


def main() -> None:
    """Read the command line, print the five likeliest classes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("image", metavar="IMAGE", help="a picture, or a .npy file")
    parser.add_argument("number", metavar="EXIT", nargs="?", type=int, help="number of an exit in manifest.json")
    parser.add_argument("--exit", metavar="EXIT", type=int, help="the same as a flag")
    given = parser.parse_args()
    try:
        found = classify(given.image, given.number if given.exit is None else given.exit)
    except ImportError as error:
        sys.exit(f"error: {error.name} is missing: pip install {'pillow' if error.name == 'PIL' else error.name}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {given.image}: {error}")
    if not about()["input"].get("normalisation", "").startswith("of "):
        print("note: the model did not say how its images are normalised", file=sys.stderr)
    for name, share in found[:5]:
        print(f"{share:6.1%}  " + "".join(each if each.isprintable() else "?" for each in name))


if __name__ == "__main__":
    main()
