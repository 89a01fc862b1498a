"""Networks as plain data: what is described is built again, computes the same, and holds nothing but plain values."""

import json

import pytest
import torch
from torch import nn

from compressor.loading.arch import find, parse_arch
from compressor.loading.networks import build, describe
from compressor.loading.proportion import UnbuiltError
from compressor.vision import door as vision


def round_trip(module: nn.Module) -> nn.Module:
    tree, tensors = describe(module)
    return build(json.loads(json.dumps(tree, allow_nan=False)), tensors).eval()


def same_tree(one: nn.Module, other: nn.Module) -> bool:
    first, tensors = describe(one)
    second, others = describe(other)
    return first == second and list(tensors) == list(others)


FAMILIES = [
    *("torchvision:alexnet", "torchvision:convnext_tiny", "torchvision:densenet121", "torchvision:efficientnet_b0"),
    *("torchvision:efficientnet_v2_s", "torchvision:inception_v3", "torchvision:maxvit_t", "torchvision:mnasnet0_5"),
    *("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:resnext50_32x4d"),
    *("torchvision:squeezenet1_1", "torchvision:swin_v2_t", "torchvision:vgg11_bn", "torchvision:vit_b_16"),
    *("timm:resnet10t", "timm:vit_tiny_patch16_224", "timm:coat_lite_tiny", "timm:nextvit_small"),
]


def check_family(name: str) -> None:
    with torch.device("meta"):
        module = find(parse_arch(name), named=True).build()
        assert same_tree(module, round_trip(module))


@pytest.mark.parametrize("name", FAMILIES)
def test_published_networks_are_the_same_again(name):
    check_family(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [each for each in vision.classifiers() if not each.startswith("regnet")])
def test_every_network_of_torchvision_is_the_same_again(name):
    check_family(f"torchvision:{name}")


@pytest.mark.parametrize(
    ("name", "size"), [("regnet_y_400mf", 32), ("swin_t", 64), ("googlenet", 64), ("shufflenet_v2_x0_5", 32)]
)
def test_network_built_again_computes_the_same(name, size):
    module = vision.build(name, num_classes=3).eval()
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(round_trip(module)(x), module(x))


class Branches(nn.Sequential):
    """A class of nobody's package."""


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU())


def test_what_is_shared_stays_shared():
    layer = nn.Linear(3, 3)
    module = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 3))
    module[3].weight = layer.weight
    again = round_trip(module)
    assert again[0] is again[2]
    assert again[3].weight is again[0].weight
    assert again[3].bias is not again[0].bias


def test_frozen_weights_and_buffers_outside_the_state_dict_stay_so():
    module = small()
    module[0].weight.requires_grad_(False)
    module[1].register_buffer("scale", torch.ones(2), persistent=False)
    again = round_trip(module)
    assert not again[0].weight.requires_grad
    assert again[1].weight.requires_grad
    assert again[1].scale is module[1].scale
    assert again.state_dict().keys() == module.state_dict().keys()
    assert again[0].bias is None


VALUES = {
    "numbers": (1, 2.5, float("inf"), -(2**40), True, None, "text"),
    "nested": [(1, [2, (3,)]), {"a": (1,), 2: {3}}, frozenset({1})],
    "torch": [torch.Size([1, 2]), torch.float16],
    "names": [nn.BatchNorm2d, nn.functional.relu, nn.functional.gelu],
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_of_attributes_are_the_same_again(value):
    module = nn.ReLU()
    module.extra = value
    assert repr(round_trip(module).extra) == repr(value)


def test_recurrent_layers_find_their_weights_again():
    module = nn.LSTM(2, 3).eval()
    assert torch.equal(round_trip(module)(torch.ones(1, 1, 2))[0], module(torch.ones(1, 1, 2))[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.append(Branches()), "3 is a tests.loading.test_networks.Branches"),
        (lambda m: m[0].__dict__.update(extra=[torch.zeros(2)]), "0.extra.0 is a torch.Tensor"),
        (lambda m: m[0].__dict__.update(extra=print), "0.extra is a builtins.builtin_function"),
        (lambda m: m[0].__dict__.update(extra=Branches), "0.extra is a builtins.type"),
        (lambda m: m[0].__dict__.update(extra=[[]] * 10 + [object()]), "0.extra.10 is a builtins.object"),
        (lambda m: nn.utils.weight_norm(m[0]), "remove_weight_norm"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_is_not_plain_is_named(change, says):
    module = small()
    change(module)
    with pytest.raises(UnbuiltError) as caught:
        describe(module)
    assert says in str(caught.value)


def edited(edit) -> nn.Module:
    described, tensors = describe(small())
    described = json.loads(json.dumps(described))
    edit(described["layers"])
    return build(described, tensors)


def _conv(tree):
    return tree["children"]["0"]


LIES = {
    "function for a class": lambda t: _conv(t).update({"class": "torchvision.models.resnet.resnet18"}),
    "class of another package": lambda t: _conv(t).update({"class": "subprocess.Popen"}),
    "class that is only imported there": lambda t: _conv(t).update({"class": "torch.nn.modules.conv.Module"}),
    "graph module": lambda t: _conv(t).update({"class": "torchvision.models.feature_extraction.DualGraphModule"}),
    "attribute of a class": lambda t: _conv(t).update({"class": "torch.nn.modules.conv.Conv2d.forward"}),
    "no class": lambda t: _conv(t).pop("class"),
    "forward replaced": lambda t: _conv(t)["attributes"].update(forward={"$name": "torch.nn.modules.linear.Linear"}),
    "another method for forward": lambda t: _conv(t).update(forward="_conv_forward"),
    "function of nobody for forward": lambda t: _conv(t).update(forward="forward_"),
    "list for forward": lambda t: _conv(t).update(forward=[]),
    "compiled call": lambda t: _conv(t)["attributes"].update(_compiled_call_impl={"$name": "torch.nn.functional.relu"}),
    "hooks": lambda t: _conv(t)["attributes"].update(_forward_hooks={}),
    "class replaced": lambda t: _conv(t)["attributes"].update(__class__=1),
    "method of the subclass": lambda t: _conv(t)["attributes"].update(_conv_forward=1),
    "code for a layer's name": lambda t: t["children"].update({'a")\nprint("b': _conv(t)}),
    "line break after a name": lambda t: t["children"].update({"a\n": _conv(t)}),
    "letters of another script": lambda t: t["children"].update({"слой": _conv(t)}),
    "keyword for a name": lambda t: t["children"].update({"lambda": _conv(t)}),
    "code for a tensor's name": lambda t: _conv(t)["parameters"].update({"w;print()": True}),
    "tensor that is not there": lambda t: _conv(t)["parameters"].update({"weight2": True}),
    "layer that is not there": lambda t: t["children"].update({"3": {"same": "4"}}),
    "layer in itself": lambda t: t["children"].update({"3": {"same": ""}}),
    "unknown form": lambda t: _conv(t)["attributes"].update(extra={"$call": "os.system"}),
    "partial with a size": lambda t: _conv(t)["attributes"].update(
        extra={"$partial": ["torch.nn.modules.linear.Linear", {"in_features": 10**9}]}
    ),
    "partial of a call": lambda t: _conv(t)["attributes"].update(extra={"$partial": [[], {}]}),
    "function of another package": lambda t: _conv(t)["attributes"].update(extra={"$name": "os.system"}),
    "helper for a function": lambda t: _conv(t)["attributes"].update(
        extra={"$name": "timm.layers.activations.nn.Module"}
    ),
    "class for a member": lambda t: _conv(t)["attributes"].update(
        extra={"$member": ["torch.nn.modules.linear.Linear", 1]}
    ),
    "type of numbers": lambda t: _conv(t)["attributes"].update(extra={"$name": "torch.load"}),
    "lists for dicts": lambda t: t.update(children=[]),
    "attributes missing": lambda t: t.pop("attributes"),
}


@pytest.mark.parametrize("edit", LIES.values(), ids=LIES)
def test_damaged_and_hostile_trees_are_refused_in_one_line(edit):
    with pytest.raises(UnbuiltError) as caught:
        edited(edit)
    assert str(caught.value).isprintable()


def test_layers_that_multiply_are_refused():
    leaf = {"class": "torch.nn.modules.linear.Identity", "attributes": {}, "parameters": {}, "buffers": {}}
    tree = {**leaf, "children": {}}
    path = "0." * 29 + "0"
    for _ in range(30):
        kind = "torch.nn.modules.container.Sequential"
        tree = {**leaf, "class": kind, "children": {"0": tree, "1": {"same": path}}}
        path = path.removesuffix(".0")
    with pytest.raises(UnbuiltError, match="more layers"):
        build({"layers": tree}, {})
