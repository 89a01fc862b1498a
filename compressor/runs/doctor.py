"""What a machine has of what runs need: packages, devices, folders: `compressor doctor`."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from compressor.errors import CompressorError, FileError
from compressor.files.paths import check_writable
from compressor.report import environment, units
from compressor.training.settings import DataSettings

NEEDED = ("torch", "torchvision", "numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "thop", "scikit-learn")
# Package -> what it is for.
OPTIONAL = {"timm": "--arch timm:NAME", "torch-pruning": "the benchmarks' peer"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `good` is None where it is only told."""

    what: str
    good: bool | None
    said: str


def examine(data: str | None = None) -> list[Finding]:
    """Look at everything; with `data`, a spec such as folder:DIR, at that data set too. Nothing raises."""
    return [*_software(), *_devices(), *_folders(), *(_data(data) if data else ())]


def _software() -> Iterator[Finding]:
    yield Finding("python", None, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in NEEDED:
        found = environment.version(name)
        yield Finding(name, found is not None, found or f"missing: pip install {name}")
    for name, purpose in OPTIONAL.items():
        yield Finding(name, None, environment.version(name) or f"not installed; only for {purpose}")


def _devices() -> Iterator[Finding]:
    if util.find_spec("torch") is None:
        return
    import torch

    from compressor.report.environment import device_words
    from compressor.training.numerics import choose_device, uses_bfloat16

    device = choose_device("auto")
    precision = "bfloat16" if uses_bfloat16(device) else "float32"
    yield Finding("device", None, f"{device_words(device)}, trains in {precision}")
    if torch.version.cuda is not None and not torch.cuda.is_available():
        yield Finding("CUDA", None, f"torch is built for CUDA {torch.version.cuda}, and no GPU is in reach")
    yield _operators()
    if util.find_spec("onnxruntime") is not None:
        import onnxruntime

        yield Finding("providers", None, ", ".join(onnxruntime.get_available_providers()))


def _operators() -> Finding:
    """torchvision works without its compiled operators, which only detection needs."""
    import torch

    from compressor.vision import door as vision

    try:
        compiled = torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU")
        said = "there" if compiled else "missing: classifiers work, detection does not"
        return Finding("torchvision's operators", None, f"{said}; {len(vision.classifiers())} classifiers")
    except Exception as error:  # whatever is broken in the installation
        return Finding("torchvision's operators", False, f"torchvision does not work ({error}): reinstall it")


def _folders() -> Iterator[Finding]:
    from compressor.loading.code import state_folder

    place = state_folder()
    good = _is_writable(place)
    yield Finding("state folder", good, f"{place}{'' if good else ' cannot be written'}")
    good = _is_writable(Path.cwd())
    yield Finding("this folder", good, "results can be written" if good else "cannot be written: give --out elsewhere")


def _is_writable(folder: Path) -> bool:
    try:
        check_writable(folder)
    except FileError:
        return False
    return True


def _data(spec: str) -> Iterator[Finding]:
    from compressor.training.data import open_data

    try:
        data = open_data(spec, DataSettings(download=False))
    except CompressorError as error:
        yield Finding("data", False, str(error))
        return
    counts = ", ".join(f"{len(each):,} {name}" for name, each in
                       (("training", data.train), ("validation", data.validation), ("test", data.test)))  # fmt: skip
    yield Finding(
        "data", True, f"{spec}: {counts} images, {len(data.classes)} classes, {units.shape(data.input_shape)}"
    )
    for note in data.notes:
        yield Finding("", None, note)
