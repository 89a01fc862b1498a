"""ONNX files as torch networks: every operator and small networks of both exporters, held against ONNX Runtime."""

import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.onnx_in import measured
from compressor.errors import FileError, UsageError
from compressor.exporting.onnx import export_onnx
from compressor.exporting.onnx_in import reading
from compressor.exporting.onnx_in.operators import BUILDERS
from compressor.exporting.onnx_in.reading import open_onnx
from compressor.exporting.runtime import OnnxModel
from compressor.graph import capture
from compressor.loading.onnx_network import FUNCTIONS, lacks_norms
from compressor.report.card import CARD_KEY, Card, card_text
from compressor.runs.models import open_model, save_model
from compressor.surgery import operate_
from tests.equivalence import half_plan, masked_outputs, outputs, randomise_, relative_error, same_map

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def write(
    path: Path, nodes: list[Any], constants: dict[str, np.ndarray], shape: tuple[Any, ...], opset: int = 20,
    outputs: tuple[str, ...] = ("y",),
) -> Path:  # fmt: skip
    """A graph of one input "x" of floats; the outputs' types and shapes are left to ONNX."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def one(operator: str, *constants: Any, shape: tuple[int, ...] = (4, 6, 6), opset: int = 20, **attributes: Any) -> Any:
    """A case: x and then constants (None: left out; "x": the images again) go into one operator."""
    return operator, constants, shape, opset, attributes


def words(text: str) -> list[str]:
    return text.split()


SQUARE = {"kernel_shape": [3, 3]}
CASES = [
    *(one(name) for name in words("""Abs
        Ceil Celu Cos Elu Erf Exp Floor Gelu GlobalAveragePool GlobalMaxPool HardSigmoid
        HardSwish Identity LeakyRelu LogSoftmax Mish Neg Reciprocal Relu Round Selu Sigmoid Sign Sin Softmax Softplus
        Softsign Tan Tanh Dropout Flatten""")),
    *(one(name, floats(4, 1, 1)) for name in words("Add Div Max Mean Min Mul Sub Sum PRelu")),
    *(one(name, "x") for name in words("Add Mul MatMul")),
    *(one(f"Reduce{name}", ints(2, 3)) for name in words("L1 L2 LogSumExp Max Mean Min Prod Sum SumSquare")),
    one("ReduceMean", axes=[2, 3], keepdims=0, opset=13),
    one("ReduceSum", ints(-1), keepdims=0),
    one("Conv", floats(6, 4, 3, 3), floats(6), pads=[1, 1, 1, 1], strides=[2, 2]),
    one("Conv", floats(4, 1, 3, 3), group=4, dilations=[2, 2], pads=[2, 2, 2, 2]),
    one("Conv", floats(6, 4, 3, 3), pads=[0, 1, 1, 2]),
    one("Conv", floats(6, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    one("Conv", floats(6, 4, 2, 2), auto_pad="SAME_LOWER"),
    one("Conv", floats(6, 4, 3), floats(6), shape=(4, 9)),
    one("Conv", floats(6, 4, 1, 1, 1), shape=(4, 3, 3, 3)),
    one("ConvTranspose", floats(4, 6, 3, 3), floats(6), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    one("Gemm", floats(5, 7), floats(7), shape=(5,), alpha=0.5, beta=2.0),
    one("Gemm", floats(7, 5), floats(1, 7), shape=(5,), transB=1),
    one("MatMul", floats(6, 5)),
    one("BatchNormalization", floats(4), floats(4), floats(4), np.abs(floats(4)) + 1, epsilon=1e-3),
    one("LayerNormalization", floats(6), floats(6)),
    one("LayerNormalization", floats(6, 6), axis=-2),
    one("GroupNormalization", floats(4), floats(4), num_groups=2, opset=21),
    one("InstanceNormalization", floats(4), floats(4)),
    one("MaxPool", **SQUARE, strides=[2, 2], pads=[1, 1, 1, 1]),
    one("MaxPool", **SQUARE, pads=[0, 0, 2, 2], strides=[2, 2]),
    one("MaxPool", kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1),
    one("AveragePool", **SQUARE, pads=[1, 1, 1, 1]),
    one("AveragePool", **SQUARE, pads=[0, 0, 1, 1], count_include_pad=1),
    one("Clip", np.float32(-0.5), np.float32(0.5)),
    one("Clip", min=0.0, max=6.0, opset=10),
    one("Cast", to=TensorProto.DOUBLE),
    one("Concat", "x", axis=1),
    one("CumSum", ints(1)),
    one("DepthToSpace", blocksize=2),
    one("DepthToSpace", blocksize=2, mode="CRD"),
    one("Einsum", "x", equation="bchw,bdhw->bcd"),
    one("Expand", ints(1, 1, 6, 6), shape=(4, 6, 1)),
    one("Gather", ints(2, 0), axis=1),
    one("Gather", np.array(-1, np.int64), axis=2),
    one("HardSigmoid", alpha=1 / 6, beta=0.5),
    one("LRN", size=3),
    one("Pad", ints(0, 0, 1, 2, 0, 0, 1, 0), np.float32(0.5)),
    one("Pad", ints(0, 0, 1, 2, 0, 0, 1, 0), mode="reflect"),
    one("Pad", ints(1, 2), None, ints(3), mode="edge"),
    one("Pow", np.float32(2.0)),
    one("Reshape", ints(0, -1)),
    one("Reshape", ints(0, 2, 2, 6, 6)),
    one("Resize", None, np.array([1, 1, 2, 2], np.float32), mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor"),
    one("Resize", None, None, ints(2, 4, 9, 10), mode="linear"),
    one("Resize", None, None, ints(2, 4, 9, 10), mode="linear", coordinate_transformation_mode="align_corners"),
    one("Resize", None, np.array([1, 1, 1.5, 1.5], np.float32), mode="cubic"),
    one("Resize", None, np.array([1, 1, 2, 2], np.float32), mode="nearest"),
    one("Upsample", np.array([1, 1, 2, 2], np.float32), opset=9),
    one("Slice", ints(1), ints(3), ints(1)),
    one("Slice", ints(0, -4), ints(9, 2**62), ints(2, 3), ints(2, 1)),
    one("Slice", ints(0), ints(2), ints(1)),
    one("Softmax", axis=1, opset=11, shape=(4, 6)),
    one("Softmax", axis=1),
    one("SpaceToDepth", blocksize=2),
    one("Squeeze", ints(2), shape=(4, 1, 6)),
    one("Tile", ints(1, 2, 1, 1)),
    one("Transpose", perm=[0, 2, 3, 1]),
    one("Unsqueeze", ints(1)),
    one("Unsqueeze", axes=[1], opset=11),
]  # fmt: skip


@contextmanager
def itself(path: Path, most_gib: float) -> Any:
    yield path


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of these tests need no process of their own."""
    monkeypatch.setattr(reading, "private_copy", itself)


def held_against_onnxruntime(path: Path, batch: int) -> None:
    opened = open_onnx(path)
    x = floats(batch, *opened.input_shape)
    with torch.no_grad():
        found = opened.module(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), OnnxModel(path, own=True)(x), rtol=1e-3, atol=1e-4)


SHAPING = words("Expand Flatten Gather Reshape Slice Softmax Squeeze Transpose Unsqueeze")


@pytest.mark.parametrize(
    ("case", "batch"),
    [
        *(pytest.param(case, "b", id=f"{case[0]}-{case[3]}") for case in CASES),
        *(pytest.param(case, 2, id=f"{case[0]}-{case[3]}-fixed") for case in CASES if case[0] in SHAPING),
    ],
)
def test_an_operator_gives_what_onnxruntime_gives(case, batch, tmp_path, trusted):
    operator, given, shape, opset, attributes = case
    names = ["" if each is None else each if isinstance(each, str) else f"c{n}" for n, each in enumerate(given)]
    constants = {name: each for name, each in zip(names, given) if isinstance(each, np.ndarray | np.generic)}
    arrays = {name: np.asarray(each) for name, each in constants.items()}
    nodes = [
        helper.make_node("Abs" if operator in ("Pow", "ReduceLogSumExp") else "Identity", ["x"], ["z"]),
        helper.make_node(operator, ["z", *names], ["r"], name="it", **attributes),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    path = write(tmp_path / "m.onnx", nodes, arrays, (batch, *shape), opset)
    held_against_onnxruntime(path, 2)


def nodes_of(*lines: str) -> list[Any]:
    """`Equal x a > r` and so on."""
    made = []
    for line in lines:
        operator, rest = line.split(" ", 1)
        sources, results = rest.split(" > ")
        made.append(helper.make_node(operator, sources.split(), results.split()))
    return made


COMPARED = words("Equal Greater GreaterOrEqual Less LessOrEqual")


@pytest.mark.parametrize("operator", COMPARED)
def test_comparisons_choose(operator, tmp_path, trusted):
    lines = "Relu x > r", f"{operator} r zero > c", "Not c > n", "Or c n > o", "Xor o c > q", "And q o > p"
    path = write(tmp_path / "m.onnx", nodes_of(*lines, "Where p x r > y"), {"zero": floats(1) * 0}, ("b", 3, 4))
    held_against_onnxruntime(path, 2)


def test_parts_of_a_dimension(tmp_path, trusted):
    equal = helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2)
    uneven = helper.make_node("Split", ["x", "sizes"], ["c", "d"], axis=1)
    best = helper.make_node("TopK", ["x", "k"], ["v", "i"], axis=2)
    chosen = helper.make_node("ArgMax", ["x"], ["m"], axis=2)
    same = helper.make_node("GatherElements", ["x", "i"], ["w"], axis=2)
    less = helper.make_node("ArgMin", ["x"], ["l"], axis=2)
    as_float = [helper.make_node("Cast", [name], [f"{name}f"], to=TensorProto.FLOAT) for name in "iml"]
    joined = helper.make_node("Concat", ["b", "a", "d", "c", "v", "w", "if", "mf", "lf"], ["y"], axis=1)
    constants = {"sizes": ints(1, 3), "k": ints(1)}
    path = write(
        tmp_path / "m.onnx", [equal, uneven, best, chosen, same, less, *as_float, joined], constants, ("b", 4, 1)
    )
    held_against_onnxruntime(path, 2)


def test_every_operator_has_a_case():
    elsewhere = {*COMPARED, *words("Not Or Xor And Where Split GatherElements TopK ArgMax ArgMin")}
    simple = {"Log", "Sqrt", "Swish"}  # of torch's name and nothing else; Swish is newer than the ONNX Runtime here
    ours = {"Part", "Select", "SplitEqual"}  # not of ONNX: what some of its operators become
    assert {*BUILDERS, *FUNCTIONS} - ours - simple == {case[0] for case in CASES} | elsewhere


class Small(nn.Module):
    """Convolutions of all kinds, a sum, a concatenation, a shuffle, scaling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.mixed, self.after = nn.Conv2d(16, 12, 3, stride=2), nn.BatchNorm2d(12)
        self.hidden, self.last = nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)))
        y = functional.hardswish(self.point(self.depthwise(x))) + x
        y = y * torch.sigmoid(self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1)))))
        z = torch.cat([x, functional.silu(y)], 1)
        z = z.view(z.shape[0], 2, z.shape[1] // 2, *z.shape[2:]).transpose(1, 2).reshape(z.shape)
        z = functional.leaky_relu(self.after(self.mixed(functional.max_pool2d(z, 2))))
        return self.last(functional.gelu(self.hidden(z.mean((2, 3)))))


IMAGE = 3, 14, 14


def exported(
    module: nn.Module, path: Path, *, dynamo: bool = False, free: bool = True, opset: int | None = None
) -> Path:
    x = torch.randn(2, *IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                module, (x,), path, dynamo=True, dynamic_shapes=({0: "b"},), external_data=False, verbose=False
            )
        else:
            axes = {"dynamic_axes": {"x": {0: "b"}}} if free else {}
            torch.onnx.export(module, (x[:1],), path, dynamo=False, input_names=["x"], opset_version=opset, **axes)
    return path


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomise_(Small()).float()


FILES = {
    "legacy": {},
    "fixed": {"free": False},
    "dynamo": {"dynamo": True},
    **{f"opset {n}": {"opset": n} for n in (9, 11, 12, 14, 17)},
}


@pytest.mark.parametrize("how", FILES)
def test_a_network_is_as_free_as_its_code_and_pruned_like_it(how, tmp_path, trusted):
    module, x = small(), torch.randn(2, *IMAGE)
    path = exported(module, tmp_path / "m.onnx", **FILES[how])
    network = open_onnx(path).module
    torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-5)
    example = x[:1].double()
    ours, codes = capture(network.double(), example), capture(module.double(), example)
    assert sorted(group.size for group in ours.free) == sorted(group.size for group in codes.free)
    assert ours.macs() == codes.macs()
    plan = half_plan(ours)
    reference = masked_outputs(network, example, ours, plan.removed)
    updated = operate_(network, plan, ours)
    assert relative_error(outputs(network, example), reference) < 1e-10
    assert same_map(updated, capture(network, example)) is None


def test_layers_are_called_as_in_the_code(tmp_path, trusted):
    network = open_onnx(exported(small(), tmp_path / "m.onnx")).module
    names = {name: type(layer) for name, layer in network.named_modules()}
    assert {"first": nn.Conv2d, "depthwise": nn.Conv2d, "last": nn.Linear}.items() <= names.items()


def test_a_pruned_network_is_saved_opened_and_exported(tmp_path, trusted):
    opened = open_onnx(exported(small(), tmp_path / "m.onnx"))
    x = torch.randn(5, *IMAGE)
    channels = capture(opened.module, x[:1])
    operate_(opened.module, half_plan(channels), channels)
    save_model(opened, tmp_path / "half.safetensors")
    again = open_model(tmp_path / "half.safetensors")
    assert again.input_shape == IMAGE
    assert torch.equal(again.module(x), opened.module(x))
    assert export_onnx(again.module, x, tmp_path / "half.onnx", check_inputs=x).max_rel < 1e-5
    twice = open_onnx(tmp_path / "half.onnx").module
    torch.testing.assert_close(twice(x), opened.module(x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_called_twice_stays_one(tmp_path, trusted):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(functional.relu(self.conv(x)))

    network = open_onnx(exported(Twice(), tmp_path / "m.onnx")).module
    assert sum(each.numel() for each in network.parameters()) == 3 * 3 * 9 + 3


def test_a_group_norm_is_one_again(tmp_path, trusted):
    """The exporters write it as a reshape, an instance norm, a reshape, a product and a sum."""
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)).eval()
    nn.init.normal_(module[1].weight), nn.init.normal_(module[1].bias)
    network = open_onnx(exported(module, tmp_path / "m.onnx")).module
    [norm] = [each for each in network.modules() if isinstance(each, nn.GroupNorm)]
    assert (norm.num_groups, len(network.nodes)) == (2, 3)
    x = torch.randn(2, *IMAGE)
    torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-5)


def test_equal_constants_are_not_tied(tmp_path, trusted):
    """Exporters keep equal weights once: norms as they begin have all the same."""
    halves = [(nn.Conv2d(width, 6, 1), nn.ReLU(), nn.BatchNorm2d(6)) for width in (3, 6)]
    module = nn.Sequential(*halves[0], *halves[1], nn.Conv2d(6, 2, 1)).eval()
    network = open_onnx(exported(module, tmp_path / "m.onnx")).module
    channels = capture(network, torch.zeros(1, *IMAGE))
    assert [group.size for group in channels.free] == [6, 6]


def test_norms_that_are_left_are_seen(tmp_path, trusted):
    folded = open_onnx(
        exported(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), tmp_path / "m.onnx")
    ).module
    kept = open_onnx(exported(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval(), tmp_path / "m.onnx")).module
    assert [lacks_norms(each) for each in (folded, kept, nn.Conv2d(3, 4, 1))] == [True, False, False]


def test_scales_learn_and_grids_do_not(tmp_path, trusted):
    constants = {"scale": floats(3, 1, 1), "grid": floats(4, 4), "stride": np.full(4, 8, np.float32), "two": floats(1)}
    lines = "Mul x scale > a", "Add a grid > b", "Mul b stride > c", "Add c two > y"
    network = open_onnx(write(tmp_path / "m.onnx", nodes_of(*lines), constants, ("b", 3, 4, 4))).module
    assert [name for name, _ in network.named_parameters()] == ["scale"]
    assert {name for name, _ in network.named_buffers()} == {"grid", "stride", "two"}


def test_it_learns(tmp_path, trusted):
    network = open_onnx(exported(small(), tmp_path / "m.onnx")).module.train()
    network(torch.randn(4, *IMAGE)).square().mean().backward()
    assert all(each.grad is not None for each in network.parameters())


def test_a_file_names_layers_and_tensors_and_nothing_else(tmp_path, trusted):
    network = open_onnx(write(tmp_path / "m.onnx", nodes_of("Relu x > y"), {}, ("b", 3, 4))).module
    [[layer, _, results, spent]] = network.nodes
    for odd in (["zero_grad", [], results, spent], [layer, ["training"], results, spent]):
        network.nodes = [odd]
        with pytest.raises(KeyError):
            network(torch.zeros(1, 3, 4))


def test_what_is_unknown_is_named_before_any_work(tmp_path, trusted):
    lines = "Relu x > r", "NonZero r > n", "Hardmax r > y"
    path = write(tmp_path / "m.onnx", nodes_of(*lines), {}, ("b", 3, 4))
    with pytest.raises(FileError, match=r"Hardmax \(y\): there is nothing in torch for it here; give the network"):
        open_onnx(path)


def test_an_operator_that_computes_something_else_is_named(tmp_path, trusted, monkeypatch):
    monkeypatch.setitem(FUNCTIONS, "Relu", functional.hardswish)
    path = write(tmp_path / "m.onnx", nodes_of("Relu x > y"), {}, ("b", 3, 4))
    with pytest.raises(FileError, match=r"Relu \(y\) differs between torch and ONNX Runtime"):
        open_onnx(path)


def test_outputs_that_differ_by_more_than_rounding_are_refused(tmp_path, trusted, monkeypatch):
    monkeypatch.setitem(FUNCTIONS, "Relu", lambda x: functional.relu(x) * (1 + 5e-4))
    path = write(tmp_path / "m.onnx", nodes_of("Relu x > y"), {}, ("b", 3, 4))
    with pytest.raises(FileError, match="the outputs in torch differ from ONNX Runtime's by 5e-04"):
        open_onnx(path)


@pytest.mark.parametrize(
    ("nodes", "constants", "shape", "said"),
    [
        (("Relu x > y",), {}, ("b", 3, "h", "w"), "leaves the size of its images open"),
        (("MatMul x w > y",), {"w": floats(4, 4).astype(np.float16)}, ("b", 3, 4), "weights in float16"),
        (("ReduceMean x axes > y",), {"axes": ints(0)}, ("b", 3, 4), "other outputs in a larger batch"),
        (("Relu x > z", "Identity c > y"), {"c": floats(2, 2)}, ("b", 3, 4), "whatever the images are"),
        (("Shape x > s", "ConstantOfShape s > z", "Add x z > y"), {}, ("b", 3, 4), "computed from the batch size"),
    ],
)  # fmt: skip
def test_a_graph_that_does_not_fit_is_refused(nodes, constants, shape, said, tmp_path, trusted):
    path = write(tmp_path / "m.onnx", nodes_of(*nodes), constants, shape)
    with pytest.raises((FileError, UsageError), match=said):
        open_onnx(path)


def test_images_of_another_size_are_refused(tmp_path, trusted):
    path = write(tmp_path / "m.onnx", nodes_of("Relu x > y"), {}, ("b", 3, "h", 4))
    assert open_onnx(path, shape=(3, 5, 4)).input_shape == (3, 5, 4)
    with pytest.raises(UsageError, match="takes images of 3xanyx4, not 3x5x5"):
        open_onnx(path, shape=(3, 5, 5))


def test_an_architecture_beside_it_is_refused(tmp_path):
    path = write(tmp_path / "m.onnx", nodes_of("Relu x > y"), {}, ("b", 3, 4))
    with pytest.raises(UsageError, match="brings its architecture: leave `arch` out"):
        open_model(path, arch="sample:mlp")
    with pytest.raises(UsageError, match="give it as the model, without `arch`"):
        open_model(None, arch=str(path))


def test_what_our_own_files_say_is_kept(tmp_path):
    path = write(tmp_path / "m.onnx", nodes_of("Relu x > y"), {}, ("b", 3, 4))
    model = onnx.load(path)
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD_KEY, card_text((3, 4), Card(classes=("cat", "dog"), history=("made",)))
    onnx.save(model, path)
    opened = open_model(path)
    assert (opened.classes, opened.history, opened.input_shape) == (("cat", "dog"), ("made",), (3, 4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        *(
            (name, "torchscript")
            for name in words("squeezenet1_1 resnet18 mobilenet_v3_small regnet_x_400mf densenet121")
        ),
        *((name, "dynamo") for name in words("resnet18 efficientnet_b0 convnext_tiny")),
    ],
)
def test_torchvisions_networks_are_as_free_as_their_code(name, exporter):
    row = measured(f"torchvision:{name}", exporter)
    assert row["failures"] == [] and row["error"] < 1e-10 and row["back"] < 1e-4
    assert row["file"] == row["code"]
