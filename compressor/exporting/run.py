"""Classify an image with the package that this file lies in: python run.py IMAGE [EXIT], or check it: --verify.

Needs numpy, pillow and the runtime that manifest.json names, and nothing of what trained the model. IMAGE is a picture,
which is prepared as manifest.json says (the code is in preparation.py), an array saved by numpy (.npy): uint8, of the
model's own height and width, with channels last or grey, each input by its name as the network takes it (.npz), or a
folder of them. EXIT is the number of an exit in
manifest.json. A folder's last line says at which exits images left, and whether the certificate holds (watch.py).
"""

import argparse
import functools
import hashlib
import importlib.util
import json
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.exporting.watch import Watched

FOLDER = Path(__file__).resolve().parent
TUNED = "model.cpu.onnx"
Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]  # inputs by name to outputs, all with the batch first


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


def onnx(file: Path, threads: int) -> Run:
    """A graph on ONNX Runtime; one of `compressor tune` is taken as it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if file.name == TUNED:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return functools.partial(session.run, None)


def openvino(file: Path, threads: int) -> Run:
    """A graph on OpenVINO's CPU plugin, compiled for each batch size.

    With a free batch size OpenVINO 2026.4 leaves some outputs of branches unwritten.
    """
    core = openvino_core()
    graph = core.read_model(str(file))
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}

    @functools.cache
    def compiled(images: int) -> Any:
        fixed = graph.clone()
        shape = fixed.input("input").partial_shape
        shape[0] = images
        fixed.reshape({"input": shape})
        return core.compile_model(fixed, "CPU", options).create_infer_request()

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = compiled(len(inputs["input"])).infer(dict(inputs))
        return [np.array(found[number]) for number in range(len(found))]

    return run


@functools.cache
def openvino_core() -> Any:
    """One for the process: each gives signal handlers a stack, and the first that goes takes the others' away."""
    import openvino

    return openvino.Core()


def litert(file: Path, threads: int) -> Run:
    """A graph on LiteRT, one image at a time; numbers of 8 bits are taken and given as floats."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=threads or None)
    call = interpreter.get_signature_runner()
    [given], outputs = call.get_input_details().items(), call.get_output_details()

    def one(image: np.ndarray) -> list[np.ndarray]:
        name, about = given
        found = call(**{name: _stored(image, about)})
        return [_real(found[each], outputs[each]) for each in sorted(outputs)]

    return _singly(one)


def executorch(file: Path, threads: int) -> Run:
    """A program on ExecuTorch, one image at a time; its Python package takes torch's tensors."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is experimental
        from executorch.runtime import Runtime
    if threads:
        torch.set_num_threads(threads)
    method = Runtime.get().load_program(str(file)).load_method("forward")
    return _singly(lambda image: [each.numpy().copy() for each in method.execute([torch.from_numpy(image)])])


def ncnn(file: Path, threads: int) -> Run:
    """A graph on ncnn, one image at a time, in float32."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads or net.opt.num_threads
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise ValueError(f"ncnn cannot open {file}")

    def one(image: np.ndarray) -> list[np.ndarray]:
        with net.create_extractor() as extractor:
            # A copy: layers that work in place write to it, and crash where the memory is numpy's.
            extractor.input("in0", ncnn.Mat(image[0]).clone())
            return [np.array(extractor.extract(f"out{number}")[1])[None] for number in range(len(net.output_names()))]

    return _singly(one)


def torch(file: Path, threads: int) -> Run:
    """A network as a Python file, with the weights beside it."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.load().eval()

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            found = network(torch.from_numpy(inputs["input"]))
        return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]

    return run


OPENED: dict[str, Callable[[Path, int], Run]] = {
    "onnx": onnx, "openvino": openvino, "litert": litert, "executorch": executorch, "ncnn": ncnn, "torch": torch,
}  # fmt: skip


def _singly(one: Callable[[np.ndarray], list[np.ndarray]]) -> Run:
    """What runs a batch of a runtime that takes one image."""

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        images = np.ascontiguousarray(inputs["input"])
        found = [one(images[number : number + 1]) for number in range(len(images))]
        return [np.concatenate(each) for each in zip(*found)]

    return run


def _stored(values: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """Floats as a tensor of 8 bits holds them."""
    scale, zero = about["quantization"]
    if np.issubdtype(about["dtype"], np.floating):
        return values
    bounds = np.iinfo(about["dtype"])
    stored: np.ndarray = np.clip(np.round(values / scale) + zero, bounds.min, bounds.max).astype(about["dtype"])
    return stored


def _real(values: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """The floats that a tensor of 8 bits stands for."""
    scale, zero = about["quantization"]
    found: np.ndarray = ((values.astype(np.float32) - zero) * scale).astype(np.float32) if scale else values.copy()
    return found


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
