"""Teaching: each phase touches what it should, labels come from what they say, and runs repeat."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from compressor.errors import DataError, ModelError, UsageError
from compressor.exporting.forms import AtDepth
from compressor.report.progress import listening
from compressor.routing import phases
from compressor.routing.learning import all_depths, by_label, fit_gates, image_router, reset_
from compressor.routing.observing import Balance, observe
from compressor.routing.phases import Taught, Teacher, top1_at_labels
from compressor.routing.router import Gates
from compressor.routing.settings import PAPER_TRAINING, RouteSettings, check, every_unit, paper
from compressor.training.data import cross_entropy
from compressor.training.events import BatchEvent, EpochEvent
from compressor.training.settings import TrainSettings
from tests.routing.nets import Residual, Three, images, routed, small_data

SHORT = TrainSettings(epochs=2, batch_size=32, lr=0.02, device="cpu")


def teach(network=Three, training=SHORT, data=None, **settings):
    model = network()
    chosen = RouteSettings(router_epochs=3, **settings)
    net = routed(model, router=chosen.router, heads=chosen.heads)
    return net, Teacher(model, net, data or small_data(), training, chosen).teach()


@pytest.mark.parametrize(("images", "batch"), [(256, 25), (80, 8), (20, 8)])
def test_the_image_router_learns_by_an_eighth_of_its_images_and_by_eight_at_least(monkeypatch, images, batch):
    seen = []
    monkeypatch.setattr(phases, "fit", lambda _router, _data, training, **_: seen.append(training.batch_size))
    data = small_data(images)
    teacher = Teacher(Three(), routed(router="image"), data, SHORT, RouteSettings(router="image"))
    teacher._teach_image_router(Taught(Balance(()), data.validation), data.train, torch.arange(images) % 4)
    assert seen == [batch]  # of the four fifths that it learns from


def test_batches_of_the_image_router_are_told_and_its_epochs_are_not(monkeypatch):
    told, events = [], [BatchEvent(0, 1, 0, 4, 1.0, 0.5, 9.0, 1.0, 0.1), EpochEvent({"epoch": 0}, 1)]
    monkeypatch.setattr(phases, "fit", lambda *_, on_event, **__: [on_event(each) for each in events])
    data, router = small_data(64), routed(router="image")
    teacher = Teacher(Three(), router, data, SHORT, RouteSettings(router="image"), told.append)
    teacher._teach_image_router(Taught(Balance(()), data.validation), data.train, torch.arange(64) % router.depths)
    assert told == events[:1]


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"router": "image"}, {"label_epochs": 1}, {"labels": "paper", "router": "image"},
        {"labels": "paper", "router": "argmax", "heads": "shared"},
        {"labels": "paper", "router": "argmax", "heads": "shared", "skip_set": "paper", "init": "scratch"},
    ],
    ids=lambda settings: ",".join(map(str, settings.values())) or "default",
)  # fmt: skip
def test_every_way_of_teaching_ends_in_a_network_that_routes(settings):
    told = []
    with listening(lambda what, done, total: told.append(what)):
        net, taught = teach(**settings)
    assert "looking at maps of images" in told if "labels" in settings else "trying all depths on images" in told
    assert ("teaching gates, epoch" in told) == (settings.get("router", "gates") == "gates")
    assert not net.training
    assert sum(taught.labels.counts) > 0
    assert taught.rows
    observed = observe(net, small_data().test, small_data())
    assert bool(observed.suffices.isfinite().all())
    assert (taught.router_top1 is None) == (settings.get("router", "gates") == "gates")
    if settings.get("router") == "argmax":  # the network has learnt behind the router, which was used as the paper does
        assert not net.thresholds.any()


@pytest.mark.slow
def test_training_at_all_depths_teaches_every_depth():
    data = small_data(1024)
    before, _ = teach(Residual, replace(SHORT, epochs=0), data)
    after, _ = teach(Residual, replace(SHORT, epochs=6, lr=0.05), data)
    right = [observe(net, data.test, data).right.float().mean(0) for net in (before, after)]
    assert bool((right[1] > right[0] + 0.3).all())


def test_same_seed_teaches_the_same():
    first, second = (teach(Residual)[0].state_dict() for _ in range(2) if torch.manual_seed(5))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_calls_the_network_on_other_images_sees_those():
    net, x, y = routed(heads="own").eval(), images(6), torch.arange(6)

    def mirrored(model, x, y):
        return cross_entropy(lambda x: model(x) + model(x.flip(3)), x, y)

    all_depths(net, mirrored)(net, x, y)
    found = {name: value.grad.clone() for name, value in net.named_parameters() if value.grad is not None}
    net.zero_grad(set_to_none=True)
    ways = [AtDepth(net, depth, router=False) for depth in range(net.depths)]
    losses = [functional.cross_entropy(way(x)[0] + way(x.flip(3))[0], y) for way in ways]
    (losses[-1] + 0.3 * sum(losses[:-1])).backward()
    wanted = {name: value.grad for name, value in net.named_parameters() if value.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient)


def test_gates_learn_which_images_may_leave():
    """A feature that tells all: the gate must find it, and give odds that order the images."""
    source = torch.Generator().manual_seed(0)
    gates = Gates([4, 4], 3)
    seen = tuple(torch.randn(600, width, generator=source) for width in gates.features)
    labels = torch.where(seen[0][:, 2] > 0, 0, torch.where(seen[1][:, 1] > 0, 1, 2))
    fit_gates(gates, seen, labels[:, None] <= torch.arange(2), epochs=20, seed=0)
    for depth in range(2):
        said = gates(depth, seen[depth]).detach()
        leaves = labels <= depth
        assert float(said[leaves].mean()) > float(said[~leaves].mean()) + (2 if depth == 0 else 0.5)


def test_earlier_depths_weigh_as_asked():
    x, y = images(16), torch.arange(16) % 10
    net = routed(heads="own").train()
    gradients = []
    for weight in (1.0, 0.25):
        net.zero_grad(set_to_none=True)
        all_depths(net, early_weight=weight)(net, x, y)
        gradients.append(
            (net.heads[0].linear.weight.grad.clone(), net.parts[-1].get_parameter("7.weight").grad.clone())
        )
    torch.testing.assert_close(gradients[1][0], 0.25 * gradients[0][0])
    torch.testing.assert_close(gradients[1][1], gradients[0][1])


@pytest.mark.parametrize("labels", [[0] * 12 + [1] * 3 + [2] * 1, [0] * 5 + [3] * 11, [2] * 16])
@pytest.mark.parametrize("weighted", [False, True])
def test_rare_labels_weigh_as_much_in_total_as_common_ones(labels, weighted):
    depths = torch.tensor(labels)
    router, x = nn.Linear(6, 4), torch.randn(16, 6)
    loss, right = image_router(depths, 4, weighted=weighted)(router, x, depths)
    each = functional.cross_entropy(router(x), depths, reduction="none").detach()
    wanted = (
        torch.stack([each[depths == label].mean() for label in depths.unique()]).mean() if weighted else each.mean()
    )
    torch.testing.assert_close(loss, wanted)
    assert right == (router(x).argmax(1) == depths).sum()
    given = router.weight.grad.clone()
    router.zero_grad()
    weights = torch.tensor([1 / max(1, labels.count(label)) if weighted else 1.0 for label in range(4)])
    functional.cross_entropy(router(x), depths, weights).backward()
    torch.testing.assert_close(given, router.weight.grad)


def test_gates_need_images():
    with pytest.raises(DataError, match="cannot learn from 3 images"):
        fit_gates(Gates([4], 3), (torch.randn(3, 10),), torch.ones(3, 1, dtype=torch.bool), epochs=1, seed=0)


def test_images_learnt_by_heart_teach_no_router():
    data = small_data(256, 128)
    shuffled = data.validation.labels[torch.randperm(128, generator=torch.Generator().manual_seed(0))]
    strange = replace(data, validation=data.validation.with_labels(shuffled))
    _, taught = teach(Residual, replace(SHORT, epochs=8, lr=0.05), strange)
    assert "half of the validation images" in taught.notes[0]
    assert len(taught.calibration) < len(strange.validation)


def test_one_label_for_all_is_said():
    data = small_data()
    same = replace(data, train=data.train.with_labels(torch.zeros_like(data.train.labels)))
    _, taught = teach(data=replace(same, validation=same.train), training=replace(SHORT, epochs=4, lr=0.05))
    assert "every image has the label 0" in taught.notes[-1]


def test_accuracy_at_labels_against_each_depth():
    net, data = routed().eval(), small_data()
    depths = torch.arange(len(data.test)) % net.depths
    expected = observe(net, data.test, data).right.gather(1, depths[:, None]).float().mean()
    assert top1_at_labels(net, data.test, depths, data) == pytest.approx(float(expected))


def test_scratch_draws_every_layer_anew_and_the_router_stays():
    model = Three()
    net = routed(model)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    reset_(model, 1)
    assert not torch.equal(net.parts[0].body.get_parameter("0.weight"), before["parts.0.body.0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if "router" in name)


def test_scratch_of_bare_weights_is_refused():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.zeros(3))

    with pytest.raises(ModelError, match="kernel belong to no layer.*`init` copy"):
        reset_(Bare(), 0)


def test_by_label_counts_right_answers_of_the_batch():
    net = routed().train()
    loss, right = by_label(net)(net, images(8), torch.stack([torch.arange(8), torch.zeros(8, dtype=torch.int64)], 1))
    assert loss.isfinite()
    assert 0 <= int(right) <= 8


def test_papers_settings_are_the_papers():
    chosen = every_unit(paper({}), 3)
    assert (chosen.labels, chosen.router, chosen.heads, chosen.leave_after) == ("paper", "argmax", "shared", (0, 1, 2))
    assert (PAPER_TRAINING.optimizer, PAPER_TRAINING.epochs) == ("rmsprop", 20)
    check(chosen)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"target_macs": 0.0}, "share such as 0.6"),
        ({"target_macs": 0.5, "threshold": 0.5}, "not both"),
        ({"labels": "paper"}, "`router` image or argmax"),
        ({"skip_set": "paper"}, "`labels` paper"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(settings, line):
    with pytest.raises(UsageError, match=line):
        check(RouteSettings(**settings))
