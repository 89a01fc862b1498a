"""Pickles that name nothing forbidden and fill memory and time, or reach for memory that is not theirs."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.faults.assembler import (
    NONE,
    build,
    call,
    dic,
    legacy_of,
    name,
    new,
    number,
    program,
    storage,
    tensor,
    text,
    tup,
    zip_of,
)
from tests.faults.hostile_pickles import Make

_NUMBERS = {"data/0": bytes(16)}  # four float32


def holding(body: bytes | Callable[[], bytes], records: dict[str, bytes] | None = None, protocol: int = 2) -> Make:
    """torch.save's form around one object; a large one is given as what makes it."""
    return lambda path, canary: zip_of(path, program(body() if callable(body) else body, protocol), records)


def state(value: bytes) -> bytes:
    """A state dict of one tensor."""
    return dic(text("w"), value)


def _doubling_text(depth: int) -> bytes:
    body = text("a" * 1000)
    for _ in range(depth):
        body = call(name("_codecs", "encode"), body, text("hex"))
    return body


def _parts(child: str, layer: bytes) -> bytes:
    """The state of a layer with one child."""
    ordered = call(name("collections", "OrderedDict"))
    children = ordered + b"(" + text(child) + layer + b"u"
    return dic(text("_parameters"), ordered, text("_buffers"), ordered, text("_modules"), children)


def _layers(body: bytes) -> bytes:
    """A Sequential with one child."""
    return build(new(name("torch.nn.modules.container", "Sequential")), _parts("0", body))


def _itself(module: str = "torch.nn.modules.container", kind: str = "Sequential", child: str = "0") -> bytes:
    """A layer that contains itself."""
    return build(new(name(module, kind)) + b"q\x00", _parts(child, b"h\x00"))


def _nested(depth: int) -> bytes:
    """A Sequential in a Sequential, and so on."""
    body = build(new(name("torch.nn.modules.linear", "Identity")), _parts("", NONE))
    for _ in range(depth):
        body = _layers(body)
    return body


def _branching() -> Make:
    def make(path: Path, canary: Path) -> None:
        layer: nn.Module = nn.ReLU()
        for _ in range(40):
            layer = nn.Sequential(layer, layer)
        torch.save(layer, path)

    return make


def _changed_layer(**changes: Any) -> Make:
    def make(path: Path, canary: Path) -> None:
        layer = nn.Sequential(nn.Conv2d(1, 2, 3))
        vars(layer[0]).update(changes)
        torch.save(layer, path)

    return make


def _legacy_storage(count: int) -> bytes:
    return tup(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(count), b"N") + b"Q"


def _colliding(count: int) -> bytes:
    """A dict whose keys are different tuples of one hash: multiples of 2**61 - 1 have that of 0."""
    multiples = [number(times * (2**61 - 1)) for times in range(-3, 4)]
    keys = itertools.islice(itertools.product(multiples, repeat=8), count)
    return b"}(" + b"".join(tup(*key) + NONE for key in keys) + b"u"


_CONV = name("torch.nn.modules.conv", "Conv2d")
_TENSOR = name("torch", "Tensor")
_FOUR, _MANY = tensor(storage("0", 4), (4,), (1,)), tup(number(10**10))
_BYTEARRAY = name("builtins", "bytearray")

BOMBS: dict[str, Make] = {
    "bytearray": holding(state(call(_BYTEARRAY, number(10**11)))),
    "doubling_text": holding(lambda: state(_doubling_text(30))),
    "constructor": holding(call(_CONV, number(10**5), number(10**5), number(3))),
    "tensor_constructor": holding(state(call(name("torch", "FloatTensor"), number(10**6), number(10**6)))),
    "repeated_values": holding(state(tensor(storage("0", 4), (2**40,), (0,))), _NUMBERS),
    "repeated_often": holding(
        lambda: dic(*(part for i in range(900) for part in (text(str(i)), tensor(storage("0", 4), (2**24,), (0,))))),
        _NUMBERS,
    ),
    "storage_not_there": holding(state(tensor(storage("1", 4), (4,), (1,))), _NUMBERS),
    "storage_too_small": holding(state(tensor(storage("0", 10**9), (10**9,), (1,))), _NUMBERS),
    "storage_of_two_sizes": holding(
        dic(text("a"), tensor(storage("0", 4), (4,), (1,)), text("b"), tensor(storage("0", 99), (99,), (1,))), _NUMBERS
    ),
    "storage_of_another_type": holding(state(tensor(storage("0", 4, "DoubleStorage"), (4,), (1,))), _NUMBERS),
    "beyond_the_storage": holding(state(tensor(storage("0", 4), (4,), (10**9,))), _NUMBERS),
    "before_the_storage": holding(state(tensor(storage("0", 4), (4,), (1,), -4)), _NUMBERS),
    "negative_stride": holding(state(tensor(storage("0", 4), (4,), (-1,))), _NUMBERS),
    "overflowing_shape": holding(state(tensor(storage("0", 4), (2**62, 2**62), (1, 1))), _NUMBERS),
    "a_million_dimensions": holding(lambda: state(tensor(storage("0", 4), (1,) * 10_000, (1,) * 10_000)), _NUMBERS),
    "set_after_the_fact": holding(
        state(
            build(
                tensor(storage("0", 4), (4,), (1,)),
                tup(storage("0", 4), number(0), tup(number(10**10)), tup(number(1))),
            )
        ),
        _NUMBERS,
    ),
    "legacy_storage": lambda path, canary: legacy_of(
        path, program(state(tensor(_legacy_storage(10**12), (10**12,), (1,))))
    ),
    "sparse_tensor": holding(
        state(call(name("torch._utils", "_rebuild_sparse_tensor"), name("torch", "sparse_coo"), tup())), _NUMBERS
    ),
    "wrapper_subclass": holding(
        state(call(name("torch._utils", "_rebuild_wrapper_subclass"), name("torch", "Tensor")))
    ),
    "key_nested_deeply": holding(lambda: b"}" + b")" + b"\x85" * 300_000 + b"Ns"),
    "key_that_doubles": holding(b"}(" + b")q\x00" + b"h\x00\x86q\x00" * 60 + b"Nu"),
    "keys_that_collide": holding(
        lambda: b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(50_000)) + b"u"
    ),
    "tuples_that_collide": holding(lambda: _colliding(20_000)),
    "many_arguments": holding(lambda: name("builtins", "list") + b"](" + b"N" * 100_000 + b"eR"),
    "many_names": holding(lambda: b"(" + b"".join(name("a", f"b{k}") for k in range(50_000)) + b"t"),
    "name_without_end": holding(lambda: b"cos\n" + b"x" * 5_000_000),
    "state_given_often": holding(
        lambda: (
            dic(*(text(str(k)) + number(k) for k in range(50_000)))
            + b"q\x00("
            + (call(name("collections", "OrderedDict")) + b"h\x00b") * 10_000
            + b"t"
        )
    ),
    "parameter_of_itself": holding(name("torch._utils", "_rebuild_parameter") + b"(h\x00t" + b"Rq\x00"),
    "deep_list": holding(lambda: state(b"]" * 200_000 + b"a" * 199_999)),
    "endless_instructions": holding(lambda: state(b"](" + b"N" * 1_200_000 + b"e")),
    "number_of_2000_bits": holding(state(number(2**2000))),
    "length_of_a_string": holding(b"X\xff\xff\xff\x7f" + b"abc"),
    "length_of_bytes": holding(b"\x8e" + b"\xff" * 7 + b"\x0f", None, 4),
    "nothing_on_the_stack": holding(b"0000R"),
    "unknown_instruction": holding(b"\xfe\xfd"),
    "no_stop": lambda path, canary: zip_of(path, b"\x80\x02}"),
    "layer_in_itself": holding(_itself()),
    "layers_without_end": _branching(),
    "layers_nested_deeply": holding(lambda: _nested(300)),
    "wrapper_in_itself": holding(_itself("torch.nn.parallel.data_parallel", "DataParallel", "module")),
    "layer_with_a_number_for_a_child": holding(_layers(number(1))),
    "layer_without_parts": holding(new(_CONV)),
    "layer_with_forward": _changed_layer(forward=nn.Linear),
    "layer_with_hooks": _changed_layer(_forward_hooks={0: nn.Identity}),
    "layer_with_wrong_weights": _changed_layer(_parameters={"weight": [1, 2]}),
    "layer_of_absurd_sizes": _changed_layer(in_channels=2**80, stride=(0, 0), groups=-1),
    "layer_of_huge_padding": _changed_layer(padding=(10**9, 10**9)),
    "upsampling_without_end": lambda path, canary: torch.save(nn.Sequential(nn.Upsample(scale_factor=1e9)), path),
    "pooling_to_a_huge_size": lambda path, canary: torch.save(nn.Sequential(nn.AdaptiveAvgPool2d(10**7)), path),
    "torchvision_builder": holding(call(name("torchvision.models.resnet", "resnet152"))),
}
