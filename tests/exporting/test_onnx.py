"""Exported files: what ONNX Runtime computes, what the graph holds, and what stays untouched."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import CompressorError, FileError, ModelError, UsageError
from compressor.exporting import onnx as exporting
from compressor.exporting.onnx import export_onnx
from compressor.exporting.runtime import OnnxModel
from compressor.vision import door as vision


def lively(module: nn.Module) -> nn.Module:
    """Give batch norms statistics that are not the identity, so that wrong folding shows."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(layer.weight, 0.5, 2.0, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)
    return module


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3),
            nn.BatchNorm2d(6),
            nn.Flatten(),
            nn.Linear(24, 5),
            nn.BatchNorm1d(5),
            nn.Linear(5, 4),
        )
    )


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(1, 4, 3)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        return {"sum": self.first(image) + self.second(depth), "mean": image.mean((1, 2, 3))}


class Noisy(nn.Module):
    """Gives another output at every call, so no exported file can agree with it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image) + torch.randn_like(image[:, :1])


class Branching(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image * 2 if image.sum() > 0 else image


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("exported") / "new" / "net.onnx"
    export_onnx(small_net(), torch.zeros(1, 3, 8, 8), path)
    yield path


def test_the_file_gives_torchs_outputs_at_any_batch(exported: Path) -> None:
    net, model = small_net().eval(), OnnxModel(exported)
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            expected = net(images).numpy()
        np.testing.assert_allclose(model(images.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_the_graph_is_small_and_of_the_asked_opset(exported: Path) -> None:
    model = onnx.load(exported)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}, "batch norms are folded"
    assert [entry.name for entry in model.graph.input] == ["input"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    holders = [model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]
    assert not any(holder.metadata_props for holder in holders)
    assert str(Path(__file__).parent).encode() not in exported.read_bytes(), "no stack trace names a local path"


def test_only_the_file_is_left(exported: Path) -> None:
    assert [entry.name for entry in exported.parent.iterdir()] == ["net.onnx"]


def test_torchs_table_of_operators_is_put_back(tmp_path: Path) -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    own = ONNXRegistry.__dict__["from_torchlib"]
    export_onnx(small_net(), torch.zeros(1, 3, 8, 8), tmp_path / "net.onnx")
    with pytest.raises(ModelError):
        export_onnx(Branching(), torch.zeros(1, 3, 4, 4), tmp_path / "no.onnx")
    assert ONNXRegistry.__dict__["from_torchlib"] is own


def test_the_model_is_untouched(tmp_path: Path) -> None:
    net = small_net().train()
    net[3].eval()
    net[0].weight.requires_grad_(False)
    calls: list[int] = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(net.state_dict())
    modes = [layer.training for layer in net.modules()]
    export_onnx(net, torch.zeros(1, 3, 8, 8), tmp_path / "net.onnx")
    assert [layer.training for layer in net.modules()] == modes
    assert not net[0].weight.requires_grad and net[4].weight.requires_grad
    assert len(net[0]._forward_hooks) == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_check_says_what_was_compared(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 8, 8)
    check = export_onnx(small_net(), images[:1], tmp_path / "net.onnx", opset=18, check_inputs=images)
    assert check.inputs == "real" and check.batches == (1, 5) and check.opset == 18
    assert check.file_bytes == (tmp_path / "net.onnx").stat().st_size
    assert 0 <= check.max_rel <= 1e-5


def test_float64_model_is_written_as_float32(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).double()
    export_onnx(net, torch.zeros(1, 1, 4, 4, dtype=torch.float64), tmp_path / "net.onnx")
    assert onnxruntime.InferenceSession(tmp_path / "net.onnx").get_inputs()[0].type == "tensor(float)"
    assert net[0].weight.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_the_gpu_exports_and_stays_there(tmp_path: Path) -> None:
    net = small_net().cuda()
    export_onnx(net, torch.zeros(1, 3, 8, 8, device="cuda"), tmp_path / "net.onnx")
    assert all(tensor.is_cuda for tensor in net.state_dict().values())


@pytest.mark.parametrize("as_names", [False, True], ids=["tuple", "dict"])
def test_several_inputs_and_outputs_are_compared(as_names: bool, tmp_path: Path) -> None:
    image, depth = torch.rand(1, 3, 6, 6), torch.rand(1, 1, 6, 6)
    example = {"depth": depth, "image": image} if as_names else (image, depth)
    assert export_onnx(TwoInputs(), example, tmp_path / "two.onnx").max_rel < 1e-5


def test_weights_beyond_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_LARGEST_SINGLE_FILE", 1000)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 40))
    check = export_onnx(net, torch.zeros(1, 3, 8, 8), tmp_path / "big.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert check.file_bytes == sum(entry.stat().st_size for entry in tmp_path.iterdir())
    assert OnnxModel(tmp_path / "big.onnx")(np.zeros((2, 3, 8, 8))).shape == (2, 40)


def test_a_mismatch_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"the user's own")
    with pytest.raises(CompressorError, match="differ from torch's"):
        export_onnx(Noisy(), torch.zeros(1, 3, 4, 4), path)
    assert path.read_bytes() == b"the user's own"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_without_finite_outputs_is_refused(tmp_path: Path) -> None:
    net = nn.Conv2d(1, 1, 1)
    nn.init.constant_(net.weight, float("nan"))
    with pytest.raises(ModelError, match="infinities or NaN"):
        export_onnx(net, torch.zeros(1, 1, 2, 2), tmp_path / "net.onnx")


class Counting(nn.Module):
    """Counts its images with `len`, which makes the number one of Python's where only operators are recorded."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)


def test_a_model_that_counts_its_images_has_a_free_batch(tmp_path: Path) -> None:
    export_onnx(Counting(), torch.zeros(1, 3, 4, 4), tmp_path / "net.onnx")
    x = torch.randn(7, 3, 4, 4)
    assert np.array_equal(OnnxModel(tmp_path / "net.onnx")(x.numpy()), Counting()(x).numpy())


class Squeezing(nn.Module):
    """Drops the batch where there is one image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x.mean((2, 3), keepdim=True).squeeze())
        return scores


def test_a_model_that_drops_a_batch_of_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompressorError, match=r"\(2,\).*\(1, 2\).*squeeze\(\)"):
        export_onnx(Squeezing(), torch.zeros(1, 3, 4, 4), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_nothing_is_printed_and_nothing_warned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModelError, match=r"^torch cannot export this model to ONNX \(.*\)$"):
            export_onnx(Branching(), torch.zeros(1, 3, 4, 4), tmp_path / "net.onnx")
        export_onnx(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2), tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("example", "opset", "kind", "message"),
    [
        ((1, 3, 8, 8), 7, UsageError, "opset 7"),
        ((1, 3, 8, 8), 99, UsageError, "opset 99"),
        ((1, 1, 8, 8), 20, ModelError, "does not run on an input of shape 1x1x8x8"),
    ],
    ids=["old opset", "future opset", "wrong channels"],
)
def test_refusals_are_one_line(
    example: tuple[int, ...], opset: int, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as caught:
        export_onnx(small_net(), torch.zeros(example), tmp_path / "net.onnx", opset=opset)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "net.onnx"):
        with pytest.raises(FileError, match=str(path)):
            export_onnx(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2), path)


@pytest.mark.slow
def test_resnet18_exports_with_every_batch_norm_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = lively(vision.build("resnet18", num_classes=10))
    check = export_onnx(net, torch.zeros(1, 3, 64, 64), tmp_path / "net.onnx")
    assert check.max_rel < 1e-4
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "efficientnet_b0", "shufflenet_v2_x0_5"])
def test_torchvision_networks_export(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check = export_onnx(vision.build(name), torch.zeros(1, 3, 224, 224), tmp_path / "net.onnx")
    assert check.max_rel < 1e-4


@pytest.mark.filterwarnings("ignore:.*quant.*")
def test_layers_that_torch_has_quantized_are_named(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    with pytest.raises(ModelError, match=r"1 is a layer that torch has quantized.*`precision` int8"):
        export_onnx(quantized, torch.zeros(1, 1, 8, 8), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
