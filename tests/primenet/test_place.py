"""Where a user's network may be cut, what either stage costs, and the network that comes out."""

import copy

import pytest
import torch
from torch import nn

from compressor.errors import ModelError, UsageError
from compressor.exporting.onnx import export_onnx
from compressor.graph import capture
from compressor.primenet.place import Early
from compressor.primenet.settings import PrimeNetSettings
from compressor.profiling.costs import profile
from tests.primenet.nets import CLASSES, IMAGE, Residual, plain

EXAMPLE = torch.zeros(1, *IMAGE)


def early(model: nn.Module, **settings) -> Early:
    return Early(model.eval(), IMAGE, CLASSES, PrimeNetSettings(reduced=3, **settings))


def test_places_lie_in_front_of_convolutions():
    assert [(place.until, place.cut.shape) for place in early(plain()).places] == [("2", (16, 8, 8)), ("5", (16, 4, 4))]
    assert [place.until for place in early(Residual()).places] == ["", ""]  # made by functions, outside any module


def test_costs_are_those_of_a_profile():
    found = early(plain())
    first, second = found.places
    assert first.removed == 64 * 25 * 2 * 16
    assert second.removed == first.removed + 64 * 25 * 16 * 16
    for place in (first, second):
        for scale in (3, 5, 7):
            network = found.replaced(place.cut)
            network.stage.block.settle_((scale,))
            assert place.block[scale] == profile(network.stage, EXAMPLE).macs


def test_chooses_the_earliest_place_that_pays_twice():
    found = early(plain())
    assert [place.pays for place in found.places] == [place.removed >= 2 * place.block[5] for place in found.places]
    assert found.choose().until == "5"


def test_a_place_has_the_name_of_the_outermost_module_that_ends_there():
    layers = list(plain())
    nested = nn.Sequential(
        nn.Sequential(nn.Sequential(*layers[:2]), layers[2]), nn.Sequential(*layers[3:6]), *layers[6:]
    )
    assert [place.until for place in early(nested).places] == ["0", "1"]


def test_refuses_where_it_pays_nowhere_and_says_what_would_help():
    found = Early(plain(4).eval(), IMAGE, CLASSES, PrimeNetSettings(reduced=32))
    with pytest.raises(ModelError, match=r"does not pay .* until 5, .* `until` .* `fit` stride"):
        found.choose()


def test_a_stride_makes_the_block_cheaper():
    pooled, strided = (early(plain(), fit=fit).places[1].block for fit in ("pool", "stride"))
    assert all(strided[scale] < pooled[scale] for scale in pooled)


def test_finds_a_stage_by_the_module_that_ends_there():
    found = early(plain())
    assert found.find("2").shape == (16, 8, 8)
    assert found.find("5").shape == (16, 4, 4)
    assert found.find("0").shape == (16, 8, 8)  # in front of a batch norm: nobody's first choice, but one tensor
    assert early(Residual()).find("stem").shape == (6, 8, 8)


@pytest.mark.parametrize("name", ["module.0", "0.weight", "_orig_mod.module.0.bias"])
def test_finds_a_stage_by_a_parameter_or_with_the_prefix_of_a_wrapper(name):
    found = early(plain())
    assert found.find(name).index == found.find("0").index


def test_names_the_nearest_module():
    with pytest.raises(UsageError, match=r"no such module \(did you mean one\?\); it may end at one, two"):
        early(Functional()).find("onee")


@pytest.mark.parametrize("until", ["features.6", ""])
def test_refuses_a_stage_that_does_not_exist(until):
    with pytest.raises(UsageError, match=r"no such module; it may end at 2, 5"):
        early(plain()).find(until)


def test_refuses_a_stage_inside_a_residual_block():
    net = nn.Sequential(plain()[0], Wrapped(), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten(), nn.Linear(144, CLASSES))
    with pytest.raises(UsageError, match=r"`until` 1.inner: several tensors cross where it ends; it may end at 0, 2"):
        early(net).find("1.inner")
    assert early(net).find("1").shape == (16, 8, 8)


class Functional(nn.Module):
    """Functions stand between its modules, so no module ends right in front of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.two(self.one(x).relu()).relu().mean((2, 3)))


def test_names_places_where_functions_stand_between_modules():
    found = early(Functional())
    with pytest.raises(UsageError, match="no such module; it may end at one, two$"):
        found.find("nowhere")
    assert found.find("one").shape[0] == 8
    with pytest.raises(ModelError, match="at best, up to 8x"):
        found.choose()


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        return x + self.inner(x)


def test_refuses_a_stage_that_is_no_feature_map():
    with pytest.raises(UsageError, match="cannot make what leaves there"):
        early(plain()).find("8")


def test_refuses_a_network_that_does_not_begin_with_a_convolution():
    with pytest.raises(ModelError, match="begins with linear"):
        early(nn.Sequential(nn.Flatten(), nn.Linear(128, CLASSES)))
    with pytest.raises(ModelError, match="channels, height, width"):
        Early(nn.Linear(8, CLASSES), (8,), CLASSES, PrimeNetSettings())


@pytest.mark.parametrize("fit", ["pool", "stride"])
def test_the_rest_is_the_users_own_layers_and_computes_the_same(fit):
    model = plain().eval()
    found = early(model, fit=fit)
    network = found.replaced(found.find("5"))
    assert network.rest.get_submodule("6") is model[6] and network.rest.get_submodule("9") is model[9]
    maps = torch.randn(3, 16, 4, 4)
    assert torch.equal(network.rest(maps.clone()), model[6:](maps.clone()))
    assert network(torch.randn(3, *IMAGE)).shape == (3, CLASSES)
    names = {name.removeprefix("rest.") for name in network.state_dict() if name.startswith("rest.")}
    assert names == {name for name in model.state_dict() if name.split(".")[0] in "69"}


@pytest.mark.parametrize("kept", [(5,), (3, 5, 7)], ids=["static", "entropy"])
def test_result_profiles_exports_and_shows_its_channels(kept, tmp_path):
    found = early(plain())
    network = found.replaced(found.find("5"))
    network.stage.block.settle_(kept)
    cost = profile(network, EXAMPLE)
    assert not cost.uncounted and cost.macs == sum(layer.macs for layer in cost.layers)
    check = export_onnx(network, EXAMPLE, tmp_path / "model.onnx", check_inputs=torch.randn(5, *IMAGE))
    assert check.max_rel < 1e-4
    channels = capture(network, EXAMPLE)
    free = {group.name: len(group.ids) for group in channels.groups if group.frozen is None}
    capsules = {f"stage.block.capsules.{scale}.reduce": 3 for scale in kept}
    assert free == {**capsules, f"stage.block.capsules.{kept[0]}.conv": 8, "stage.projection.1": 8, "rest.6": 6}
    frozen = {name: why for name, why in channels.frozen.items() if "heads" in name}
    assert len(frozen) == (3 if len(kept) == 3 else 0) and all("runs over channels" in why for why in frozen.values())


def test_the_exported_static_file_holds_one_capsule_and_no_classifier(tmp_path):
    import onnx

    found = early(plain())
    network = found.replaced(found.find("5"))
    network.stage.block.settle_((3,))
    export_onnx(network, EXAMPLE, tmp_path / "model.onnx")
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    kinds = [node.op_type for node in nodes]
    # reduction, 3x3, projection, the user's last convolution; one linear layer; nothing that compares entropies
    assert kinds.count("Conv") == 4 and kinds.count("Gemm") + kinds.count("MatMul") == 1
    assert not {"LogSoftmax", "Softmax", "Where", "Less"} & set(kinds)


def test_pruning_after_it_keeps_the_network_whole():
    from compressor.runs.oneshot import prune_

    for kept in ((3,), (3, 5, 7)):
        found = early(plain())
        network = found.replaced(found.find("5"))
        network.stage.block.settle_(kept)
        report = prune_(network, EXAMPLE, "l1", 0.5)
        assert report.after.macs < report.before.macs
        assert network(torch.randn(2, *IMAGE)).shape == (2, CLASSES)
        assert {capsule.conv.out_channels for capsule in network.stage.block.capsules.values()} == {4}


def test_a_copy_of_the_result_is_independent():
    found = early(plain())
    network = found.replaced(found.find("5"))
    other = copy.deepcopy(network)
    other.rest.get_submodule("9").weight.data.zero_()
    assert network.rest.get_submodule("9").weight.any()


class Twice(nn.Module):
    """Runs one activation in front of a residual branch, and again inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.one(x))
        return self.last((x + self.act(self.two(x))).mean((2, 3)))


def test_refuses_a_stage_whose_module_goes_on_behind_the_last_cut_in_it():
    with pytest.raises(UsageError, match="`until` act: several tensors cross where it ends"):
        early(Twice()).find("act")
    assert early(Twice()).find("one").shape[0] == 8
