"""The script of a package prepares and classifies images as evaluation does, on files of every kind."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compressor.exporting.graphs import PackageSettings
from compressor.exporting.onnx import export_onnx
from compressor.exporting.package import export_package, write_runner
from compressor.exporting.runtime import OnnxModel
from compressor.report.card import Card, input_facts
from compressor.report.manifest import Manifest, card_inside
from compressor.runs.evaluate import evaluate
from compressor.runs.job import EvaluateJob
from compressor.runs.settings import ModelSettings
from compressor.training.data import open_data
from compressor.training.settings import DataSettings
from compressor.vision.preparation import Preparation

SIZES = ((160, 96), (96, 160), (1, 500), (500, 1), (1, 1), (3, 2), (33, 31), (48, 48), (47, 45), (640, 480), (1500, 20))
HOWS = {
    "usual": Preparation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.875),
    "whole, framed": Preparation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), frame=4),
    "bicubic": Preparation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop_pct=0.95, interpolation="bicubic"),
}


def pictures(place: Path) -> list[Path]:
    """Files of many sizes, modes, formats and orientations."""
    draw, found = np.random.default_rng(0), []

    def save(name: str, image: Image.Image, **options: object) -> None:
        image.save(place / name, **options)
        found.append(place / name)

    def noise(width: int, height: int, channels: int = 3, kind: type = np.uint8) -> np.ndarray:
        return draw.integers(0, np.iinfo(kind).max, (height, width, channels), kind, endpoint=True)

    for width, height in SIZES:
        save(f"size{width}x{height}.png", Image.fromarray(noise(width, height)))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for extension in ("jpg", "png", "tif", "webp"):
            save(f"turned{orientation}.{extension}", Image.fromarray(noise(70, 40)), exif=exif)
    colour = Image.fromarray(noise(60, 50))
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"):
        extension = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
        save(f"mode{mode}.{extension}", colour.convert(mode))
    save("deep.png", Image.fromarray(noise(50, 40, 1, np.uint16)[:, :, 0]))
    save("deep.tif", Image.fromarray(noise(50, 40, 1, np.uint16)[:, :, 0]))
    save("clear.png", Image.fromarray(noise(50, 40, 4)))
    save("clear.webp", Image.fromarray(noise(50, 40, 4)), lossless=True)
    palette = colour.convert("P")
    save("hole.gif", palette, transparency=0)
    save("hole.png", palette, transparency=3)
    save("several.gif", palette, save_all=True, append_images=[palette.rotate(90)])
    save("several.jpg", colour, format="MPO", save_all=True, append_images=[colour])
    save("grey.pgm", colour.convert("L"))
    save("colour.ppm", colour)
    save("colour.bmp", colour)
    save("packed.tif", colour, compression="tiff_lzw")
    return found


class Net(nn.Sequential):
    """Four classes, of colour or grey."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        # Every size is a multiple of 4, so that the pooling is one operator in ONNX and not one for each window.
        super().__init__(
            nn.Conv2d(channels, 4, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.append(nn.Linear(16, 4))
        self.size = (channels, *size)


def script_of(folder: Path) -> ModuleType:
    """The script of a package, imported as a device would: with what lies beside it, and nothing of ours."""
    sys.path.insert(0, str(folder))
    try:
        for name in ("preparation", "run"):
            sys.modules.pop(name, None)
        spec = importlib.util.spec_from_file_location("run", folder / "run.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        __import__("preparation")
        return module
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data set of all the pictures, some for training."""
    root = tmp_path_factory.mktemp("device")
    for split in ("train", "test"):
        for name in ("ant", "bee", "cow", "dog"):
            (root / split / name).mkdir(parents=True)
    pictures(root / "test" / "bee")
    for place in ("train/ant", "train/bee", "train/cow", "train/dog", "test/ant", "test/cow", "test/dog"):
        for number in range(3):
            Image.new("RGB", (50, 40), (number * 40, 20, 90)).save(root / place / f"{number}.png")
    yield root
    for name in ("preparation", "run"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("channels", "size"), [(3, (48, 64)), (1, (48, 48)), (3, (100, 100))])
@pytest.mark.parametrize("how", HOWS)
def test_both_prepare_every_image_alike(
    how: str, channels: int, size: tuple[int, int], folder: Path, tmp_path: Path
) -> None:
    net = Net(channels, size)
    data = open_data(f"folder:{folder}", input_shape=net.size, preparation=HOWS[how])
    assert not data.problems
    card = Card(data.classes, data.preparation)
    manifest = Manifest("plain", input_facts(net.size, card), ("logits",), (), data.classes)
    (tmp_path / "manifest.json").write_text(manifest.text())
    write_runner(tmp_path)
    script = script_of(tmp_path)
    files = sorted(path for path in (folder / "test").rglob("*.*"))
    for (x, _), path in zip(data.passing(data.test, 1), files, strict=True):
        np.testing.assert_allclose(script.prepared(str(path)), x[0].numpy(), atol=2e-6, err_msg=path.name)


def test_the_script_is_as_right_as_evaluate(folder: Path, tmp_path: Path) -> None:
    net = Net(3, (48, 64))
    data = open_data(f"folder:{folder}", input_shape=net.size)
    card = Card(data.classes, data.preparation)
    made = tmp_path / "deploy"
    export_package(net, torch.zeros(1, *net.size), made, card=card, settings=PackageSettings(latency=False))
    job = EvaluateJob(ModelSettings(str(made)), f"folder:{folder}")
    told = evaluate(job)
    script = script_of(made)
    files = [(path, name) for name in data.classes for path in sorted((folder / "test" / name).iterdir())]
    right = sum(script.classify(str(path))[0][0] == name for path, name in files)
    assert (right, len(files)) == (round(told.top1 * told.count), told.count)
    assert not [note for note in told.notes if "normalised" in note]


def test_a_plain_file_says_how_its_images_are_prepared(folder: Path, tmp_path: Path) -> None:
    net = Net(3, (48, 64))
    card = Card(("ant", "bee", "cow", "dog"), HOWS["usual"], ("compressor train",))
    export_onnx(net, torch.zeros(1, *net.size), tmp_path / "m.onnx", card=card)
    assert card_inside(OnnxModel(tmp_path / "m.onnx").metadata, "m.onnx") == card
    export_onnx(net, torch.zeros(1, *net.size), tmp_path / "bare.onnx")
    bare = evaluate(EvaluateJob(ModelSettings(str(tmp_path / "bare.onnx")), f"folder:{folder}"))
    assert any("does not say how its images are normalised" in note for note in bare.notes)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 64, 4)), tmp_path / "bare.pt")
    bare = evaluate(EvaluateJob(ModelSettings(str(tmp_path / "bare.pt"), input=(3, 48, 64)), f"folder:{folder}"))
    assert len([note for note in bare.notes if "does not say how its images are normalised" in note]) == 1
    given = DataSettings(mean=HOWS["usual"].mean, std=HOWS["usual"].std)
    told, bare = (
        evaluate(EvaluateJob(ModelSettings(str(tmp_path / name)), f"folder:{folder}", loading))
        for name, loading in (("m.onnx", DataSettings()), ("bare.onnx", given))
    )
    assert not any("normalised" in note for note in (*told.notes, *bare.notes))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "the following arguments are required: IMAGE"),
        (("image.npy", "2"), 1, "there is no exit 2: the package has 0"),
        (("image.npy", "first"), 2, "invalid int value"),
        (("nothing.png",), 1, "there is no such file"),
        (("nothing.npy",), 1, "No such file"),
        (("text.png",), 1, "not a PNG image"),
        (("eps.jpg",), 1, "not a JPEG image"),
        (("other.npy",), 1, "not uint8 (8, 8, 3)"),
        (("run.py",), 1, "not named as an image"),
    ],
)
def test_what_is_wrong_on_the_device_is_one_line(words: tuple[str, ...], code: int, says: str, plain: Path) -> None:
    ran = subprocess.run([sys.executable, "run.py", *words], cwd=plain, capture_output=True, text=True)
    assert ran.returncode == code and "Traceback" not in ran.stderr
    assert says in ran.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of one exit for 8x8 images, and some files beside it."""
    made = tmp_path_factory.mktemp("plain") / "deploy"
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4))
    card = Card(("a\x1b[2J", "b", "c", "d"), Preparation((0.5,) * 3, (0.5,) * 3))
    export_package(net, torch.zeros(1, 3, 8, 8), made, card=card, settings=PackageSettings(latency=False))
    np.save(made / "image.npy", np.zeros((8, 8, 3), np.uint8))
    np.save(made / "other.npy", np.zeros((9, 8, 3), np.uint8))
    Image.new("RGB", (8, 8)).save(made / "image.png")
    (made / "text.png").write_text("no image")
    (made / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    return made


@pytest.mark.parametrize(
    ("net", "shape", "said"),
    [
        (
            nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(28, 4)),
            (1, 16),
            r"takes arrays of [1, 16], no images",
        ),
        (nn.Conv2d(3, 2, 3), (3, 8, 8), "gives (2, 6, 6), no scores of classes"),
    ],
    ids=["signals", "maps"],
)
def test_a_network_that_classifies_no_images_says_so(net, shape, said, plain, tmp_path):
    export_package(net, torch.zeros(1, *shape), tmp_path / "made", settings=PackageSettings(latency=False))
    command = [sys.executable, "run.py", str(plain / "image.npy")]
    ran = subprocess.run(command, cwd=tmp_path / "made", capture_output=True, text=True)
    assert ran.returncode == 1 and said in ran.stderr and len(ran.stderr.splitlines()) == 1


def test_without_pillow_only_pictures_fail_and_say_so(plain: Path) -> None:
    hide = (
        "import runpy, sys; sys.modules['PIL'] = None; sys.modules['torch'] = None; sys.modules['compressor'] = None\n"
    )
    for name in ("image.npy", "image.png"):
        code = f"{hide}sys.argv = ['run.py', {name!r}]; sys.path.insert(0, '.')\n"
        code += "runpy.run_path('run.py', run_name='__main__')"
        ran = subprocess.run([sys.executable, "-c", code], cwd=plain, capture_output=True, text=True)
        if name == "image.npy":
            assert ran.returncode == 0 and len(ran.stdout.splitlines()) == 4, ran.stderr
            assert ran.stdout.isprintable() or "\x1b" not in ran.stdout
        else:
            assert (ran.returncode, ran.stderr.strip()) == (1, "error: PIL is missing: pip install pillow")
