"""compressor's own checkpoints with a hostile architecture, structure, steps or text, and exported programs."""

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.faults.hostile_archives import saved
from tests.faults.hostile_pickles import Make, source, system

_OWN = Path(__file__).parents[2] / "sample_models" / "digits_cnn.pt"
_SHAPE = (32, 1, 3, 3)  # of its first weight


def changed(**changes: Any) -> Make:
    """A good checkpoint of a small network with some of its entries changed."""

    def make(path: Path, canary: Path) -> None:
        torch.save({**_good(), **changes}, path)

    return make


def edited(edit: Callable[[dict[str, Any]], Any]) -> Make:
    """A good checkpoint that was changed somewhere inside."""

    def make(path: Path, canary: Path) -> None:
        held = _good()
        edit(held)
        torch.save(held, path)

    return make


def architecture(name: str, **arguments: Any) -> Make:
    """A checkpoint that says how its network is built."""
    return changed(arch={"name": name, "arguments": arguments, "sha256": None}, state={"w": torch.zeros(1)})


def _good() -> dict[str, Any]:
    held: dict[str, Any] = torch.load(_OWN)
    held["arch"]["name"] = f"{_OWN.with_suffix('.py')}:build"
    return held


def endless(depth: int = 60) -> list[Any]:
    """A list that holds one list twice, which holds one twice, and so on: small to store, endless to print."""
    value: list[Any] = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


def _resized(shape: Any) -> Make:
    return changed(structure={"shapes": {"0.weight": shape}, "attributes": {}})


def _attribute(module: str, key: str, value: Any) -> Make:
    return changed(structure={"shapes": {}, "attributes": {module: {key: value}}})


def _step(**step: Any) -> Make:
    return changed(steps=[step])


def _code_beside(path: Path, canary: Path) -> None:
    """A checkpoint and the code it names, which came together."""
    code = path.with_name(f"{path.stem}_code.py")
    code.write_text(f"{source(canary)}\ndef build(**_):\n    {source(canary)}\n")
    sha256 = hashlib.sha256(code.read_bytes()).hexdigest()
    torch.save({**_good(), "arch": {"name": f"{code.name}:build", "arguments": {}, "sha256": sha256}}, path)


def _other_function(held: dict[str, Any]) -> None:
    held["arch"]["name"] = f"{_OWN.parent / 'train_digits.py'}:main"
    held["arch"]["sha256"] = hashlib.sha256((_OWN.parent / "train_digits.py").read_bytes()).hexdigest()


def _class_that_runs(held: dict[str, Any]) -> None:
    held["classes"] = tuple(f"\x1b]0;{i}\x07\n" for i in range(3))
    held["input_shape"] = "3x3"


def _whole(module: Any) -> Make:
    return changed(arch=None, module=module, state={})


def _program(edit: Callable[[str, bytes], bytes]) -> Make:
    """An exported program whose records were changed."""

    def make(path: Path, canary: Path) -> None:
        program = torch.export.export(torch.nn.Linear(3, 3), (torch.zeros(2, 3),))
        good = io.BytesIO()
        torch.export.save(program, good)
        with zipfile.ZipFile(good) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in records.items():
                archive.writestr(name, edit(name, value).replace(b"CANARY", str(canary).encode()))

    return make


def _tampered(name: str, value: bytes) -> bytes:
    return value.replace(b"torch.ops.aten", b"os.system('touch CANARY')") if name.endswith("model.json") else value


def _with_a_pickle(path: Path, canary: Path) -> None:
    _program(lambda name, value: saved({}) if name.endswith("sample_inputs/model.pt") else value)(path, canary)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped.txt", b"x")
        archive.writestr("extra/data.pkl", b"\x80\x02" + system(canary) + b".")


CHECKPOINTS: dict[str, Make] = {
    "arch_code_beside": _code_beside,
    "arch_our_own_script": edited(_other_function),
    "arch_device": architecture("/dev/zero:build"),
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
    "arch_endless_argument": architecture("torchvision:resnet18", norm_layer=endless()),
    "arch_own_with_many_classes": edited(lambda held: held["arch"]["arguments"].update(num_classes=10**7)),
    "structure_overflow": _resized([2**30, 2**30, 2**30, 2**30]),
    "structure_huge": _resized([2**20, 2**14, 1, 1]),
    "structure_negative": _resized([-32, 1, 3, 3]),
    "structure_text": _resized("32x1x3x3"),
    "structure_endless": _resized(endless()),
    "structure_bool": _resized([True, 1, 3, 3]),
    "structure_unknown_tensor": changed(structure={"shapes": {"no.such\n\x1b[2Jthing": [1]}, "attributes": {}}),
    "structure_stride_zero": _attribute("0", "stride", [0, 0]),
    "structure_padding": _attribute("0", "padding", [2**30, 2**30]),
    "structure_forward": _attribute("0", "forward", [1]),
    "structure_dunder": _attribute("0", "__class__", [1]),
    "structure_list": changed(structure=[1, 2]),
    "steps_unknown": _step(kind="os.system", command="touch x"),
    "steps_of_no_kind": _step(kind=["detach"]),
    "steps_detach_garbage": _step(kind="detach", points=endless(10), cut=-1),
    "steps_nsn_garbage": _step(kind="nsn", models=10**9),
    "steps_primenet_garbage": _step(kind="primenet", capsules=-5),
    "steps_a_thousand": changed(steps=[{"kind": "structure", "shapes": {}, "attributes": {}}] * 1000),
    "steps_structure_huge": _step(kind="structure", shapes={"0.weight": [2**20, 2**14, 1, 1]}, attributes={}),
    "state_of_texts": changed(state={"0.weight": "zeros"}),
    "state_of_numbers": changed(state={0: torch.zeros(1)}),
    "state_list": changed(state=[torch.zeros(1)]),
    "state_other_shapes": edited(lambda held: held["state"].update({"0.weight": torch.zeros(32, 1, 3, 4)})),
    "state_complex": edited(
        lambda held: held["state"].update({"0.weight": torch.zeros(32, 1, 3, 3, dtype=torch.cfloat)})
    ),
    "state_meta": edited(lambda held: held["state"].update({"0.weight": torch.zeros(32, 1, 3, 3, device="meta")})),
    "state_empty": changed(state={}),
    "input_huge": changed(input_shape=(3, 10**6, 10**6)),
    "input_negative": changed(input_shape=(1, -8, 8)),
    "input_text": changed(input_shape="188"),
    "input_overflow": changed(input_shape=(2**62, 2**62, 2**62)),
    "classes_endless": changed(classes=endless()),
    "classes_escape": edited(_class_that_runs),
    "history_endless": changed(history=endless()),
    "measurements_endless": changed(measurements={"a": endless()}),
    "mean_not_finite": changed(mean=(float("nan"),)),
    "mean_text": changed(mean="half"),
    "version_future": changed(version=10**9),
    "version_endless": changed(version=endless()),
    "version_text": changed(version="1"),
    "both_kinds": changed(module=torch.nn.Sequential()),
    "whole_of_nothing": _whole({"no": "module"}),
    "whole_without_shape": changed(
        arch=None, module=torch.nn.Sequential(torch.nn.Linear(3, 3)), state={}, input_shape=None
    ),
    "nothing_else": lambda path, canary: torch.save({"format": "compressor", "version": 1}, path),
    "program_tampered": _program(_tampered),
    "program_no_json": _program(lambda name, value: b"{" if name.endswith(".json") else value),
    "program_with_a_pickle": _with_a_pickle,
}

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
