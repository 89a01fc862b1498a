"""The table of operators: how each moves channels, what it costs, and whatever else a room may ask of it.

ATen's operators that run ("convolution", "addmm") stand beside those that an exported program keeps whole ("conv2d").
Operators that are alike in everything share a line: a further one is a word, or a line of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from compressor.graph import meta_shapes, sizes
from compressor.graph import rules_layers as layers
from compressor.graph import rules_parts as parts
from compressor.graph import rules_shapes as shapes
from compressor.graph.batched import by_trial
from compressor.graph.records import Axis, Kind, Op, Operator, argument, plain_name
from compressor.graph.rules import along, drawn, elementwise, extreme, statistic

Clip = Callable[[Op], tuple[float, float]]


def free(op: Op) -> Sequence[Sequence[Axis]]:
    """The multiply-adds of what multiplies no matrices: element-wise operators, pooling, norms, whatever moves data."""
    return ()


def _activation(*modules: type[nn.Module], numbers: int = 0, clip: Clip | None = None) -> Operator:
    """`modules` do the same, the first with so many of the operator's numbers."""
    shape = meta_shapes.same_type
    return Operator(elementwise, free, "activation", modules=modules, numbers=numbers, clip=clip, shape=shape)


def _between(low: float, high: float) -> Clip:
    return lambda op: (low, high)


def _hardtanh(op: Op) -> tuple[float, float]:
    return float(argument(op, "min_val")), float(argument(op, "max_val"))


def _product(signature: str, *weights: int, sizes: Mapping[str, str] = MappingProxyType({}), **more: Any) -> Operator:
    """A product of matrices: see `Contraction`; `weights` says which arguments may be a layer's weight."""
    contraction = layers.Contraction(signature, sizes)
    return Operator(contraction.rule, contraction.macs, "product", weights=weights, **more)


def _convolution(*modules: type[nn.Module]) -> Operator:
    """Of an exported program: what runs is `convolution`."""
    return Operator(by_trial, None, "convolution", modules=modules)


def _spatial(dims: int, kind: Kind, *modules: type[nn.Module]) -> Operator:
    return Operator(partial(shapes.spatial, dims=dims), free, kind, modules=modules)


def _resized(dims: int) -> Operator:
    return replace(_spatial(dims, "resize"), shape=meta_shapes.resized)


_ATTENTION = Operator(layers.attention, layers.attention_macs, "attention")
_BATCH_NORM = Operator(layers.batch_norm, free, "batch norm")
_ELEMENTWISE = Operator(elementwise, free, "elementwise")
_BILINEAR = {"in1_features": "i", "in2_features": "j", "out_features": "o"}
_LINEAR = {"in_features": "k", "out_features": "m"}
_LIKE = Operator(shapes.like, free)
_DRAWN = Operator(drawn, free)
_PLAIN = Operator(by_trial, free)  # costs nothing; which channels pass is tried
_UNKNOWN = Operator(by_trial, None)  # what runs and is not known is listed as uncounted
_ROWS: tuple[tuple[str, Operator], ...] = (
    # Layers.
    ("convolution", Operator(layers.convolution, layers.convolution_macs, "convolution", weights=(1,), bias=2,
                             shape=meta_shapes.convolution)),
    ("conv1d", _convolution(nn.Conv1d)),
    ("conv2d", _convolution(nn.Conv2d)),
    ("conv3d", _convolution(nn.Conv3d)),
    ("conv_transpose1d", _convolution(nn.ConvTranspose1d)),
    ("conv_transpose2d", _convolution(nn.ConvTranspose2d)),
    ("conv_transpose3d", _convolution(nn.ConvTranspose3d)),
    ("linear", _product("* k, m k, m -> * m", 1, sizes=_LINEAR, bias=2, outputs_first=True, modules=(nn.Linear,))),
    ("mm _int_mm", _product("n k, k m -> n m", 1, 0, sizes=_LINEAR)),
    ("addmm", _product("n m, n k, k m -> n m", 2, 1, sizes=_LINEAR, bias=0, shape=meta_shapes.affine)),
    ("_addmm_activation", _product("n m, n k, k m -> n m", sizes=_LINEAR)),
    ("bmm", _product("b n k, b k m -> b n m", 1, 0, shape=meta_shapes.product)),
    ("baddbmm", _product("b n m, b n k, b k m -> b n m", 2, 1, bias=0)),
    ("addbmm", _product("n m, b n k, b k m -> n m")),
    ("mv", _product("n k, k -> n")),
    ("addmv", _product("n, n k, k -> n")),
    ("dot vdot", _product("k, k ->")),
    ("_trilinear", _product("n i, o i j, n j -> n o", sizes=_BILINEAR)),
    ("scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
     "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
     "_scaled_dot_product_fused_attention_overrideable", _ATTENTION),
    ("matmul einsum bilinear lstm gru rnn_tanh rnn_relu", Operator(by_trial, None, "layer")),  # products are what runs
    ("embedding", Operator(layers.embedding, free)),
    ("_embedding_bag _embedding_bag_forward_only", Operator(layers.embedding_bag, free)),
    ("_weight_norm_interface", Operator(layers.weight_norm, free)),
    # Norms.
    ("batch_norm", replace(_BATCH_NORM, modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))),
    ("native_batch_norm", replace(_BATCH_NORM, shape=meta_shapes.batch_norm)),
    ("cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
     "_batch_norm_with_update _batch_norm_no_update", _BATCH_NORM),
    ("layer_norm", Operator(layers.layer_norm, free, modules=(nn.LayerNorm,), resize=sizes.layer_norm)),
    ("native_layer_norm", Operator(layers.layer_norm, free, shape=meta_shapes.layer_norm)),
    ("_fused_rms_norm", Operator(layers.layer_norm, free)),
    ("native_group_norm", Operator(layers.group_norm, free, shape=meta_shapes.group_norm)),
    ("group_norm", Operator(by_trial, None, modules=(nn.GroupNorm,))),
    ("instance_norm", _UNKNOWN),
    # Activations.
    ("relu", _activation(nn.ReLU, clip=_between(0.0, math.inf))),
    ("relu6", _activation(nn.ReLU6)),
    ("hardtanh", _activation(nn.Hardtanh, nn.ReLU6, numbers=2, clip=_hardtanh)),
    ("hardswish", _activation(nn.Hardswish, clip=_between(-3.0, math.inf))),
    ("hardsigmoid", _activation(nn.Hardsigmoid, clip=_between(-3.0, 3.0))),
    ("leaky_relu", _activation(nn.LeakyReLU, numbers=1)),
    ("prelu", _activation(nn.PReLU)),
    ("elu", _activation(nn.ELU, numbers=1)),
    ("celu", _activation(nn.CELU, numbers=1)),
    ("selu", _activation(nn.SELU)),
    ("silu", _activation(nn.SiLU)),
    ("mish", _activation(nn.Mish)),
    ("gelu", _activation(nn.GELU, numbers=1)),
    ("sigmoid", _activation(nn.Sigmoid)),
    ("softplus", _activation(nn.Softplus, numbers=2)),
    ("tanh", _activation(nn.Tanh)),
    # Element by element.
    ("add sub", Operator(elementwise, free, "sum", shape=meta_shapes.same_type)),
    ("mul", Operator(elementwise, free, "scale", shape=meta_shapes.same_type)),
    ("div", Operator(elementwise, free, "quotient", shape=meta_shapes.same_type)),
    ("_prelu_kernel hardshrink softshrink threshold rrelu rrelu_with_noise log_sigmoid_forward rsub pow sqrt rsqrt "
     "exp expm1 log log1p abs neg clamp clamp_min clamp_max where masked_fill copy erf sin cos sign reciprocal "
     "maximum minimum square lerp addcmul addcdiv floor ceil round eq ne lt le gt ge logical_not bitwise_not "
     "logical_and logical_or trunc fmod remainder floor_divide complex polar angle", _ELEMENTWISE),
    ("dropout", Operator(shapes.like, free, "dropout", modules=(nn.Dropout,))),
    ("feature_dropout", Operator(shapes.like, free, "dropout", modules=(nn.Dropout2d,))),
    ("native_dropout bernoulli", Operator(shapes.like, free, "dropout")),
    ("alpha_dropout", Operator(by_trial, None, "dropout")),
    # Along dimensions.
    ("mean", Operator(statistic, free, shape=meta_shapes.mean)),
    ("max min", Operator(extreme, free)),
    ("sum amax amin aminmax var std var_mean std_mean norm linalg_vector_norm logsumexp prod any all nansum "
     "count_nonzero _is_all_true _is_any_true", Operator(statistic, free)),
    ("log_softmax", Operator(along, free, "softmax", modules=(nn.LogSoftmax,))),
    ("softmax", Operator(along, free, "softmax")),
    ("_softmax _log_softmax _safe_softmax", Operator(along, free, "softmax", shape=meta_shapes.softmax)),
    ("cumsum cumprod logcumsumexp cummax cummin median nanmedian mode kthvalue topk sort argmax argmin multinomial "
     "roll rot90", Operator(along, free)),
    ("flip", Operator(along, free, keeps="some")),
    ("_fft_r2c _fft_c2r _fft_c2c", Operator(along, None)),
    # Neighbouring pixels.
    ("avg_pool1d", _spatial(1, "pool", nn.AvgPool1d)),
    ("avg_pool2d", _spatial(2, "pool", nn.AvgPool2d)),
    ("avg_pool3d", _spatial(3, "pool", nn.AvgPool3d)),
    ("adaptive_avg_pool1d", _spatial(1, "pool", nn.AdaptiveAvgPool1d)),
    ("adaptive_avg_pool2d", _spatial(2, "pool", nn.AdaptiveAvgPool2d)),
    ("adaptive_max_pool2d", _spatial(2, "pool", nn.AdaptiveMaxPool2d)),
    ("adaptive_max_pool3d", _spatial(3, "pool", nn.AdaptiveMaxPool3d)),
    ("max_pool2d", _spatial(2, "pool", nn.MaxPool2d)),
    ("max_pool3d", _spatial(3, "pool", nn.MaxPool3d)),
    ("_adaptive_avg_pool2d max_pool2d_with_indices mkldnn_max_pool2d fractional_max_pool2d", _spatial(2, "pool")),
    ("_adaptive_avg_pool3d max_pool3d_with_indices fractional_max_pool3d", _spatial(3, "pool")),
    ("max_pool1d_with_indices adaptive_max_pool1d", Operator(by_trial, free, "pool")),
    ("upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d", _resized(1)),
    ("upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa "
     "_upsample_bicubic2d_aa", _resized(2)),
    ("upsample_nearest3d _upsample_nearest_exact3d upsample_trilinear3d", _resized(3)),
    ("reflection_pad1d replication_pad1d", _spatial(1, "resize")),
    ("reflection_pad2d replication_pad2d max_unpool2d", _spatial(2, "resize")),
    ("reflection_pad3d replication_pad3d max_unpool3d", _spatial(3, "resize")),
    ("grid_sampler_2d grid_sampler_3d", Operator(shapes.grid_sampler, free)),
    # Moved as they are.
    ("clone detach", Operator(shapes.like, free, keeps="all", incidental=True)),
    ("contiguous", Operator(shapes.like, free, keeps="all")),
    ("alias", Operator(shapes.like, free, keeps="all", sized=True)),  # what a slice of everything comes down to
    ("_to_copy", Operator(shapes.like, free, keeps="some")),
    ("view reshape", Operator(shapes.view, free, "reshape", "layout", resize=sizes.reshape)),
    ("_unsafe_view", Operator(shapes.view, free, "reshape", "layout", views=True, resize=sizes.reshape)),
    ("_reshape_alias", Operator(shapes.view, free, "reshape", "layout", views=True)),
    ("flatten", Operator(shapes.view, free, "reshape", "layout", modules=(nn.Flatten,))),
    ("unflatten", Operator(shapes.view, free, "reshape", "layout", resize=sizes.unflatten)),
    ("permute transpose t", Operator(shapes.permute, free, keeps="layout")),
    ("unsqueeze", Operator(shapes.unsqueeze, free, keeps="layout")),
    ("squeeze", Operator(shapes.squeeze, free, keeps="layout")),
    ("expand", Operator(shapes.expand, free, keeps="some", makes=True, sized=True, resize=sizes.expand)),
    ("repeat", Operator(shapes.expand, free, makes=True, sized=True)),
    ("as_strided", Operator(shapes.as_strided, free, sized=True)),
    ("pixel_shuffle", Operator(shapes.pixel_shuffle, free, sized=True)),
    ("pixel_unshuffle", Operator(shapes.pixel_unshuffle, free)),
    ("channel_shuffle native_channel_shuffle", Operator(shapes.channel_shuffle, free, sized=True)),
    ("im2col", Operator(shapes.im2col, free)),
    ("col2im", Operator(shapes.col2im, free)),
    ("view_as_real view_as_complex", Operator(shapes.as_real, free)),
    ("_conj to", _LIKE),
    ("lift_fresh", Operator(shapes.like, free, views=True)),
    # Parts.
    ("select", Operator(parts.select, free, keeps="some", sized=True)),
    ("slice", Operator(parts.slice_, free, "slice", keeps="some", sized=True)),
    ("narrow", Operator(by_trial, None, sized=True)),
    ("split", Operator(parts.split, free, sized=True, resize=sizes.split)),
    ("split_with_sizes", Operator(parts.split, free, sized=True, resize=sizes.split_with_sizes)),
    ("chunk", Operator(parts.split, free, sized=True)),
    ("unsafe_split unsafe_split_with_sizes unsafe_chunk", Operator(parts.split, free, sized=True, views=True)),
    ("unbind", Operator(parts.unbind, free, sized=True)),
    ("cat", Operator(parts.cat, free, shape=meta_shapes.concatenation)),
    ("stack", Operator(parts.stack, free)),
    ("glu", Operator(parts.glu, free)),
    ("constant_pad_nd", Operator(parts.pad, free, sized=True)),
    ("pad", Operator(parts.pad, free)),
    ("unfold", Operator(parts.unfold, free, sized=True)),
    ("index", Operator(parts.index, free, sized=True)),
    ("index_put _unsafe_index_put", Operator(parts.index_put, free)),
    ("index_select index_add index_copy index_fill gather scatter scatter_add scatter_reduce",
     Operator(parts.numbered, free)),
    ("tril triu", Operator(shapes.triangle, free)),
    # Made from nothing.
    ("zeros ones full empty empty_strided empty_permuted rand randn new_zeros new_ones new_full new_empty "
     "new_empty_strided zeros_like ones_like full_like empty_like rand_like randn_like",
     Operator(shapes.made, free, "creation", makes=True)),
    ("arange linspace logspace", Operator(shapes.positions, free, makes=True)),
    ("eye", Operator(shapes.eye, free, makes=True)),
    ("fill zero", _LIKE),
    ("uniform normal", _DRAWN),
    # Of which nothing is known but that they multiply no matrices.
    ("sym_numel sym_size sym_storage_offset sym_stride", Operator(by_trial, free, "size")),
    ("affine_grid_generator block_diag bucketize diag_embed exponential is_same_size item masked_scatter "
     "masked_select meshgrid nonzero one_hot random randperm renorm repeat_interleave resize rms_norm scalar_tensor "
     "searchsorted select_scatter set split_copy split_with_sizes_copy take take_along_dim tril_indices triu_indices "
     "_unique2 unique_dim lift _assert_async _assert_scalar _assert_tensor_metadata _local_scalar_dense "
     "sym_constrain_range sym_constrain_range_for_size", _PLAIN),
)  # fmt: skip
OPERATORS: dict[str, Operator] = {name: operator for names, operator in _ROWS for name in names.split()}

# A tag that an older torch does not have yet is simply absent.
_FREE_TAGS = {getattr(torch.Tag, name, None) for name in ("pointwise", "reduction", "view_copy")} - {None}


@cache
def lookup(func: Any) -> Operator:
    """What is known of an operator by its overload; torch's own tags speak for one of ATen's that has no row."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
        return _UNKNOWN
    row = OPERATORS.get(plain_name(func))
    if row is not None:
        return row
    if torch.Tag.pointwise in func.tags:
        return _ELEMENTWISE
    if torch.Tag.nondeterministic_seeded in func.tags:
        return _DRAWN
    return _PLAIN if func.is_view or not _FREE_TAGS.isdisjoint(func.tags) else _UNKNOWN


def of_kind(*kinds: Kind) -> frozenset[str]:
    """The names of all operators of some kinds."""
    return frozenset(name for name, operator in OPERATORS.items() if operator.kind in kinds)


CONVOLUTIONS = of_kind("convolution")
LAYERS = frozenset(name for name, operator in OPERATORS.items() if operator.is_layer)
