"""`compressor.Pruner` in plain loops: every method, resuming, wrappers, and that the command line does the same."""

import copy
import io
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import compressor
from compressor import Pruner
from compressor.errors import ModelError, UsageError
from compressor.graph import capture
from compressor.pruning.adapnet import boundary, prune, tables
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.settings import PruneSettings
from compressor.runs.apply import apply_plan_
from compressor.runs.goals import Guard
from compressor.runs.jobs import AdaptJob
from compressor.runs.phases import Phases
from compressor.runs.run import run
from compressor.runs.settings import GoalSettings, ModelSettings, OutputSettings
from compressor.surgery import Insert, Merge, Plan, Prune, operate_
from compressor.surgery.renumber import Renumbering
from compressor.training.data import open_data
from compressor.training.schedule import lr_at, make_optimizer, set_lr_
from compressor.training.settings import TrainSettings
from tests.equivalence import same_map
from tests.pruning.adapnet.running import digits, small_net

ADAPNET = AdapNetSettings(lsep=6, max_epochs=2, dict_size=96, beta_start=0.3, freeze=False)
SAMPLE = "sample_models/digits_cnn.safetensors"
EXAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """Filters are judged by fewer maps than usual."""
    with pytest.MonkeyPatch.context() as patched:
        for room in (boundary, tables, prune):
            patched.setattr(room, "ROW_MIN", 20)
        yield


class Loop:
    """A user's own: a network, an optimizer with momentum, batches of digits in a fixed order."""

    def __init__(self, seed=0, optimizer=torch.optim.SGD, **keywords):
        torch.manual_seed(seed)
        self.model = small_net(8)
        keywords = keywords or {"lr": 0.05, "momentum": 0.9}
        self.optimizer = optimizer(self.model.parameters(), **keywords)
        images, labels = digits()
        self.batches = [(images[i : i + 48], labels[i : i + 48]) for i in range(0, 480, 48)]
        self.forward = self.model
        self.at = 0

    def pruner(self, *arguments, **keywords):
        return Pruner(self.forward, EXAMPLE, self.optimizer, *arguments, **keywords)

    def train(self, steps, pruner=None, after=lambda: None):
        self.model.train()
        for _ in range(steps):
            x, y = self.batches[self.at % len(self.batches)]
            loss = functional.cross_entropy(self.forward(x), y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if pruner is not None:
                pruner.step()
            self.at += 1
            after()


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def fits(loop):
    """The optimizer's state has its parameters' shapes, and the map is the one that a fresh look finds."""
    for parameter, state in loop.optimizer.state.items():
        assert all(value.shape == parameter.shape for value in state.values() if torch.is_tensor(value) and value.ndim)
    return sum(p.numel() for p in loop.model.parameters())


def by_loss(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def own(model, channels, given):
    return {group.name: range(group.size) for group in channels.free}


METHODS = {
    "l1": ("l1", {"target_macs": 0.5}),
    "ratio": ("l2", {"ratio": 0.5}),
    "megabytes": ("fpgm", {"target_mb": 0.005}),
    "gradients of the loop": ("taylor", {"target_macs": 0.5}),
    "auto": ("auto", {"target_macs": 0.5, "data": True}),
    "gradients of a loss": ("taylor", {"target_macs": 0.5, "data": True, "loss": by_loss}),
    "settings": (PruneSettings(method="bn-scale", target_macs=0.5, min_channels=3), {}),
    "own": (own, {"target_macs": 0.5}),
}


@pytest.mark.parametrize(("method", "keywords"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("steps", [1, 6])
def test_every_criterion_prunes_gradually_or_at_once(method, keywords, steps):
    loop = Loop()
    keywords = keywords | ({"data": loop.batches[:3]} if "data" in keywords else {})
    parameters = [id(parameter) for parameter in loop.model.parameters()]
    pruner = loop.pruner(method, steps=steps, every=2 if steps > 1 else None, round_to=1, **keywords)
    sizes = [fits(loop)]
    loop.train(steps, pruner, lambda: sizes.append(fits(loop)))
    report = pruner.finish()
    rounds = 1 if steps == 1 else 3
    assert len(set(sizes)) == 1 + rounds and sizes == sorted(sizes, reverse=True)
    assert {row["period"] for row in report.edits} == set(range(rounds)) and not report.refused
    assert [id(parameter) for parameter in loop.model.parameters()] == parameters
    if report.settings.get("target_macs"):
        assert 0.42 < report.after.macs / report.before.macs <= 0.51
    assert report.after.macs == compressor.profile(loop.model, EXAMPLE).macs
    loop.train(2)  # goes on without


def test_channels_go_fast_at_first_and_slowly_at_the_end():
    loop = Loop()
    pruner = loop.pruner("l1", target_macs=0.3, steps=8, every=2, round_to=1)
    loop.train(8, pruner)
    report = pruner.finish()
    left = [row["macs"] / report.before.macs for row in report.rows]
    assert left == pytest.approx([1 - 0.7 * (1 - (1 - r / 4) ** 3) for r in (1, 2, 3, 4)], abs=0.03)


def test_least_squares_keeps_more_of_what_the_network_does():
    losses = []
    for data in (None, True):
        loop = Loop()
        loop.train(60)
        given = {} if data is None else {"data": loop.batches}
        pruner = loop.pruner(
            PruneSettings(method="l1", allocate="uniform"), target_macs=0.4, steps=1, round_to=1, **given
        )
        pruner.step()
        loop.model.eval()
        x, y = loop.batches[0]
        losses.append(functional.cross_entropy(loop.model(x), y).item())
    assert losses[1] < 0.5 * losses[0]


def test_adapnet_prunes_merges_and_inserts_and_hooks_are_there_only_while_a_batch_is_recorded():
    loop = Loop()
    pruner = loop.pruner(replace(ADAPNET, lsep=10, max_width=1.5), steps=80, classes=10)
    hooked = []
    loop.train(80, pruner, lambda: hooked.append(any(m._forward_hooks for m in loop.model.modules())))
    report = pruner.finish()
    assert set(Counter(edit["kind"] for edit in report.edits)) == {"prune", "merge", "insert"}
    assert same_map(pruner._course.channels, capture(loop.model, EXAMPLE)) is None
    assert sum(hooked) == 8 * 8 - 1 and not hooked[-1]  # the first batch was over before it was looked at
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loop.model.modules())
    assert len(report.rows) == 8 and report.sections[0].galleries


def test_adapnet_needs_no_classes_and_stops_at_a_target_with_rounded_widths():
    loop = Loop()
    settings = replace(ADAPNET, lsep=50)
    pruner = loop.pruner(settings, target_macs=0.8, steps=120, lsep=6, round_to=4)
    loop.train(120, pruner)
    report = pruner.finish()
    assert report.after.macs <= 0.8 * report.before.macs and not report.refused
    changed = [layer for layer in report.layers if layer.after != layer.before]
    assert changed and all(layer.after % 4 == 0 for layer in changed)


@pytest.mark.slow
def test_the_command_line_and_a_plain_loop_make_the_same_network(tmp_path):
    """Same settings, start weights and batches: the weights are equal, bit for bit."""
    settings = replace(ADAPNET, startup_epochs=0, finetune_epochs=0, batch_size=64, lr=0.02, lr_trained_epoch=0, lsep=8)
    training = TrainSettings(channels_last=False, evaluate_every=0)
    job = AdaptJob(
        ModelSettings(SAMPLE), "digits", OutputSettings(str(tmp_path / "run"), latency=False, onnx=False),
        goals=GoalSettings(target_macs=0.7, round_to=2), training=training, adapnet=settings,
    )  # fmt: skip
    report = run(job)
    theirs = compressor.load(tmp_path / "run" / "model.safetensors")

    model, data = compressor.load(SAMPLE), open_data("digits")
    phase = Phases.of(settings, training, trained=True).of_phase("periods")
    optimizer = make_optimizer(model, phase)
    steps = data.steps(phase)
    pruner = Pruner(model, EXAMPLE[:1], optimizer, settings, target_macs=0.7, round_to=2, classes=10, steps=2 * steps)
    model.train()
    for epoch in range(2):
        for batch, (x, y) in enumerate(data.training(phase, epoch, 0, torch.device("cpu"))):
            set_lr_(optimizer, lr_at(phase, epoch + (batch + 0.5) / steps))
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            pruner.step()
        if pruner.closed:
            break
    ours = pruner.finish()
    assert ours.edits == report.edits and {edit["kind"] for edit in ours.edits} >= {"prune", "merge"}
    assert same(model, theirs)


def test_what_reads_a_filter_that_adapnet_takes_is_refitted_as_one_shot_pruning_does():
    """A plan with a merge, of which one filter goes; then filters come."""
    loop = Loop()
    loop.train(12)
    channels = capture(loop.model, EXAMPLE)
    ids = channels.group("3").ids.tolist()
    follower, alone = copy.deepcopy(loop.model), copy.deepcopy(loop.model)
    settings = replace(ADAPNET, reconstruct=True)
    pruner = loop.pruner(settings, steps=60, data=loop.batches[:3], followers=[follower])
    periods = pruner._course
    less = Merge("3", ids[0], ids[1], "alike"), Prune("3", (ids[4],), "t")
    grown = Insert("0", int(channels.group("0").ids[2]), "more")
    assert periods._carry_out(Plan((*less, grown)), loop.optimizer)

    inputs = [x for x, _ in loop.batches[:3]]
    apply_plan_(alone, Plan(less), channels, EXAMPLE, inputs=inputs)
    operate_(alone, Plan((grown,)), Renumbering.of(Plan(less), channels).apply(channels))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(loop.model.state_dict()[name], value, msg=name)
        torch.testing.assert_close(follower.state_dict()[name], value, msg=name)
    assert periods.channels.group("3").size == channels.group("3").size - 2

    assert periods._carry_out(Plan((Prune("3", (ids[5],), "t"),)), loop.optimizer)
    (said,) = periods.findings()["notes"]
    assert "refitted by least squares on 144 images" in said and "the last of 2 changes of structure" in said


def test_a_target_that_was_just_missed_is_met_by_rounding():
    """No width goes up then, although the network would cost less than it does now."""
    loop = Loop()
    channels = capture(loop.model, EXAMPLE)
    ids = {name: channels.group(name).ids.tolist() for name in ("7", "10")}
    gone = {"7": ids["7"][:1], "10": ids["10"][:2]}  # 15 and 14 of 16 are left; 16 and 12 would cost less than that
    now, below = channels.macs([*gone["7"], *gone["10"]]), channels.macs([*ids["7"][:4], *ids["10"][:4]])
    pruner = loop.pruner(ADAPNET, steps=60, round_to=4, target_macs=float(now + below) / 2)
    periods = pruner._course
    assert periods._carry_out(Plan(tuple(Prune(name, tuple(ids), "t") for name, ids in gone.items())), loop.optimizer)
    assert not periods.target.met(periods.channels)
    periods.round(loop.optimizer)
    assert periods.channels.macs() == below and periods.target.met(periods.channels)


class Undecided(nn.Module):
    """The last part depends on data, so that no pass is like another: nothing can be refitted."""

    def __init__(self):
        super().__init__()
        self.net = small_net(8)

    def forward(self, x):
        y = self.net[:-1](x)
        return self.net[-1](y) if float(y.detach().sum()) % 2e-3 < 1e-3 else self.net[-1](y * 1.0)


def test_a_merge_of_equal_filters_changes_nothing_where_nothing_can_be_refitted():
    loop = Loop()
    loop.forward = loop.model = Undecided()
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.05)
    model, x = loop.model.eval(), loop.batches[0][0]
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith(("net.3", "net.4")) and tensor.ndim:
                tensor[1] = tensor[0]
    channels = capture(model, EXAMPLE)
    before, ids = model(x), channels.group("net.3").ids.tolist()
    pruner = loop.pruner(replace(ADAPNET, reconstruct=True), steps=60, data=loop.batches[:3])
    assert pruner._course._carry_out(Plan((Merge("net.3", ids[0], ids[1], "equal"),)), loop.optimizer)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_a_plan_that_is_taken_back_is_not_said_to_be_refitted():
    loop = Loop()
    pruner = loop.pruner(replace(ADAPNET, reconstruct=True), steps=60, data=loop.batches[:3])
    periods = pruner._course
    periods.guard = Guard(0.1, lambda: 0.5, before=0.9)
    ids = periods.channels.group("3").ids.tolist()
    assert not periods._carry_out(Plan((Prune("3", (ids[0],), "t"),)), loop.optimizer)
    assert periods.findings()["notes"] == () and periods.refused and loop.model[3].out_channels == 8


CONTENT = [
    (replace(ADAPNET, freeze=True, reconstruct=True), {"steps": 60, "data": True}, 33),
    ("taylor", {"steps": 12, "every": 4, "target_macs": 0.5}, 7),
    ("obs", {"steps": 12, "every": 4, "target_macs": 0.5, "data": True}, 8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "keywords", "at"), CONTENT, ids=["adapnet", "taylor", "obs"])
def test_a_resumed_loop_makes_the_same_network_bit_for_bit(method, keywords, at):
    def started():
        loop = Loop(optimizer=torch.optim.AdamW, lr=0.01)
        given = keywords | ({"data": loop.batches[:3]} if "data" in keywords else {})
        follower = copy.deepcopy(loop.model)
        return loop, follower, loop.pruner(method, round_to=1, followers=[follower], **given)

    whole, followed, pruner = started()
    whole.train(keywords["steps"] + 3, pruner)
    report = pruner.finish()
    assert len({row["period"] for row in report.edits}) > 1

    broken, follower, pruner = started()
    broken.train(at, pruner)
    file = io.BytesIO()
    states = {"model": broken.model, "optimizer": broken.optimizer, "pruner": pruner, "ema": follower}
    torch.save({name: each.state_dict() for name, each in states.items()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, follower, pruner = started()
    pruner.load_state_dict(saved["pruner"])
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    follower.load_state_dict(saved["ema"])
    resumed.at = at
    resumed.train(keywords["steps"] + 3 - at, pruner)
    assert pruner.finish().edits == report.edits
    assert same(resumed.model, whole.model) and same(follower, followed)


@pytest.mark.parametrize("method", [pytest.param("l1", marks=pytest.mark.slow), "adapnet"])
def test_averages_schedulers_and_hooks_go_on(method):
    loop = Loop()
    ema = AveragedModel(loop.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, 60)
    seen = []
    loop.model[0].weight.register_hook(lambda gradient: seen.append(gradient.shape == loop.model[0].weight.shape))
    loop.model[0].weight.mark = "mine"
    chosen = {"l1": PruneSettings("l1", target_macs=0.5), "adapnet": replace(ADAPNET, freeze=True)}[method]
    pruner = loop.pruner(chosen, steps=48, followers=[ema.module])

    def after():
        ema.update_parameters(loop.model)
        schedule.step()

    loop.train(48, pruner, after)
    assert loop.model[0].weight.mark == "mine" and seen == [True] * 48
    assert [p.shape for p in ema.module.parameters()] == [p.shape for p in loop.model.parameters()]
    assert pruner.finish().after.params < 4370
    ema.module.eval()
    assert torch.isfinite(ema.module(EXAMPLE)).all()


def test_gradients_may_be_accumulated_and_scaled():
    loop = Loop()
    scaler = torch.amp.GradScaler("cpu")
    pruner = loop.pruner("taylor", target_macs=0.5, steps=6, every=3, round_to=1)
    for x, y in loop.batches[:6]:
        for part in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(loop.model(x[part::2]), y[part::2])
            scaler.scale(loss / 2).backward()
        scaler.step(loop.optimizer)
        scaler.update()
        pruner.step()
        loop.optimizer.zero_grad()
    assert pruner.finish().after.macs < 0.55 * pruner._before.macs


@pytest.mark.slow
@pytest.mark.parametrize("method", ["l1", "adapnet"])
def test_a_compiled_model_is_the_plain_one(method):
    adapnet = AdapNetSettings(lsep=12, max_epochs=1, dict_size=96, freeze=False)
    asked, keywords = ("l1", {"target_macs": 0.5}) if method == "l1" else (adapnet, {})
    states, passes = [], []
    for compiled in (False, True):
        loop = Loop()
        if compiled:
            loop.forward = torch.compile(loop.model, backend=lambda graph, _: lambda *a: passes.append(1) or graph(*a))
        pruner = loop.pruner(asked, steps=36, **keywords)
        loop.train(36, pruner)
        states.append((loop.model.state_dict(), pruner.finish().edits))
    assert states[0][1] == states[1][1] and states[0][1]
    assert all(torch.allclose(states[0][0][name], value, atol=1e-5) for name, value in states[1][0].items())
    assert len(passes) == (36 if method == "l1" else 36 - 24)  # recorded batches run as written


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["taylor", pytest.param("adapnet", marks=pytest.mark.slow)])
def test_a_wrapper_that_adds_up_gradients_gets_new_buckets(method, group):
    keywords = {"target_macs": 0.5} if method == "taylor" else {}
    asked = AdapNetSettings(lsep=6, max_epochs=1, dict_size=96, freeze=False) if method == "adapnet" else method
    loop, alone = Loop(), Loop()
    loop.forward = nn.parallel.DistributedDataParallel(loop.model)
    pruners = [each.pruner(asked, steps=30, **keywords) for each in (loop, alone)]
    for each, pruner in zip((loop, alone), pruners):
        each.train(34, pruner)
    assert pruners[0].finish().edits == pruners[1].finish().edits and same(loop.model, alone.model)
    assert sum(p.numel() for p in loop.model.parameters()) < 4370


def test_a_live_graph_is_no_obstacle_and_says_so_when_it_is_used():
    loop = Loop()
    pruner = loop.pruner("l1", target_macs=0.5, steps=1)
    x, y = loop.batches[0]
    kept = functional.cross_entropy(loop.model(x), y)
    kept.backward(retain_graph=True)
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    assert pruner.step()
    before = copy.deepcopy(loop.model.state_dict())
    with pytest.raises((ModelError, RuntimeError), match="before the layers were edited|modified by an inplace"):
        kept.backward()
    loop.optimizer.zero_grad()
    loop.train(2)
    assert all(before[name].shape == value.shape for name, value in loop.model.state_dict().items())


WRONG = {
    "steps": (("l1",), {"steps": 0}, "`steps` is 0, and has to be a whole number from 1"),
    "negative": (("l1",), {"steps": -5}, "`steps` is -5"),
    "no steps": (("adapnet",), {}, "`steps` is missing"),
    "few steps": (("adapnet",), {"steps": 60, "preset": "paper"}, "of 150 steps fits 0 times .* `lsep` 20 or less"),
    "every": (("l1",), {"steps": 3, "every": 5}, "`every` is 5, and there are only 3"),
    "every of adapnet": (("adapnet",), {"steps": 600, "every": 5}, "`every` is nothing that adapnet looks at"),
    "no data to refit by": (("adapnet",), {"steps": 600, "reconstruct": True}, "`data` is missing: `reconstruct`"),
    "no settings to refit by": ((ADAPNET,), {"steps": 600, "data": [EXAMPLE]}, "`reconstruct` .* is off"),
    "two ways to say how": ((ADAPNET,), {"steps": 600, "preset": "short"}, "`preset` and an object of settings both"),
    "ratio of adapnet": (("adapnet",), {"steps": 600, "ratio": 0.5}, "`ratio` is nothing that adapnet looks at"),
    "classes": (("l1",), {"classes": 10}, "`classes` is nothing that a criterion looks at"),
    "data": (("obs",), {}, "obs needs data"),
    "data to allocate": (("l1",), {"allocate": "error"}, "`data` is missing"),
    "loss": (("taylor",), {"loss": by_loss}, "with `data` to take it on"),
    "no loader": (("l1",), {"data": 3}, "data is a int: give a loader"),
    "empty": (("l1",), {"data": []}, "data holds no batch"),
    "other data": (("l1",), {"data": [torch.zeros(3)]}, "a batch of data holds float32 3, the network takes"),
    "no tensors": (("l1",), {"data": [object()]}, "a batch of data holds a object without tensors, the network takes"),
    "batches without images": (("l1",), {"data": [torch.zeros(0, 1, 8, 8)] * 2}, "data holds no batch"),
    "ended": (("l1",), {"data": iter(())}, "data holds no batch"),
    "other channels": (
        ("l1",), {"data": [torch.rand(4, 1, 8, 8), torch.rand(4, 2, 8, 8)]},
        "a batch of data holds float32 4x2x8x8, which the network does not take: Given groups=1",
    ),
    "method": (("l3",), {}, "there is no method 'l3'"),
    "name": (("l1",), {"target_mac": 0.5}, "target_mac"),
    "name of adapnet": (("adapnet",), {"steps": 600, "lsepp": 5}, "lsepp"),
    "preset": (("adapnet",), {"steps": 600, "preset": "fast"}, "there is no preset 'fast'"),
    "target": (("l1",), {"target_macs": 1e12}, "no more than the target"),
    "out of reach": (("l1",), {"target_macs": 1e-9}, "cannot be reached"),
    "target of adapnet": (("adapnet",), {"steps": 600, "lsep": 5, "target_macs": 1e12}, "of `target_macs`: ask"),
    "keep": (("l1",), {"keep": "layer9"}, "layer9"),
    "keep of another type": (("l1",), {"keep": None}, "keep is None, and has to be a list of texts"),
    "follower": (("l1",), {"followers": [small_net(9)]}, r"followers\[0\] is no copy of the model"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "keywords", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_go_is_one_line_and_changes_nothing(arguments, keywords, message):
    loop = Loop()
    before = copy.deepcopy(loop.model.state_dict())
    with pytest.raises(compressor.CompressorError, match=message) as error:
        loop.pruner(*arguments, **keywords)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in loop.model.state_dict().items())
    assert not any(module._forward_hooks for module in loop.model.modules())


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (lambda: Loop().optimizer, "the optimizer holds no parameter"),
        (lambda: None, "optimizer is a NoneType, not a torch.optim"),
        (lambda: [Loop().optimizer], "optimizer is a list, not a torch.optim"),
    ],
)
def test_an_optimizer_of_another_model_is_refused(optimizer, said):
    with pytest.raises(UsageError, match=said):
        Pruner(Loop().model, EXAMPLE, optimizer(), "l1")


def test_what_is_no_module_is_refused():
    with pytest.raises(UsageError, match="a torch.nn.Module is needed, not function"):
        Pruner(by_loss, EXAMPLE, Loop().optimizer, "l1")


def test_a_model_that_shares_its_parameters_is_no_follower():
    loop = Loop()
    with pytest.raises(UsageError, match="shares parameters with the model"):
        loop.pruner("l1", followers=[loop.model])


@pytest.mark.parametrize("what", ["module", "parameter", "further module", "parametrization"])
def test_a_model_that_was_swapped_is_noticed_at_the_next_step(what):
    loop = Loop()
    pruner = loop.pruner("l1", steps=10, target_macs=0.5)
    loop.train(1, pruner)
    if what == "module":
        loop.model[3] = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    elif what == "parameter":
        loop.model[3].weight = nn.Parameter(loop.model[3].weight.detach().clone())
    elif what == "further module":
        loop.model[3].extra = nn.Conv2d(8, 8, 1)
    else:
        nn.utils.parametrizations.weight_norm(loop.model[3])
    before = copy.deepcopy(loop.model.state_dict())
    with pytest.raises(UsageError, match=r"^3.* was (replaced|added) since the Pruner was made"):
        pruner.step()
    assert all(torch.equal(before[name], value) for name, value in loop.model.state_dict().items())


def test_it_finishes_once():
    loop = Loop()
    pruner = loop.pruner("l1", steps=10, target_macs=0.5)
    loop.train(2, pruner)
    report = pruner.finish()
    assert "finished after 2 of 10 steps" in report.notes
    with pytest.raises(UsageError, match=r"finish\(\) after finish\(\)"):
        pruner.finish()
    with pytest.raises(UsageError, match=r"step\(\) after finish\(\)"):
        pruner.step()


def test_a_state_goes_into_a_new_pruner_of_the_same_settings_before_all_else():
    loop = Loop()
    pruner = loop.pruner("l1", steps=4, target_macs=0.5)
    loop.train(2, pruner)
    state = pruner.state_dict()
    with pytest.raises(UsageError, match="load the pruner's state first"):
        pruner.load_state_dict(state)
    with pytest.raises(UsageError, match=r"target_macs=0\.5, not 0\.4"):
        Loop().pruner("l1", steps=4, target_macs=0.4).load_state_dict(state)
    with pytest.raises(UsageError, match="no state of a Pruner"):
        Loop().pruner("l1", steps=4, target_macs=0.5).load_state_dict({})


def test_the_callers_random_numbers_are_left_alone():
    drawn = []
    for prunes in (False, True):
        loop = Loop()
        torch.manual_seed(5)
        pruner = loop.pruner("obs", data=loop.batches[:2], steps=2, target_macs=0.5) if prunes else None
        loop.train(3, pruner)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
