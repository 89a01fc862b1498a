"""The commands that README and docs show, made quick and run on stand-ins for what is the reader's own.

Training is cut to an epoch and latency left out; nothing else is changed. The reader's data become a few random images
in the same layout, the reader's models small ones of the same names.
"""

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compressor.cli import main
from tests.training.test_data import write_mnist
from tests.training.test_folders import write_images

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))}
PAGES["README.md"] = README  # and not the index of docs, which shows no commands

_SHORT = {  # flag -> what it becomes; None: left out
    "--epochs": "1",
    "--retrain-epochs": "1",
    "--for": "20s",
    "--max-epochs": "1",
    "--finetune-epochs": "0",
    "--latency": None,
}
_NET = """nn.Sequential(
    nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
)
"""
_MORE = {  # added to a command that has the words; the first that fits
    "compressor compare": "",
    "--list": "",
    "--method adapnet": "--startup-epochs 0 --max-epochs 1 --finetune-epochs 0 --lsep 3 --batch-size 8 --no-latency",
    "primenet.py": "--epochs 1 --arch-arg retrain_epochs=1 --no-latency",
    "compressor prune": "--no-latency",
    "compressor train": "--no-latency",
    "compressor finetune": "--no-latency",
    "compressor detach": "--epochs 1 --no-latency",
    "compressor sweep": "--no-latency --no-onnx",
    "compressor route": "--epochs 1 --router-epochs 2 --no-latency",
    "compressor replace": "--retrain-epochs 1 --no-latency",
}


def commands(text: str) -> list[str]:
    """The lines of indented blocks that call the program, each on one line and without its comment."""
    joined = re.sub(r" \\\n +", " ", text)
    found = re.findall(r"^ {4}(compressor .*)$", joined, flags=re.MULTILINE)
    return [re.sub(r"\s+", " ", line.partition(" #")[0]).strip() for line in found]


def shortened(line: str) -> list[str]:
    """The command's arguments, made quick; a flag that is there already is not added."""
    words = shlex.split(line)[1:]
    for flag, value in _SHORT.items():
        if flag in words:
            at = words.index(flag)
            words[at : at + (1 if value is None else 2)] = [] if value is None else [flag, value]
    more = next((extra for key, extra in _MORE.items() if key in line), "")
    pairs = re.findall(r"--[\w-]+(?: [^-]\S*)?", more)
    return words + [word for pair in pairs if pair.split()[0] not in words for word in pair.split()]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints; it has to succeed."""
    with pytest.raises(SystemExit) as left:
        main(words)
    seen = capsys.readouterr()
    assert left.value.code == 0, f"compressor {shlex.join(words)}: {seen.err}"
    return seen.out


def stand_ins(folder: Path) -> None:
    """What the pages call `DIR`, `MODEL`, `net.py` and so on, under names of its own in a folder."""
    import compressor
    from benchmarks.stranger_resnet import resnet56
    from compressor.vision import door as vision
    from sample_models.vgg16_cifar import build

    for name in ("sample_models", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    write_mnist(folder / "idx", train=120, test=40)
    for number in range(10):
        write_images(folder / "images" / "train" / f"class {number}", 12, (32, 32))
        write_images(folder / "images" / "test" / f"class {number}", 2, (32, 32), seed=1)
    torch.save(vision.models.resnet18(num_classes=10).state_dict(), folder / "resnet18.pt")
    arch = "sample_models/vgg16_cifar.py:build:width=0.125"
    compressor.save(build(width=0.125), str(folder / "vgg16.pt"), arch=arch, input_shape=(3, 32, 32))
    torch.save(resnet56().state_dict(), folder / "resnet56-4bfd9763.th")
    shutil.copy(ROOT / "benchmarks" / "stranger_resnet.py", folder / "resnet.py")
    (folder / "net.py").write_text(
        "from torch import nn\n\nINPUT_SHAPE = (3, 32, 32)\n\n\ndef build():\n    return " + _NET
    )
    (folder / "classes.json").write_text(json.dumps({f"class {number}": number for number in range(10)}))
    network = eval(_NET, {"nn": torch.nn}).eval()
    torch.save(network.state_dict(), folder / "weights.pt")
    with contextlib.redirect_stdout(None):
        torch.onnx.export(network, (torch.zeros(1, 3, 32, 32),), folder / "net.onnx", dynamo=True)


def owned(lines: list[str]) -> Iterator[str]:
    """The commands with the stand-ins in place of the reader's names; every RUN a folder of its own."""
    for number, line in enumerate(lines):
        line = re.sub(r"\bfolder:imagenette\b|\b(folder|cifar10):DIR", "folder:images", line)
        line = re.sub(r"\b((?:fashion-)?mnist):DIR", r"\1:idx", line)
        line = re.sub(r"\bMODEL\b", "vgg16.pt", line)
        line = re.sub(r"\bDATA\b", "folder:images", line)
        yield re.sub(r"\bRUN\b", f"runs/{number}", line)
