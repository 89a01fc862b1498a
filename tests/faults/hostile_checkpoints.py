"""compressor's own checkpoints with a hostile architecture, structure, steps or text."""

import hashlib
import random
from pathlib import Path
from typing import Any

import torch

from tests.faults.hostile_archives import saved
from tests.faults.hostile_pickles import Make, source, system
from tests.loading.checkpoints import Edit, change

_OWN = Path(__file__).parents[2] / "sample_models" / "digits_cnn.safetensors"
_SCRIPT = _OWN.parent / "train_digits.py"
_MUTATIONS = 60


def edited(edit: Edit) -> Make:
    """A good checkpoint of a small network whose header or tensors were changed, with a right checksum."""
    return lambda path, canary: change(_OWN, edit, path)  # type: ignore[return-value]


def changed(**changes: Any) -> Make:
    """A good checkpoint with other values in its header."""
    return edited(lambda header, _: header.update(changes))


def architecture(name: str, sha256: str | None = None, **arguments: Any) -> Make:
    """A checkpoint that says how its network is built."""

    def edit(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        header["arch"] = {"name": name, "arguments": arguments, "sha256": sha256}
        header["state"] = {"w": {"$tensor": "w"}}
        tensors.clear()
        tensors["w"] = torch.zeros(1)

    return edited(edit)


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def mutated(seed: int) -> Make:
    """A checkpoint one value of whose header is something else, somewhere."""

    def edit(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        source = random.Random(seed)
        holder: Any = header
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = source.choice(keys)
            if not isinstance(holder[key], dict | list) or not holder[key] or source.random() < 0.3:
                break
            holder = holder[key]
        holder[key] = source.choice(_VALUES)

    return edited(edit)


_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**9, 2**62, 1e300, "", "x" * 10**5, "\x1b]0;x\x07\n", [], [0] * 10**5, {}, {"a": 1},
    {"$tuple": 3}, {"$dict": [[[], 1]]}, {"$float": "0"}, {"$tensor": "0.weight"}, {"$call": "os.system"}, [[]], [-1],
    [2**40], nested(40), nested(900), {"name": "os.py:system", "arguments": {}, "sha256": None}, ["12.weight"],
    {"$tensor": ["0.weight", [2**40, 1]]},
)  # fmt: skip


def _resized(shape: Any) -> Make:
    return changed(structure={"shapes": {"0.weight": shape}, "attributes": {}, "tied": {}})


def _attributes(module: str, **values: Any) -> Make:
    return changed(structure={"shapes": {}, "attributes": {module: values}, "tied": {}})


def _step(**step: Any) -> Make:
    return changed(steps=[step])


def _tensor(name: str, value: Any) -> Make:
    def edit(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        header["state"][name] = {"$tensor": name}
        tensors[name] = value

    return edited(edit)


def _stated(value: Any) -> Make:
    return edited(lambda header, _: header["state"].update({"0.weight": value}))


def _code_beside(path: Path, canary: Path) -> None:
    """A checkpoint and the code it names, which came together."""
    code = path.with_name(f"{path.stem}_code.py")
    code.write_text(f"{source(canary)}\ndef build(**_):\n    {source(canary)}\n")
    sha256 = hashlib.sha256(code.read_bytes()).hexdigest()
    changed(arch={"name": f"{code.name}:build", "arguments": {}, "sha256": sha256})(path, canary)


def _code_opens_another_file(path: Path, canary: Path) -> None:
    """A checkpoint that names a function of the project's own script, which opens another file with trust."""
    other = path.with_name(f"{path.stem}_other.bin")
    other.write_bytes(saved(system(canary)))
    sha256 = hashlib.sha256(_SCRIPT.read_bytes()).hexdigest()
    arguments = {"path": str(other), "trust": True}
    changed(arch={"name": f"{_SCRIPT}:open_model", "arguments": arguments, "sha256": sha256})(path, canary)


def _blueprint(layers: Any, tensors: Any) -> Make:
    return changed(arch=None, blueprint={"layers": layers, "tensors": tensors})


def _layer(name: str, **more: Any) -> dict[str, Any]:
    return {"class": name, "attributes": {}, "parameters": {}, "buffers": {}, "children": {}, **more}


CHECKPOINTS: dict[str, Make] = {
    "arch_code_beside": _code_beside,
    "arch_our_own_script": _code_opens_another_file,
    "arch_our_own_main": architecture(f"{_SCRIPT}:main", hashlib.sha256(_SCRIPT.read_bytes()).hexdigest()),
    "arch_sample_that_is_none": architecture("sample:train_digits"),
    "arch_sample_elsewhere": architecture("sample:../tests/faults/attack"),
    "arch_module": architecture("os:system", command="x"),
    "arch_device": architecture("/dev/zero:build"),
    "arch_device_of_python": architecture("/dev/zero.py:build"),
    "arch_shell": architecture("torchvision:resnet18; rm -rf /"),
    "arch_hub": architecture("timm:hf-hub:somebody/something"),
    "arch_download": architecture("torchvision:squeezenet1_1", weights="DEFAULT"),
    "arch_timm_file": architecture("timm:resnet10t", checkpoint_path="/etc/passwd"),
    "arch_number": changed(arch={"name": 3, "arguments": {}, "sha256": None}),
    "arch_list": changed(arch=["torchvision:resnet18"]),
    "arch_a_billion_classes": architecture("torchvision:resnet18", num_classes=10**9),
    "arch_many_classes": architecture("torchvision:resnet18", num_classes=10**6),
    "arch_large_images": architecture("torchvision:vit_b_16", image_size=16_000),
    "arch_many_layers": architecture("torchvision:mobilenet_v2", inverted_residual_setting=[[1, 16, 10**8, 1]]),
    "arch_largest_network": architecture("torchvision:vit_h_14"),
    "arch_unknown_argument": architecture("torchvision:resnet18", block="x" * 10**5),
    "arch_nested_argument": architecture("torchvision:resnet18", norm_layer=nested(500)),
    "arch_wide_sample": architecture("sample:vgg16_cifar", width=10**4),
    "arch_deep_sample": architecture("sample:resnet_cifar", depth=6 * 10**7 + 2),
    "arch_sample_with_many_classes": architecture("sample:digits_cnn", num_classes=10**7),
    "blueprint_of_a_function": _blueprint(_layer("os.system"), {}),
    "blueprint_huge": _blueprint(_layer("torch.nn.modules.linear.Identity"), {"w": ["float32", [2**40]]}),
    "blueprint_overflow": _blueprint(_layer("torch.nn.modules.linear.Identity"), {"w": ["float32", [2**31, 2**31, 4]]}),
    "blueprint_of_another_type": _blueprint(_layer("torch.nn.modules.linear.Identity"), {"w": ["load", [1]]}),
    "blueprint_of_nothing": changed(arch=None, blueprint={"no": "layers"}),
    "blueprint_without_shape": changed(
        arch=None, input_shape=None, blueprint={"layers": _layer("torch.nn.modules.linear.Identity"), "tensors": {}}
    ),
    "blueprint_and_arch": changed(blueprint={}),
    "structure_overflow": _resized([2**30, 2**30, 2**30, 2**30]),
    "structure_huge": _resized([2**20, 2**14, 1, 1]),
    "structure_negative": _resized([-32, 1, 3, 3]),
    "structure_text": _resized("32x1x3x3"),
    "structure_nested": _resized(nested(400)),
    "structure_bool": _resized([True, 1, 3, 3]),
    "structure_unknown_tensor": changed(structure={"shapes": {"no.such\n\x1b[2Jthing": [1]}, "attributes": {}}),
    "structure_tied": changed(structure={"tied": {"0.weight\n\x1b[2J": "0.weight"}}),
    "structure_stride_zero": _attributes("0", **{"stride.0": 0, "stride.1": 0}),
    "structure_padding": _attributes("0", **{"padding.0": 2**30, "padding.1": 2**30}),
    "structure_forward": _attributes("0", forward=1),
    "structure_dunder": _attributes("0", __class__=1),
    "structure_list": changed(structure=[1, 2]),
    "steps_unknown": _step(kind="os.system", command="touch x"),
    "steps_of_no_kind": _step(kind=["detach"]),
    "steps_detach_garbage": _step(kind="detach", points=nested(10), cut=-1),
    "steps_nsn_garbage": _step(kind="nsn", models=10**9),
    "steps_primenet_garbage": _step(kind="primenet", capsules=-5),
    "steps_a_thousand": changed(steps=[{"kind": "structure", "shapes": {}, "attributes": {}}] * 1000),
    "steps_structure_huge": _step(kind="structure", shapes={"0.weight": [2**20, 2**14, 1, 1]}, attributes={}),
    "state_other_shapes": _tensor("0.weight", torch.zeros(32, 1, 3, 4)),
    "state_complex": _tensor("0.weight", torch.zeros(32, 1, 3, 3, dtype=torch.cfloat)),
    "state_escapes": _tensor("\x1b[2J\n", torch.zeros(1)),
    "state_empty": edited(lambda header, tensors: (tensors.clear(), header["state"].clear())),
    "state_left_out": changed(state={}),
    "state_tied_to_nothing": _stated({"$tensor": "\x1b[2J"}),
    "state_strides": _stated({"$tensor": ["0.weight", [2**60, 1, 1, 1]]}),
    "state_extra": edited(lambda header, _: header["state"].update({"0._extra_state": {"$tensor": "0.weight"}})),
    "input_huge": changed(input_shape=[3, 10**6, 10**6]),
    "input_negative": changed(input_shape=[1, -8, 8]),
    "input_text": changed(input_shape="188"),
    "input_overflow": changed(input_shape=[2**62, 2**62, 2**62]),
    "classes_numbers": changed(classes=list(range(10**6))),
    "classes_escape": changed(classes=[f"\x1b]0;{i}\x07\n" for i in range(3)], input_shape="3x3"),
    "history_nested": changed(history=nested(800)),
    "measurements_nested": changed(measurements={"a": nested(800)}),
    "mean_not_finite": changed(preparation={"mean": [{"$float": "nan"}], "std": [1.0]}),
    "preparation_text": changed(preparation="half"),
    "preparation_by_code": changed(preparation={"mean": [0.5], "std": [1.0], "interpolation": "os.system"}),
    "version_future": changed(version=10**9),
    "version_list": changed(version=nested(100)),
    "version_text": changed(version="1"),
    "nothing_else": edited(lambda header, _: [header.pop(name) for name in list(header) if name != "version"]),
}

# Whatever one value of the header becomes: opened, or refused in one line.
MUTATIONS: dict[str, Make] = {str(seed): mutated(seed) for seed in range(_MUTATIONS)}

# Files for which the command names an architecture of its own.
STATES: dict[str, Any] = {
    "list": [torch.zeros(2)],
    "number": 3,
    "empty": {},
    "names_are_numbers": {1: torch.zeros(2)},
    "values_are_texts": {"conv1.weight": "x"},
    "ranks_differ": {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(())},
    "complex": {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.cfloat)},
    "integers": {"fc.weight": torch.zeros(5, 512, dtype=torch.int64)},
    "many_classes": {"fc.bias": torch.zeros(4_000_000, dtype=torch.uint8)},
    "no_classes": {"fc.weight": torch.zeros(0, 512), "fc.bias": torch.zeros(0)},
    "wrapped_deep": {"state_dict": {"model": {"net": {"module": {"weights": {"w": torch.zeros(1)}}}}}},
    "names_with_escapes": {"\x1b[31m\n" * 50: torch.zeros(1)},
}
