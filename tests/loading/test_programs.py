"""Exported programs: opened without anybody's code, edited, trained, kept in checkpoints; hostile ones refused."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from compressor.errors import FileError, UsageError
from compressor.graph import capture
from compressor.loading import open_model, save_model
from compressor.loading.program_file import read_program
from compressor.loading.programs import build, operator_named, packed
from compressor.surgery import operate_
from tests.equivalence import half_plan, masked_outputs, outputs, relative_error
from tests.networks import NETWORKS

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exported(model: nn.Module, path: Path, free: bool = True, example: Tensor = IMAGES) -> ExportedProgram:
    shapes = ({0: Dim.DYNAMIC},) if free else None
    program = torch.export.export(model.eval(), (example,), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, path)
    return program


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "plain.pt2"
    torch.manual_seed(0)
    exported(NETWORKS["Plain"](), path)
    return path


@pytest.mark.parametrize("name", ["Plain", "Residual", "Shuffled", "Grouped", "Attention", "Selective", "Normalised"])
def test_it_computes_what_torch_computes_of_it(name: str, tmp_path: Path) -> None:
    model = NETWORKS[name]()
    example = model.example()
    exported(model, tmp_path / "net.pt2", example=example)
    opened = open_model(tmp_path / "net.pt2")
    assert opened.input_shape == tuple(example.shape[1:])
    more = torch.cat([example, example + 1])
    torch.testing.assert_close(outputs(opened.module, more), outputs(model.eval(), more), rtol=0, atol=0)


def test_it_opens_where_the_networks_code_is_gone(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("torch's own reader, which runs code, was used")

    for name in ("torch.export.load", "torch.load", "pickle.loads", "sympy.sympify"):
        monkeypatch.setattr(name, refused)
    assert open_model(plain).module(IMAGES).shape == (2, 4)


def test_half_of_it_goes_as_in_the_masked_program_and_it_learns(plain: Path, tmp_path: Path) -> None:
    opened = open_model(plain)
    module = opened.module.double()
    channels = capture(module, IMAGES.double())
    plan = half_plan(channels)
    expected = masked_outputs(module, IMAGES.double(), channels, plan.removed)
    operate_(module, plan, channels)
    assert relative_error(outputs(module, IMAGES.double()), expected) < 1e-12

    module.float().train()
    before = module.norm.running_mean.clone()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(2):
        module(IMAGES).square().mean().backward()
        optimizer.step()
    assert not torch.equal(module.norm.running_mean, before), "batch norm takes statistics in training"
    module.eval()

    save_model(opened, tmp_path / "half.pt")
    again = open_model(tmp_path / "half.pt")
    torch.testing.assert_close(outputs(again.module, IMAGES), outputs(module, IMAGES), rtol=0, atol=0)
    exported(again.module, tmp_path / "half.pt2")
    torch.testing.assert_close(outputs(open_model(tmp_path / "half.pt2").module, IMAGES), outputs(module, IMAGES))


def test_a_program_for_one_image_takes_many(tmp_path: Path) -> None:
    model = NETWORKS["Plain"]()
    exported(model, tmp_path / "one.pt2", free=False, example=IMAGES[:1])
    opened = open_model(tmp_path / "one.pt2")
    torch.testing.assert_close(outputs(opened.module, IMAGES), outputs(model, IMAGES))


def test_a_tensor_with_two_names_stays_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    exported(model, tmp_path / "tied.pt2")
    module = open_model(tmp_path / "tied.pt2").module
    assert len(list(module.parameters())) == 3
    torch.testing.assert_close(outputs(module, IMAGES), outputs(model, IMAGES))


def test_an_architecture_beside_it_is_one_too_many(plain: Path) -> None:
    with pytest.raises(UsageError, match="leave --arch away"):
        open_model(plain, arch="torchvision:resnet18")


def rewritten(path: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            data = change(name.split("/", 1)[-1], source.read(name))
            if data is not None:
                copy.writestr(name, data)
    return target


def in_model(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def changed(name: str, data: bytes) -> bytes:
        if not name.startswith("models/"):
            return data
        held = json.loads(data)
        change(held["graph_module"]["graph"])
        return json.dumps(held).encode()

    return changed


def in_weights(**changes: Any) -> Callable[[str, bytes], bytes]:
    def changed(name: str, data: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return data
        held = json.loads(data)
        first = next(iter(held["config"].values()))
        first.update({key: value for key, value in changes.items() if key in first})
        first["tensor_meta"].update({key: value for key, value in changes.items() if key in first["tensor_meta"]})
        return json.dumps(held).encode()

    return changed


def call(target: str) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        graph["nodes"][0]["target"] = target

    return change


def named(name: str) -> Callable[[dict[str, Any]], None]:
    """The input under another name, wherever it stands."""

    def change(graph: dict[str, Any]) -> None:
        text = json.dumps(graph).replace('"name": "x"', f'"name": {json.dumps(name)}')
        graph.clear()
        graph.update(json.loads(text))
        graph["tensor_values"][name] = graph["tensor_values"]["x"]

    return change


@pytest.mark.parametrize(
    "change",
    [
        in_model(call("torch.os.system")),
        in_model(call("torch.ops.aten.from_file.default")),
        in_model(call("torch.ops.torchvision.nms.default")),
        in_model(call("torch.ops.higher_order.cond")),
        in_model(call("_operator.methodcaller")),
        in_model(call("torch.ops.aten.no_such.default")),
        in_model(named("x=__import__('os').system('touch hacked')")),
        in_model(lambda graph: graph["nodes"].clear()),
        in_model(lambda graph: graph["nodes"][0]["inputs"][0].update(arg={"as_graph": {}})),
        in_model(lambda graph: graph.pop("tensor_values")),
        in_weights(use_pickle=True),
        in_weights(path_name="opaque_obj_0"),
        in_weights(path_name="../models/model.json"),
        in_weights(sizes=[{"as_int": 10**12}], strides=[{"as_int": 0}]),
        in_weights(sizes=[{"as_int": 4}], strides=[{"as_int": 10**9}]),
        in_weights(storage_offset={"as_int": -5}),
        in_weights(dtype=99),
        lambda name, data: b"{" if name.startswith("models/") else data,
        lambda name, data: b"[" * 10**6 if name.startswith("models/") else data,
        lambda name, data: None if name.startswith("models/") else data,
        lambda name, data: None if name == "data/weights/weight_0" else data,
        lambda name, data: data[:-4] if name == "data/weights/weight_0" else data,
    ],
)
def test_hostile_and_damaged_programs_are_one_line(
    change: Callable[[str, bytes], bytes], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = rewritten(plain, tmp_path / "bad.pt2", change)
    with pytest.raises(FileError) as caught:
        open_model(bad)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.pt2"]


def test_sample_inputs_that_are_a_pickle_are_never_read(plain: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "hacked",)

    bomb = pickle.dumps(Bomb())
    bad = rewritten(plain, tmp_path / "bad.pt2", lambda name, data: bomb if "sample_inputs" in name else data)
    open_model(bad)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "name",
    ["conv.weight\"); import os; os.system('touch hacked'); (\"", "a.training", "x" * 9000 + ".", ".", "a..b", ""],
)
def test_names_that_would_be_code_are_refused(name: str, plain: Path) -> None:
    recipe = read_program(plain, 1).recipe
    first = next(iter(recipe["weights"]))
    recipe["weights"][name] = recipe["weights"].pop(first)
    recipe["uses"] = {key: name if value == first else value for key, value in recipe["uses"].items()}
    if name == "a.training":
        recipe["weights"]["training"] = recipe["weights"][name]
    with pytest.raises(FileError, match="damaged"):
        build(packed(recipe))


def test_a_bomb_in_a_checkpoint_is_refused(plain: Path) -> None:
    recipe = read_program(plain, 1).recipe
    with pytest.raises(FileError, match="too large"):
        build(packed({**recipe, "filling": "0" * (1 << 27)}))
    with pytest.raises(FileError, match="damaged"):
        build(["no base85 \n"])


def test_a_deep_network_is_not_too_long_for_a_checkpoint(tmp_path: Path) -> None:
    layers = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(60))
    exported(nn.Sequential(*layers), tmp_path / "deep.pt2")
    opened = open_model(tmp_path / "deep.pt2")
    save_model(opened, tmp_path / "deep.pt")
    assert outputs(open_model(tmp_path / "deep.pt").module, IMAGES)[0].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("target", ["torch.ops.aten.conv2d.default", "_operator.floordiv", "torch.sym_max"])
def test_operators_that_networks_use_are_known(target: str) -> None:
    assert callable(operator_named(target))
