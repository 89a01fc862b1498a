"""Classify an image with the package that this file lies in: python run.py IMAGE [EXIT], or check it: --verify.

Needs numpy, pillow and the runtime that manifest.json names (engines.py opens it), and nothing of what trained the
model. IMAGE is a picture, which is prepared as manifest.json says (the code is in preparation.py), an array saved by
numpy (.npy): uint8, of the model's own height and width, with channels last or grey, each input by its name as the
network takes it (.npz), or a folder of them. EXIT is the number of an exit in manifest.json. A folder's last line says
at which exits images left, and whether the certificate holds (watch.py).
"""

import argparse
import functools
import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.exporting.engines import OPENED, TUNED
from compressor.exporting.watch import Watched

FOLDER = Path(__file__).resolve().parent


def manifest(folder: Path) -> dict[str, Any]:
    """What a package says of itself."""
    held: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return held


def machine() -> str:
    """The processor's name."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def fits_here(tuned: Mapping[str, Any]) -> bool:
    """Whether the files that `compressor tune` made are for this machine."""
    import onnxruntime

    return (tuned.get("machine"), tuned.get("onnxruntime")) == (machine(), onnxruntime.__version__)


class Network:
    """A package's network: images and what chooses an exit, by name, to outputs.

    Where the runtime branches it is one graph, `model`. Elsewhere there is a graph for each exit, or each part of a
    routed network, and what is not needed is never opened: `ran` counts how many images each graph was run on.
    """

    def __init__(self, folder: Path, threads: int = 0, about: Mapping[str, Any] | None = None) -> None:
        self.about = about or manifest(folder)
        self.graphs: dict[str, str] = dict(self.about["graphs"])
        if "model" in self.graphs and fits(self.about, folder):
            self.graphs["model"] = TUNED
        self.ran: dict[str, int] = {}
        opened = OPENED[self.about["runtime"]]
        self._open = functools.cache(lambda role: opened(folder / self.graphs[role], threads))

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs for a batch."""
        if "model" in self.graphs:
            return self._run("model", inputs)
        images = inputs["input"]
        if "start" in inputs:
            last = len(self.about["exits"]) - 1
            return self._run(f"exit_{min(max(int(inputs['start']), 0), last)}", {"input": images})
        return self._routed(images, inputs["thresholds"])

    def _run(self, role: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.ran[role] = self.ran.get(role, 0) + len(next(iter(inputs.values())))
        return self._open(role)(inputs)

    def _routed(self, maps: np.ndarray, thresholds: np.ndarray) -> list[np.ndarray]:
        """Scores, and the depth that each image left at; only images that go on are computed further."""
        plan = self._run("plan", {"input": maps})[0] if "plan" in self.graphs else None
        going, depths, found = np.arange(len(maps)), np.zeros(len(maps), np.int64), dict[int, np.ndarray]()
        for depth in range(len(thresholds) + 1):
            maps = self._run(f"segment_{depth}", {"input": maps})[0]
            leave, scores = f"leave_{depth}", None
            if depth == len(thresholds):
                leaves = np.ones(len(maps), bool)
            elif plan is None:
                scores, sure = self._run(leave, {"input": maps})
                leaves = sure >= thresholds[depth]
            else:
                leaves = plan[going, depth] >= thresholds[depth]
            if leaves.any():
                scores = self._run(leave, {"input": maps[leaves]})[0] if scores is None else scores[leaves]
                found.update(zip(going[leaves].tolist(), scores))
                depths[going[leaves]] = depth
            going, maps = going[~leaves], maps[~leaves]
            if not len(going):
                break
        return [np.stack([found[number] for number in range(len(found))]), depths]


def fits(about: Mapping[str, Any], folder: Path) -> bool:
    """Whether a package has a graph that was made for this machine."""
    return bool(about["tuned"]) and (folder / TUNED).exists() and fits_here(about["tuned"])


def fed(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inputs that choose an exit, from plain data to what a runtime takes: whole numbers int64, others float32."""
    return {
        name: np.asarray(value, np.int64 if isinstance(value, int) else np.float32) for name, value in values.items()
    }


def asked(about: Mapping[str, Any], number: int | None) -> dict[str, np.ndarray]:
    """The inputs that choose an exit; the default ones for None. Raises ValueError where there is no such exit."""
    exits, choice = about["exits"], about["choice"]
    if number is None:
        return {} if choice is None else fed({choice["input"]: choice["default"]})
    if not 0 <= number < len(exits):
        raise ValueError(f"there is no exit {number}: the package has " + ", ".join(str(n) for n in range(len(exits))))
    return fed(exits[number]["feeds"])


def names(about: Mapping[str, Any]) -> list[str]:
    """The network's inputs besides what chooses an exit."""
    return [each["name"] for each in (about["input"], *about.get("further", ()))]


def compared(network: Network, sample: Mapping[str, np.ndarray]) -> list[float]:
    """How far each exit's outputs for the stored images are from the stored ones, as shares of the largest.

    Raises ValueError where the shapes differ, or a difference is larger than the package says of its own.
    """
    found = []
    for each in network.about["exits"]:
        expected = sample[f"exit_{each['number']}"]
        got = network({**{name: sample[name] for name in names(network.about)}, **fed(each["feeds"])})[0]
        if got.shape != expected.shape:
            raise ValueError(
                f"exit {each['number']} gives {got.shape}, and gave {expected.shape} where it was exported"
            )
        found.append(float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-12)))
        if not found[-1] <= network.about["sample"]["limit"]:
            raise ValueError(
                f"exit {each['number']} computes something else here than where it was exported: outputs differ by "
                f"{found[-1]:.0e} of the largest"
            )
    return found


def check(folder: Path) -> list[float]:
    """Compare every file's hash with the manifest, then outputs with stored ones. Raises ValueError."""
    about = manifest(folder)
    for name, facts in about["files"].items():
        if name != Path(name).name:
            raise ValueError(f"manifest.json names a file outside the folder ({name!r})")
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if digest != facts["sha256"]:
            raise ValueError(f"{name} was changed since it was exported (its sha256 differs)")
    with np.load(folder / about["sample"]["file"]) as sample:
        return compared(Network(folder, about=about), sample)


@functools.cache
def network() -> Network:
    """The package that this file lies in, opened."""
    return Network(FOLDER)


def prepared(path: str) -> np.ndarray:
    """An image as the network takes it: float32 (channels, height, width)."""
    image = network().about["input"]
    if network().about.get("further"):
        raise ValueError(f"the network takes {', '.join(names(network().about))}: give a .npz file of them")
    if len(image["shape"]) != 3:
        raise ValueError(f"the network takes arrays of {image['shape']}, no images: call network() in Python")
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


@functools.cache
def watched() -> Watched:
    """The same, counting exits and watching its certificate."""
    held, facts = network(), network().about.get("watch")
    if facts is not None:
        facts = {**facts, **{name: fed(facts[name]) for name in ("feeds", "deepest")}}
    return Watched(held, len(held.about["exits"]), facts)


def given(path: str) -> dict[str, np.ndarray]:
    """A batch of what a file holds: an image; or each input by its name, prepared, in a file of `numpy.savez`."""
    if not path.endswith(".npz"):
        return {"input": prepared(path)[None]}
    about, found = network().about, {}
    with np.load(path) as held:
        for each in (about["input"], *about.get("further", ())):
            if each["name"] not in held or list(held[each["name"]].shape) != list(each["shape"]):
                raise ValueError(f"{path} has no {each['name']} of shape {each['shape']}: it holds {list(held)}")
            found[each["name"]] = held[each["name"]].astype(each["dtype"])[None]
    return found


def classify(path: str, leaving: int | None = None) -> list[tuple[str, float]]:
    """The names and probabilities of the classes, the likeliest first. Raises ValueError for what does not fit."""
    chosen = asked(network().about, leaving)
    scores = watched()({**given(path), **chosen})[0][0]
    if scores.ndim != 1:
        raise ValueError(f"the network gives {scores.shape}, no scores of classes: call network() in Python")
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    names = network().about["classes"] or [str(number) for number in range(len(scores))]
    return [(names[number], float(shares[number])) for number in np.argsort(-scores)]


def main() -> None:
    """Read the command line, print the five likeliest classes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="a picture, a .npy file, or a folder of them")
    parser.add_argument("exit", metavar="EXIT", nargs="?", type=int, help="number of an exit in manifest.json")
    parser.add_argument("--verify", action="store_true", help="check all files, and stored images with their outputs")
    given = parser.parse_args()
    if given.image is None and not given.verify:
        parser.error("the following arguments are required: IMAGE")
    try:
        if given.verify:
            print(f"unchanged; outputs differ by {max(check(FOLDER)):.0e} from those where it was exported")
            return
        whole = Path(given.image)
        paths = sorted(whole.iterdir()) if whole.is_dir() else [whole]
        found = {path: classify(str(path), given.exit) for path in paths}
    except ImportError as error:
        sys.exit(f"error: {error.name} is missing: pip install {'pillow' if error.name == 'PIL' else error.name}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {FOLDER if given.verify else given.image}: {error}")
    plain = all(path.suffix == ".npz" for path in paths)
    if not plain and not network().about["input"].get("normalisation", "").startswith("of "):
        print("note: the model did not say how its images are normalised", file=sys.stderr)
    for path, classes in found.items():
        for name, share in classes[: 1 if whole.is_dir() else 5]:
            said = f"{name}  {path.name}" if whole.is_dir() else name
            print(f"{share:6.1%}  " + "".join(each if each.isprintable() else "?" for each in said))
    if whole.is_dir():
        print(watched().words(), file=sys.stderr)


if __name__ == "__main__":
    main()
