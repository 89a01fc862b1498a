"""Networks of other inputs than one batch of images: each by `--input`, from the command line and in Python."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import compressor
from compressor import Pruner
from compressor.cli import main
from compressor.errors import DataError, ModelError, UsageError
from compressor.graph.trace import call_arguments
from compressor.pruning.reconstruction import inputs_of
from compressor.runs.settings import Input, ModelSettings, inputs, shape
from tests.runs import tasks

FILE = Path(__file__)
FAST: dict[str, Any] = {"device": "cpu", "latency": False}


def body(dims: int = 2, channels: int = 3) -> nn.Sequential:
    conv, norm = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1], (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    return nn.Sequential(conv(channels, 8, 3, padding=1), norm(8), nn.ReLU(), conv(8, 8, 3, padding=1), nn.ReLU())


class Net(nn.Module):
    """A body, the means of its maps and a linear layer; subclasses say what they are called with."""

    def __init__(self, dims: int = 2, channels: int = 3) -> None:
        super().__init__()
        self.body, self.head = body(dims, channels), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).flatten(2).mean(2))


class Masked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = body(channels=1)

    def forward(self, image: Tensor, mask: Tensor) -> Any:
        return self.head((self.body(image) + self.other(mask)).mean((2, 3)))


class Worded(Net):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4)

    def forward(self, image: Tensor, ids: Tensor) -> Any:
        return {"scores": super().forward(image) + self.words(ids).mean(1)}


class Stepped(Net):
    def forward(self, x: Tensor, step: Tensor) -> Any:
        return super().forward(x) * step[:, None].float().cos()


class OneDict(Net):
    def forward(self, batch: dict[str, Tensor]) -> Any:
        return [super().forward(batch["image"])]


class Wave(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x[:, None])


def masked() -> nn.Module:
    return Masked()


def worded() -> nn.Module:
    return Worded()


def stepped() -> nn.Module:
    return Stepped()


def one_dict() -> nn.Module:
    return OneDict()


def wave() -> nn.Module:
    return Wave(1, 1)


def sound() -> nn.Module:
    return Net(1, 1)


def volume() -> nn.Module:
    return Net(3, 1)


# The function that builds a network, and its inputs.
NETWORKS = {
    "by place": ("masked", ("3x8x8", "1x8x8")),
    "by name": ("masked", ("mask=1x8x8", "image=3x8x8")),
    "numbers": ("worded", ("3x8x8", "int64:5")),
    "one an example": ("stepped", ("x=3x8x8", "step=int64")),
    "a dict": ("one_dict", ("image=3x8x8",)),
    "signals": ("sound", ("1x32",)),
    "signals without channels": ("wave", ("x=32",)),
    "volumes": ("volume", ("1x6x6x6",)),
}

QUICK = ("by name", "one an example", "a dict")


def flags(kind: str) -> list[str]:
    name, given = NETWORKS[kind]
    return ["--arch", f"{FILE}:{name}", *(word for each in given for word in ("--input", each))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3x224x224", (3, 224, 224)),
        ("1X8X8", (1, 8, 8)),
        ("3,32,32", (3, 32, 32)),
        ("224", (3, 224, 224)),
        ("1x64", (1, 64)),
        ("1x2x3x4", (1, 2, 3, 4)),
    ],
)
def test_shapes(text, expected):
    assert shape(text) == expected


@pytest.mark.parametrize("text", ["", "4x4", "axbxc", "3x0x4", "3x-1x4", "3xx4", "3.0x4x4"])
def test_what_is_no_shape(text):
    with pytest.raises(ValueError):
        shape(text)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in NETWORKS])
def test_a_network_of_any_inputs_is_measured_pruned_and_exported(kind, tmp_path, capsys):
    name, given = NETWORKS[kind]
    for command in ("profile", "inspect"):
        with pytest.raises(SystemExit) as stop:
            main([command, *flags(kind)])
        said = "".join(capsys.readouterr())
        assert not stop.value.code and f"--input {given[0]}" in said.replace("\n", " ")
    report = compressor.prune(arch=f"{FILE}:{name}", input=given, ratio=0.5, **FAST, out=tmp_path / "run")
    assert report.after.macs < 0.7 * report.before.macs and report.export is not None
    model = compressor.load(tmp_path / "run/model.safetensors").eval()
    made = [torch.rand(5, *each.sizes) * 3 for each in inputs(given)]
    made = [tensor.long() if each.kind == "int64" else tensor for tensor, each in zip(made, inputs(given), strict=True)]
    names = [each.name for each in inputs(given)]
    example = dict(zip(names, made, strict=True)) if names[0] else tuple(made)
    arguments, keywords = call_arguments(example, model)
    session = onnxruntime.InferenceSession(tmp_path / "run/model.onnx")
    fed = dict(zip((entry.name for entry in session.get_inputs()), made, strict=True))
    fed = example if names[0] and fed.keys() == set(names) else fed
    [found] = session.run(None, {key: tensor.numpy() for key, tensor in fed.items()})
    with torch.no_grad():
        [wanted] = tree_leaves(model(*arguments, **keywords))
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["masked", "one_dict", "wave", "volume"])
def test_in_memory_they_are_refitted_in_their_own_type(name, kind):
    torch.manual_seed(0)
    images = {"masked": {"image": (3, 8, 8), "mask": (1, 8, 8)}, "one_dict": {"image": (3, 8, 8)}}
    shapes = images.get(name, {"x": (32,) if name == "wave" else (1, 6, 6, 6)})
    batch = {key: torch.rand(64, *shape).to(kind) for key, shape in shapes.items()}
    example = tree_map(lambda tensor: tensor[:1], batch)
    errors = []
    for data in (None, [batch | {"label": torch.zeros(64)}]):
        torch.manual_seed(0)
        model = globals()[name]().eval().to(kind)
        arguments, keywords = call_arguments(batch, model)
        with torch.no_grad():
            before = tree_leaves(model(*arguments, **keywords))[0].float()
            compressor.prune_(model, example, "l1", 0.5, data=data, allocate="uniform", round_to=1)
            errors.append(float((tree_leaves(model(*arguments, **keywords))[0].float() - before).norm()))
        assert {tensor.dtype for tensor in model.parameters()} == {kind}
    assert errors[1] < 0.5 * errors[0]


def test_a_pruner_refits_a_network_that_takes_a_dict():
    model = one_dict()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = [{"image": torch.rand(16, 3, 8, 8), "label": torch.zeros(16)}]
    pruner = Pruner(model, {"image": torch.rand(1, 3, 8, 8)}, optimizer, "obs", ratio=0.5, data=data, steps=1)
    assert pruner.step() and not pruner.finish().refused


class Lists(tasks.Segmentation):
    """Images of their own sizes, in a list, as detectors take them."""

    def data(self, split: str) -> Any:
        sizes = [torch.rand(3, 8, size) for size in (8, 9, 10, 8)]
        return [(sizes, [torch.tensor(float(at)) for at in range(4)])] * 3

    def loss(self, model: Any, batch: Any) -> Tensor:
        found = [(each - wanted) ** 2 for each, wanted in zip(model(batch[0]), batch[1], strict=True)]
        return torch.stack(found).mean()

    def measure(self, model: Any, batches: Any) -> Any:
        return {"error": float(torch.stack([self.loss(model, each) for each in batches]).mean())}

    def inputs(self, batch: Any) -> Any:
        return (batch[0],)


class TakesList(Net):
    def forward(self, images: list[Tensor]) -> Any:
        return [super(TakesList, self).forward(each[None]).mean() for each in images]


def takes_list() -> nn.Module:
    return TakesList()


def test_a_network_of_a_list_of_images_learns_and_is_pruned_by_errors_and_refitted(tmp_path):
    given = {"arch": f"{FILE}:takes_list", "task": f"{FILE}:Lists", "epochs": 1, "onnx": False, "device": "cpu"}
    report = compressor.prune(**given, ratio=0.5, out=tmp_path / "run")
    assert report.after.macs < 0.7 * report.before.macs and report.after.figure.name == "error"
    assert any("refitted by least squares on 12 images" in note for note in report.notes)
    assert report.after.reasons["latency_ms.torch"].startswith("the model does not run on a batch made of the example")


def test_of_a_list_images_are_looked_at_in_one_size_and_have_to_be_images():
    network, example = takes_list(), ([torch.rand(3, 8, 8)],)
    batches = [([torch.rand(3, 8, width) for width in (8, 9, 12)], "labels")] * 2
    given = inputs_of(batches, example, network)
    assert [[each.shape for each in one[0]] for one in given] == [[(3, 8, 8)]] * 6
    assert torch.equal(given[0][0][0], batches[0][0][0]) and torch.equal(given[3][0][0], batches[0][0][0])
    with pytest.raises(DataError, match="data holds an image 1x8x9 where the network takes 3x8x8"):
        inputs_of([([torch.rand(1, 8, 9)],)], example, network)
    with pytest.raises(UsageError, match="float32 2x3x8x8, the network takes a list of images"):
        inputs_of([torch.rand(2, 3, 8, 8)], example, network)


READ = {
    "3x224x224": Input(None, None, (3, 224, 224)),
    "32": Input(None, None, (3, 32, 32)),
    "1x64": Input(None, None, (1, 64)),
    "x=64": Input("x", None, (64,)),
    "ids=int64:16": Input("ids", "int64", (16,)),
    "bool:1x8x8": Input(None, "bool", (1, 8, 8)),
    "step=int64": Input("step", "int64", ()),
}


@pytest.mark.parametrize("text", READ)
def test_an_input_is_read(text):
    assert Input.read(text) == READ[text]


@pytest.mark.parametrize("text", ["", "224x224", "3xx", "=3x8x8", "a b=3x8x8", "float:3x8x8", "x=", "3x0x8"])
def test_what_is_no_input_is_one_line(text):
    with pytest.raises(UsageError, match=r"`input` .* is not of the form CxHxW, such as 3x224x224, or NAME=TYPE:SIZES"):
        ModelSettings(input=(text,))


def test_inputs_have_names_all_or_none():
    for given in (("a=3x8x8", "3x8x8"), ("a=3x8x8", "a=1x8x8")):
        with pytest.raises(UsageError, match="name each of them, or none"):
            ModelSettings(input=given)
    assert (
        ModelSettings(input=("3x8x8",)) == ModelSettings(input=(3, 8, 8)) and not ModelSettings(input=(3, 8, 8)).inputs
    )


def test_what_is_for_one_input_only_says_so(tmp_path):
    given = {"task": f"{tasks.__file__}:Keypoints", "epochs": 1, **FAST, "onnx": False}
    arch = f"{tasks.__file__}:Pointer"
    compressor.train(arch=arch, **given, out=tmp_path / "run")
    model = tmp_path / "run/model.safetensors"
    with pytest.raises(ModelError, match="takes several inputs: sub-models are cut out of networks of one"):
        compressor.detach(model, **given, exits=1, out=tmp_path / "cut")
    with pytest.raises(ModelError, match="`out` FILE.onnx"):
        compressor.export(model, tmp_path / "m.pt2", to="pt2", task=given["task"])
    compressor.export(model, tmp_path / "m.onnx", task=given["task"])
    named = {"input": ("image=3x8x8", "mask=1x8x8")}
    with pytest.raises(UsageError, match="`input` of several, or with a name or type, is for models without data"):
        compressor.finetune(model, **given, **named, out=tmp_path / "tuned")


@pytest.mark.slow
def test_a_sweep_times_nothing_that_cannot_be_timed(tmp_path):
    given = {"task": f"{tasks.__file__}:Keypoints", "epochs": 1, **FAST, "onnx": False}
    model = tmp_path / "run/model.safetensors"
    compressor.train(arch=f"{tasks.__file__}:Pointer", **given, out=tmp_path / "run")
    swept = {"methods": ["l1"], "targets": [0.6], **given, "latency": True, "onnx": True}
    compared = compressor.sweep(model, **swept, out=tmp_path / "sweep")
    assert compared.figure.label == "PCK"
