"""The quick rules give the shapes, types and strides that torch's own do, and refuse what torch refuses."""

import pytest
import torch

from compressor.graph.outline import run_on_shapes
from compressor.graph.values import Values

aten = torch.ops.aten
ROWS, MAP = (6, 4), (2, 4, 5, 7)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def described(result):
    results = result if isinstance(result, tuple) else (result,)
    return [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in results]


LAST = meta(*MAP).contiguous(memory_format=torch.channels_last)
CALLS = {
    "affine": (aten.addmm.default, (meta(3), meta(*ROWS), meta(3, 4).t())),
    "layer norm": (aten.native_layer_norm.default, (meta(2, 3, 8), [8], meta(8), meta(8), 1e-5)),
    "layer norm of two dims": (aten.native_layer_norm.default, (meta(2, 3, 8), [3, 8], None, None, 1e-5)),
    "layer norm in half": (aten.native_layer_norm.default, (meta(2, 8, dtype=torch.half), [8], None, None, 1e-5)),
    "layer norm of strides": (aten.native_layer_norm.default, (meta(*MAP).permute(0, 2, 3, 1), [4], None, None, 1e-5)),
    "convolution": (
        aten.convolution.default,
        (meta(*MAP), meta(6, 2, 3, 3), meta(6), [2, 1], [1, 0], [1, 2], False, [0, 0], 2),
    ),
    "batch norm": (
        aten.native_batch_norm.default,
        (meta(*MAP), meta(4), meta(4), meta(4), meta(4), True, 0.1, 1e-5),
    ),
    "transposed convolution": (
        aten.convolution.default,
        (meta(*MAP), meta(4, 3, 3, 2), meta(6), [2, 1], [1, 0], [1, 2], True, [1, 0], 2),
    ),
    "convolution of strides": (aten.convolution.default, (LAST, meta(6, 4, 3, 3), None, [1], [1], [1], False, [0], 1)),
    "convolution of a view": (
        aten.convolution.default,
        (meta(2, 5, 7, 4).permute(0, 3, 1, 2), meta(6, 4, 1, 1), None, [1], [0], [1], False, [0], 1),
    ),
    "group norm": (aten.native_group_norm.default, (meta(*MAP), meta(4), meta(4), 2, 4, 35, 2, 1e-5)),
    "batched product": (aten.bmm.default, (meta(2, 3, 4), meta(2, 4, 5))),
    "softmax": (aten._safe_softmax.default, (meta(2, 3, 4), -1)),
    "softmax of strides": (aten._safe_softmax.default, (LAST, -1)),
    "softmax of a view": (aten._softmax.default, (meta(2, 3, 4).transpose(1, 2), -1, False)),
    "softmax in another type": (aten._softmax.default, (meta(2, 3, 4, dtype=torch.half), -1, True)),
    "bilinear": (aten.upsample_bilinear2d.default, (meta(*MAP), [10, 3], False, None, None)),
    "nearest": (aten.upsample_nearest1d.default, (meta(2, 4, 5), [10], None)),
    "trilinear": (aten.upsample_trilinear3d.default, (meta(1, 2, *MAP[1:]), [3, 3, 3], True, None, None, None)),
    "product with a number": (aten.mul.Scalar, (meta(*MAP), 2)),
    "product with a complex number": (aten.mul.Scalar, (meta(*MAP), 2j)),
    "concatenation of strides": (aten.cat.default, ([meta(4, 3).t(), meta(3, 2)], 1)),
    "addition that broadcasts": (aten.add.Tensor, (meta(*MAP), meta(4, 1, 1))),
    "addition of types": (aten.add.Tensor, (meta(*MAP), meta(4, 1, 1, dtype=torch.float64))),
    "concatenation": (aten.cat.default, ([meta(*MAP), meta(2, 1, 5, 7)], -3)),
    "mean": (aten.mean.dim, (meta(*MAP), [-1, 2], True)),
    "activation of strides": (aten.relu.default, (LAST,)),
    "activation of permuted dimensions": (aten.relu.default, (meta(*MAP).permute(3, 0, 2, 1),)),
    "activation of every other pixel": (aten.relu.default, (meta(*MAP).permute(0, 2, 1, 3)[:, ::2],)),
    "activation of one image over and over": (aten.relu.default, (meta(1, 4, 5).expand(3, 4, 5),)),
}
REFUSED = {
    "affine": (aten.addmm.default, (meta(3), meta(*ROWS), meta(5, 3))),
    "affine's bias": (aten.addmm.default, (meta(2), meta(*ROWS), meta(4, 3))),
    "layer norm": (aten.native_layer_norm.default, (meta(2, 3, 8), [7], meta(7), meta(7), 1e-5)),
    "layer norm's weight": (aten.native_layer_norm.default, (meta(2, 3, 8), [8], meta(7), meta(8), 1e-5)),
    "convolution": (aten.convolution.default, (meta(*MAP), meta(6, 3, 3, 3), None, [1], [1], [1], False, [0], 1)),
    "group norm": (aten.native_group_norm.default, (meta(*MAP), meta(3), None, 2, 4, 35, 2, 1e-5)),
    "batched product": (aten.bmm.default, (meta(2, 3, 4), meta(2, 5, 4))),
    "concatenation": (aten.cat.default, ([meta(*MAP), meta(2, 1, 4, 7)], 1)),
    "addition": (aten.add.Tensor, (meta(*MAP), meta(3, 1, 1))),
}


@pytest.mark.parametrize("name", CALLS)
def test_quick_rule_agrees_with_torch(name):
    func, args = CALLS[name]
    assert described(run_on_shapes(func, args, {}, Values())) == described(func(*args))


def test_batch_norm_takes_no_statistics_in_evaluation_as_on_data():
    """Torch's own rule gives them one number a channel."""
    args = (LAST, None, meta(4), meta(4), meta(4), False, 0.1, 1e-5)
    data = (torch.ones_like(each, device="cpu") if isinstance(each, torch.Tensor) else each for each in args)
    func = aten.native_batch_norm.default
    assert described(run_on_shapes(func, args, {}, Values())) == described(func(*data))


@pytest.mark.parametrize("name", REFUSED)
def test_quick_rule_refuses_what_torch_refuses(name):
    func, args = REFUSED[name]
    for run in (func, lambda *args: run_on_shapes(func, args, {}, Values())):
        with pytest.raises(RuntimeError):
            run(*args)
