"""The skipping network: equal to the user's at full depth, per-sample depth in a batch, untouched where skipped."""

import json

import pytest
import torch
from torch import nn

from compressor.errors import FileError, ModelError, UsageError
from compressor.exporting.onnx import export_onnx
from compressor.exporting.runtime import OnnxModel
from compressor.routing.learning import by_label
from compressor.routing.network import Layout, Routed, make_routed, rebuild, survey
from compressor.routing.router import sureness
from compressor.routing.settings import RouteSettings
from compressor.routing.units import Skippable
from tests.routing.nets import NETWORKS, SHAPE, Residual, Three, images, routed

ROUTERS = ("gates", "image", "argmax")
WHOLE = 2.0  # a threshold above any probability


def spread_out_(net: Routed) -> None:
    """Thresholds in the middle of what the router says, so that images leave at several depths."""
    x = images(32)
    with torch.no_grad():
        if net.layout.router == "gates":
            scores, maps = net.all_scores(x)
            said = [net.router.suffices(d, maps[d], scores[d]) for d in range(net.depths - 1)]
        else:
            said = list(net.router.suffices(x).unbind(1))
        # Between two images, so that rounding cannot send one the other way.
        net.set_threshold_([float(each.sort().values[15:17].mean()) for each in said])


def test_the_two_largest_probabilities_may_be_equal():
    scores = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0], [3.0, 3.0, 3.0], [-200.0, 0.0, 200.0]])
    probabilities, sure = sureness(scores)
    assert torch.equal(sure[:, :2], probabilities.topk(2).values)


@pytest.mark.parametrize("heads", ["own", "shared"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_full_depth_is_the_users_network(network, heads):
    model = network().eval()
    net = routed(model, heads=heads).eval()
    net.set_threshold_(WHOLE)
    assert torch.equal(net(images()), model(images()))


@pytest.mark.parametrize("heads", ["own", "shared"])
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_batch_gives_each_image_what_it_gets_alone(network, router, heads):
    net = routed(network, router=router, heads=heads).eval()
    spread_out_(net)
    x = images(32)
    with torch.no_grad():
        scores, depths = net.route(x)
        alone = [net.route(image[None]) for image in x]
        every, _ = net.all_scores(x)
    assert depths.tolist() == [int(depth) for _, depth in alone]
    torch.testing.assert_close(scores, torch.cat([each for each, _ in alone]), rtol=1e-4, atol=1e-5)
    wanted = torch.stack(every, 1)[torch.arange(len(x)), depths]
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-5)
    assert router == "argmax" or len(depths.unique()) > 1


@pytest.mark.parametrize("router", ROUTERS)
def test_thresholds_reach_from_the_cheapest_depth_to_the_whole(router):
    net = routed(router=router).eval()
    for threshold, depth in ((-1.0, 0), (WHOLE, net.depths - 1)):
        net.set_threshold_(threshold)
        assert set(net.route(images(16))[1].tolist()) == {depth}


@pytest.mark.parametrize("router", ROUTERS)
def test_image_exactly_at_a_threshold_leaves(router):
    net = routed(router=router).eval()
    x = images(8)
    with torch.no_grad():
        if router == "gates":
            scores, maps = net.all_scores(x)
            said = net.router.suffices(0, maps[0], scores[0])
        else:
            said = net.router.suffices(x)[:, 0]
    for image in range(8):
        net.set_threshold_([float(said[image]), *[WHOLE] * (net.depths - 2)])
        assert torch.equal(net.route(x)[1] == 0, said >= said[image])


def test_higher_threshold_never_leaves_earlier():
    net = routed(Residual).eval()
    before = torch.zeros(16, dtype=torch.int64)
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.1):
        net.set_threshold_(threshold)
        depths = net.route(images(16))[1]
        assert bool((depths >= before).all())
        before = depths


def test_image_router_adds_up_the_labels_with_which_a_depth_suffices():
    router, x = routed(router="image").eval().router, images(16)
    labels = router(x).softmax(1).detach()
    assert labels.shape[1] > 2
    for depth, sure in enumerate(router.suffices(x).unbind(1)):
        torch.testing.assert_close(sure, labels[:, : depth + 1].sum(1))


def test_argmax_router_names_its_most_probable_label_and_goes_on_when_unsure():
    net = routed(router="argmax").eval()
    x = images(16)
    probabilities = net.router(x).softmax(1).detach()
    net.set_threshold_(0.0)
    assert torch.equal(net.route(x)[1], probabilities.argmax(1))
    sure = float(probabilities.amax(1).median())
    net.set_threshold_(sure)
    expected = torch.where(probabilities.amax(1) >= sure, probabilities.argmax(1), net.depths - 1)
    assert torch.equal(net.route(x)[1], expected)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_training_by_label_equals_one_image_at_a_time_in_eval_mode(network):
    net = routed(network).eval()
    x, labels = images(12), torch.arange(12) % net.depths
    scores, _ = net.all_scores(x)
    wanted = torch.stack(scores, 1)[torch.arange(12), labels]
    torch.testing.assert_close(net.scores_at(x, labels), wanted, rtol=1e-4, atol=1e-5)


def parts_run(net: Routed, depth: int) -> set[str]:
    """Names of parameters that an image labelled with this depth uses."""
    scores = net.scores_at(images(4), torch.full((4,), depth))
    used = torch.autograd.grad(scores.sum(), list(net.parameters()), allow_unused=True)
    return {name for (name, _), gradient in zip(net.named_parameters(), used) if gradient is not None}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("network", [Three, Residual])
def test_skipped_layers_stay_bit_identical_under_weight_decay(network, optimizer):
    """The paper: weights of skipped layers are left untouched. Momentum from earlier steps must not move them."""
    net = routed(network, heads="shared", router="image").train()
    made = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}[optimizer]
    more = {"momentum": 0.9} if optimizer != "adam" else {}
    steps = made(net.parameters(), lr=0.1, weight_decay=0.1, **more)
    step = by_label(net)
    x, classes = images(8), torch.arange(8)
    for depth in (net.depths - 1, 0):  # first everything moves and gathers momentum
        steps.zero_grad(set_to_none=True)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        step(net, x, torch.stack([classes, torch.full((8,), depth)], 1))
        steps.step()
    used = parts_run(net, 0)
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name]) != (name in used), name
    skipped = [name for name, _ in net.named_buffers() if ".body." in name and "running" in name][2:]
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in skipped)


def test_each_unit_runs_on_exactly_the_images_that_need_it():
    net = routed(Residual, heads="shared").train()
    seen: dict[int, int] = {}
    units = [part for part in net.parts if isinstance(part, Skippable)]
    for number, unit in enumerate(units):
        unit.register_forward_pre_hook(lambda _, inputs, n=number: seen.update({n: len(inputs[0])}))
    net.scores_at(images(8), torch.tensor([0, 1, 2, 3, 3, 3, 0, 1]))
    assert seen == {0: 8, 1: 6, 2: 4, 3: 3}


def test_single_image_left_in_training_keeps_statistics_finite():
    net = routed(Residual, heads="shared").train()
    net.scores_at(images(4), torch.tensor([0, 0, 0, 3]))
    assert all(bool(value.isfinite().all()) for value in net.state_dict().values())
    assert net.parts[0].training


def test_weights_are_shared_with_the_users_network():
    model = Three()
    net = routed(model)
    with torch.no_grad():
        model[0].weight.zero_()
    names = [name for name, value in net.named_parameters() if value is model[0].weight]
    assert len(names) == 1


@pytest.mark.parametrize("heads", ["own", "shared"])
@pytest.mark.parametrize("places", [(5,), (0,), (0, 1), (2, 1), (5, 1), (0, 0, 2), (-1, 2), (0, 5)])
def test_places_to_leave_that_do_not_exist_are_refused(places, heads):
    chain, found = survey(Three(), SHAPE)
    with pytest.raises(UsageError, match="cannot leave after"):
        make_routed(chain, found.units, RouteSettings(leave_after=places, heads=heads))


@pytest.mark.parametrize("shape", [(1, 2, 8), (1, 3, 3)])
def test_image_too_small_for_the_router_is_refused(shape):
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, *shape))
    chain, found = survey(model, shape)
    with pytest.raises(ModelError, match="4x4 pixels or more.*`router` gates"):
        Routed(chain, found.units, Layout(shape, 3, (0, 1), router="image"))


@pytest.mark.parametrize(
    ("network", "router", "heads"),
    [
        (Three, "argmax", "shared"),
        pytest.param(Residual, "gates", "own", marks=pytest.mark.slow),
    ],
)
def test_exported_graph_routes_every_image_of_a_batch(network, router, heads, tmp_path):
    net = routed(network, router=router, heads=heads).eval()
    spread_out_(net)
    x = images(16)
    export_onnx(net, torch.zeros(1, *SHAPE), tmp_path / "routed.onnx", check_inputs=x)
    model = OnnxModel(tmp_path / "routed.onnx")
    with torch.no_grad():
        for batch in (x, x[:1], x[1:2]):
            torch.testing.assert_close(torch.from_numpy(model(batch.numpy())), net(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        (Three, {"router": "argmax", "heads": "shared"}),
        (Residual, {"leave_after": (1, 3)}),
        (Residual, {"heads": "shared"}),
    ],
    ids=["paper", "two depths", "shared head"],
)
def test_step_makes_the_same_network_again(network, layout):
    net = routed(network, **layout).eval()
    net.set_threshold_(0.4)
    step = json.loads(json.dumps(net.step()))
    again = rebuild(network(), step).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(images()), net(images()))
    assert again.step() == net.step()


@pytest.mark.parametrize(
    "damage",
    [
        {"input_shape": [1, 8]}, {"input_shape": None}, {"classes": "many"}, {"leave_after": [0, 9]},
        {"router": "oracle"}, {"units": ["0", "2"]}, {"heads": None}, {"grids": [4]}, {"grids": [4, 0]},
    ],
    ids=lambda damage: next(iter(damage)),
)  # fmt: skip
def test_damaged_step_is_one_line(damage):
    with pytest.raises(FileError, match="does not fit its network") as error:
        rebuild(Three(), {**routed(heads="own").step(), **damage})
    assert "\n" not in str(error.value)


def test_step_without_its_parts_is_one_line():
    step = routed().step()
    del step["router"]
    with pytest.raises(FileError, match="damaged"):
        rebuild(Three(), step)


def test_step_of_another_architecture_is_one_line():
    with pytest.raises(FileError, match="another architecture"):
        rebuild(Residual(), routed().step())
