"""Operators without weights -> operations: a table from ONNX's operator to what reads its attributes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from compressor.exporting.onnx_in.layers import LAYERS
from compressor.exporting.onnx_in.nodes import Built, Node, Untaken, flipped, is_whole, reshaped, resliced
from compressor.loading.onnx_network import FUNCTIONS, Operation


def build(node: Node) -> Built:
    """The layer of a node; made on the meta device but for its weights. Raises Untaken with the reason."""
    maker = BUILDERS.get(node.operator)
    if node.proto.domain not in ("", "ai.onnx"):
        raise Untaken(f"it is of {node.proto.domain}")
    if maker is not None:
        return maker(node)
    if node.operator not in FUNCTIONS:
        raise Untaken("there is nothing in torch for it here")
    return Built(Operation(node.operator), node.inputs)


def _pool(node: Node) -> Built:
    kernel = list(node.attributes["kernel_shape"])
    rank, pads = len(kernel), node.pads(kernel)
    inside = pads[:rank] == pads[rank:] and all(2 * pad <= size for pad, size in zip(pads, kernel))
    window: dict[str, Any] = {
        "kernel_size": kernel, "stride": node.strides(rank), "padding": pads[:rank] if inside else [0] * rank,
        "ceil_mode": bool(node.attributes.get("ceil_mode")),
    }  # fmt: skip
    if node.operator == "MaxPool":
        window["dilation"] = node.dilations(rank)
    else:
        window["count_include_pad"] = bool(node.attributes.get("count_include_pad"))
        if (not inside and not window["count_include_pad"]) or set(node.dilations(rank)) != {1}:
            raise Untaken("its windows have gaps, or padding on one side that does not count")
    return Built(Operation(node.operator, pads=[] if inside else flipped(pads), **window), node.inputs[:1])


def _reshape(node: Node) -> Built:
    """From the value as it was before other reshapes, of which the graph may have flattened everything in one."""
    values, (result, *_) = node.values, node.proto.output
    source = values.views.get(node.inputs[0], node.inputs[0])
    values.views[result] = source
    before, after = values.shapes[source], node.after
    sizes = reshaped(before, after, values.batch)
    return Built(None if before == after else Operation("Reshape", sizes=sizes), [source])


def _expand(node: Node) -> Built:
    before, after = node.shape(), node.after
    added = len(after) - len(before)
    kept = [-1 if dim >= added and size == before[dim - added] else size for dim, size in enumerate(after)]
    grows = kept[0] == node.values.batch > 1
    sources = [node.inputs[0], *([node.values.image] if grows else [])]
    return Built(Operation("Expand", sizes=kept), sources)


def _slice(node: Node) -> Built:
    starts, ends = node.setting("starts", 1), node.setting("ends", 2)
    axes = node.setting("axes", 3) or list(range(len(starts)))
    steps = node.setting("steps", 4) or [1] * len(starts)
    if min(steps) < 1:
        raise Untaken("it goes backwards")
    return Built(resliced(node.shape(), list(zip(axes, starts, ends, steps))), node.inputs[:1])


def _split(node: Node) -> Built:
    dim = node.axis(0)
    sizes = [node.values.shapes[name][dim] if name else 0 for name in node.proto.output]
    whole = node.shape()[dim]
    if len(set(sizes)) == 1 and sizes[0] * len(sizes) == whole:
        return Built(Operation("SplitEqual", parts=len(sizes), dim=dim), node.inputs[:1])
    return Built(Operation("Split", sizes=node.setting("split", 1) or sizes, dim=dim), node.inputs[:1])


def _gather(node: Node) -> Built:
    dim = node.axis(0)
    if node.is_constant(1) and is_whole(node.values.constants[node.proto.input[1]], node.shape()[dim]):
        return _reshape(node)  # as torch.onnx writes as_strided
    if node.is_constant(1) and node.constant(1).ndim == 0:
        at = int(node.constant(1)) % node.shape()[dim]
        return Built(Operation("Select", dim=dim, index=at), node.inputs[:1])
    if node.is_constant(1):
        node.constant(1)
    return Built(Operation("Gather", dim=dim), node.inputs)


def _reduce(node: Node) -> Built:
    rank = len(node.shape())
    axes = node.setting("axes", 1)
    if not axes and node.attributes.get("noop_with_empty_axes"):
        return Built(None, node.inputs[:1])
    dims = [axis % rank for axis in axes or range(rank)]
    keepdim = bool(node.attributes.get("keepdims", 1))
    return Built(Operation(node.operator, dims=dims, keepdim=keepdim), node.inputs[:1])


def _softmax(node: Node) -> Built:
    if node.values.opset >= 13:
        dim = end = node.axis(-1)
    else:
        dim, end = node.axis(1), len(node.shape()) - 1
    return Built(Operation("Softmax", dim=dim, end=end), node.inputs[:1])


def _clip(node: Node) -> Built:
    limits = {key: node.setting(key, place) for key, place in (("min", 1), ("max", 2))}
    found = {key: float(np.ravel(value)[0]) for key, value in limits.items() if value is not None}
    return Built(Operation("Clip", **found) if found else None, node.inputs[:1])


def _pad(node: Node) -> Built:
    rank, mode = len(node.shape()), node.attributes.get("mode", "constant")
    given = node.setting("pads", 1) or node.setting("paddings")
    axes = node.constant(3).tolist() if node.has(3) else list(range(rank))
    pads = [0] * 2 * rank
    for place, axis in enumerate(axes):
        pads[axis % rank], pads[axis % rank + rank] = given[place], given[place + len(axes)]
    torch_pads = flipped(pads)
    least = 0 if mode == "constant" else 2 * max(1, rank - 2)  # other modes want all spatial dimensions
    while len(torch_pads) > least and torch_pads[-2:] == [0, 0]:
        del torch_pads[-2:]
    if mode != "constant":
        how = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
        return Built(Operation("Pad", pad=torch_pads, mode=how), node.inputs[:1])
    value = node.setting("value", 2)
    return Built(Operation("Pad", pad=torch_pads, value=0.0 if value is None else float(np.ravel(value)[0])),
                 node.inputs[:1])  # fmt: skip


def _resize(node: Node) -> Built:
    places = {"Upsample": 1, "Resize": 1 if node.values.opset < 11 else 2}
    scales_at = places[node.operator]
    before, after, rank = node.shape(), node.after, len(node.shape()) - 2
    given = node.attributes.get("scales")
    if given is None and node.has(scales_at) and node.is_constant(scales_at):
        given = node.constant(scales_at).tolist()
    mode, near = node.attributes.get("mode", "nearest"), node.attributes.get("nearest_mode", "round_prefer_floor")
    old = node.operator == "Upsample" or node.values.opset < 11
    where = "asymmetric" if old else node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if before[:2] != after[:2] or rank < 1 or node.attributes.get("antialias"):
        raise Untaken("it resizes other than torch does")
    exact = {("asymmetric", "floor"): "nearest", ("half_pixel", "round_prefer_floor"): "nearest-exact"}
    align: bool | None = None
    if mode == "nearest":
        how = exact.get((where, "floor" if old else near))
        how = "nearest" if how is None and all(a % b == 0 for a, b in zip(after[2:], before[2:])) else how
    else:
        kinds = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "")}
        how, align = kinds[mode][rank - 1], where == "align_corners"
        if where not in ("align_corners", "half_pixel", "pytorch_half_pixel"):
            how = None
    if not how:
        raise Untaken(f"torch has no {mode} resizing at {where} places")
    by_scale = bool(given) and not align and all(abs(a * s - b) < 1e-3 for a, s, b in zip(before, given or (), after))
    sizes: dict[str, Any] = {"scale_factor": given[2:]} if given and by_scale else {"size": list(after[2:])}
    return Built(Operation("Resize", mode=how, align_corners=align, **sizes), node.inputs[:1])


def _cast(node: Node) -> Built:
    import onnx

    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attributes["to"]))
    return Built(Operation("Cast", dtype=kind.name), node.inputs[:1])


def _top(node: Node) -> Built:
    count, largest = int(np.ravel(node.setting("k", 1))[0]), bool(node.attributes.get("largest", 1))
    return Built(Operation("TopK", dim=node.axis(-1), count=count, largest=largest), node.inputs[:1])


def _same(node: Node) -> Built:
    return Built(None, node.inputs[:1])


def _unary(**settings: tuple[str, Any]) -> Callable[[Node], Built]:
    """Of one input, with attributes: torch's argument = (ONNX's attribute, its default)."""

    def made(node: Node) -> Built:
        given = {name: node.attributes.get(key, default) for name, (key, default) in settings.items()}
        return Built(Operation(node.operator, **given), node.inputs[:1])

    return made


def _along(default: int, *, keeps: bool = False) -> Callable[[Node], Built]:
    """Along one dimension, which torch calls `dim`."""

    def made(node: Node) -> Built:
        more = {"keepdim": bool(node.attributes.get("keepdims", 1))} if keeps else {}
        return Built(Operation(node.operator, dim=node.axis(default), **more), node.inputs)

    return made


def _transpose(node: Node) -> Built:
    dims = list(node.attributes.get("perm", reversed(range(len(node.shape())))))
    return Built(Operation("Transpose", dims=dims), node.inputs[:1])


def _tile(node: Node) -> Built:
    return Built(Operation("Tile", repeats=node.constant(1).tolist()), node.inputs[:1])


def _cumulated(node: Node) -> Built:
    if node.attributes.get("exclusive") or node.attributes.get("reverse"):
        raise Untaken("it sums backwards, or without the element itself")
    return Built(Operation("CumSum", dim=int(np.ravel(node.constant(1))[0])), node.inputs[:1])


def _windowed(node: Node) -> Built:
    given = {key: node.attributes.get(key, default) for key, default in (("alpha", 1e-4), ("beta", 0.75))}
    return Built(Operation("LRN", size=int(node.attributes["size"]), k=node.attributes.get("bias", 1.0), **given),
                 node.inputs[:1])  # fmt: skip


BUILDERS: dict[str, Callable[[Node], Built]] = {
    **LAYERS,
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **{name: _reduce for name in FUNCTIONS if name.startswith("Reduce")},
    **dict.fromkeys(("ArgMax", "ArgMin"), _along(0, keeps=True)),
    **dict.fromkeys(("Concat", "GatherElements"), _along(0)),
    "Cast": _cast,
    "Celu": _unary(alpha=("alpha", 1.0)),
    "Clip": _clip,
    "CumSum": _cumulated,
    "DepthToSpace": _unary(block=("blocksize", 1), mode=("mode", "DCR")),
    "Einsum": lambda node: Built(Operation("Einsum", equation=node.attributes["equation"]), node.inputs),
    "Elu": _unary(alpha=("alpha", 1.0)),
    "Expand": _expand,
    "Gather": _gather,
    "Gelu": _unary(approximate=("approximate", "none")),
    "HardSigmoid": _unary(alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "LRN": _windowed,
    "LeakyRelu": _unary(negative_slope=("alpha", 0.01)),
    "LogSoftmax": _along(-1),
    "Pad": _pad,
    "Slice": _slice,
    "Softmax": _softmax,
    "SpaceToDepth": _unary(block=("blocksize", 1)),
    "Split": _split,
    "Tile": _tile,
    "TopK": _top,
    "Transpose": _transpose,
}
