"""The loop: it learns, tells, stops, and survives models that change shape, numbers that go bad and short memory."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import CompressorError, ModelError, UsageError
from compressor.training.checkpoint import Diverged, Saving, TrainState
from compressor.training.evaluate import evaluate
from compressor.training.events import BatchEvent, EpochEvent, Event, NoteEvent
from compressor.training.loop import backward, distilling, fit
from compressor.training.settings import DistillSettings, TrainSettings
from tests.training.small import Viewing, assert_same, cross_entropy, small_data, small_net, weights

FAST = TrainSettings(epochs=2, batch_size=16, lr=0.1)


def test_training_learns_the_digits():
    data, net = small_data(train=512, held_out=128), small_net()
    before = evaluate(net, data.validation, data)
    history = fit(net, data, replace(FAST, epochs=8))
    after = evaluate(net, data.validation, data)
    assert before.top1 < 0.3 < 0.8 < after.top1
    assert [row["epoch"] for row in history.rows] == list(range(8))
    assert history.rows[-1]["validation_top1"] == after.top1
    assert history.rows[-1]["train_loss"] < history.rows[0]["train_loss"]


def test_same_seed_gives_the_same_weights_and_another_does_not():
    data, ends = small_data(), []
    for seed in (0, 0, 1):
        torch.rand(17)  # what was drawn before does not matter
        net = small_net()
        fit(net, data, replace(FAST, seed=seed))
        ends.append(weights(net))
    assert_same(ends[0], ends[1])
    assert not torch.equal(ends[0]["0.weight"], ends[2]["0.weight"])


def test_plain_loop_gives_the_same_weights():
    """The loop is nothing but forward, loss, backward and step on the batches that `train_batches` names."""
    from compressor.training.schedule import lr_at, make_optimizer, set_lr_

    data, settings = small_data(), replace(FAST, channels_last=False, label_smoothing=0.1)
    net, plain = small_net(dropout=0), small_net(dropout=0)
    fit(net, data, settings)
    optimizer = make_optimizer(plain, settings)
    for epoch in range(2):
        for number, (x, y) in enumerate(data.training(settings, epoch, 0, torch.device("cpu"))):
            set_lr_(optimizer, lr_at(settings, epoch + (number + 0.5) / 6))
            optimizer.zero_grad()
            functional.cross_entropy(plain(x), y, label_smoothing=0.1).backward()
            optimizer.step()
    assert_same(weights(net), weights(plain))


@pytest.mark.parametrize("in_training_only", [False, True])
def test_network_that_reads_its_maps_with_view_is_trained_channels_first(in_training_only):
    data, net, plain = small_data(), Viewing(in_training_only), Viewing(in_training_only)
    plain.load_state_dict(net.state_dict())
    with pytest.raises(RuntimeError, match="view"):
        Viewing(in_training_only).to(memory_format=torch.channels_last)(torch.zeros(2, 1, 8, 8))
    fit(net, data, FAST)
    fit(plain, data, replace(FAST, channels_last=False))
    assert_same(weights(net), weights(plain))


def test_history_has_the_mean_loss_and_accuracy_of_the_epochs_batches():
    data, losses, right = small_data(), [], []

    def step(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, count = cross_entropy()(model, x, y)
        losses.append(float(loss))
        right.append(int(count))
        return loss, count

    row = fit(small_net(), data, replace(FAST, epochs=1), step=step).rows[0]
    assert row["train_loss"] == pytest.approx(sum(losses) / 6)
    assert row["train_top1"] == pytest.approx(sum(right) / 96)


def test_step_without_a_count_has_no_training_accuracy():
    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = functional.mse_loss(model(x), functional.one_hot(y, 10).float())
        backward(loss)
        return loss

    assert fit(small_net(), small_data(), replace(FAST, epochs=1), step=step).rows[0]["train_top1"] is None


def test_events_tell_progress_and_epochs():
    events: list[Event] = []
    fit(small_net(), small_data(), replace(FAST, log_seconds=0), on_event=events.append)
    progress = [event for event in events if isinstance(event, BatchEvent)]
    assert [(event.epoch, event.batch) for event in progress] == [(e, b + 1) for e in range(2) for b in range(6)]
    assert all(event.batches == 6 and event.epochs == 2 and event.images_per_second > 0 for event in progress)
    assert progress[-1].seconds_left == 0
    assert all(event.top1 is not None and 0 <= event.top1 <= 1 for event in progress)
    assert [event.row["epoch"] for event in events if isinstance(event, EpochEvent)] == [0, 1]


def test_nothing_is_printed(capfd):
    fit(small_net(), small_data(), FAST)
    assert capfd.readouterr() == ("", "")


def test_after_step_sees_every_step_and_may_end_the_phase():
    seen = []

    def after_step(state: TrainState) -> bool:
        seen.append((state.epoch, state.batch, state.step, state.batches))
        return state.step == 9

    history = fit(small_net(), small_data(), replace(FAST, epochs=5), after_step=after_step)
    assert seen[0] == (0, 1, 1, 6)
    assert seen[-1] == (1, 3, 9, 6)
    assert len(seen) == 9
    assert history.ended_early
    assert len(history.rows) == 2
    assert history.rows[-1]["validation_top1"] is not None


def test_model_may_change_its_shape_between_steps():
    def prune(state: TrainState) -> None:
        if state.step == 4:
            first, norm, second = state.model[0], state.model[1], state.model[4]
            kept = torch.tensor([0, 2, 3, 5])
            for owner, name, dim in (
                (first, "weight", 0),
                (norm, "weight", 0),
                (norm, "bias", 0),
                (second, "weight", 1),
            ):
                parameter = getattr(owner, name)
                parameter.data = parameter.data.index_select(dim, kept)
                parameter.grad = None
                momentum = state.optimizer.state[parameter]["momentum_buffer"]
                state.optimizer.state[parameter]["momentum_buffer"] = momentum.index_select(dim, kept)
            for name in ("running_mean", "running_var"):
                setattr(norm, name, getattr(norm, name)[kept])

    net = small_net()
    fit(net, small_data(), FAST, after_step=prune)
    assert net[0].weight.shape == (4, 1, 3, 3)
    assert net[4].weight.shape[1] == 4


def test_later_phase_takes_the_optimizer_and_the_schedule_on():
    data, net = small_data(), small_net()
    first = fit(net, data, replace(FAST, schedule="step", milestones=(3,)))
    second = fit(net, data, replace(FAST, schedule="step", milestones=(3,), first_epoch=2), optimizer=first.optimizer)
    assert second.optimizer is first.optimizer
    assert [row["epoch"] for row in second.rows] == [2, 3]
    assert [row["lr"] for row in second.rows] == pytest.approx([0.1, 0.01])


def test_modes_and_memory_layout_are_put_back():
    net = small_net().eval()
    net[3].train()
    fit(net, small_data(), replace(FAST, epochs=1))
    assert [module.training for module in net] == [False, False, False, True, *[False] * 5]
    assert all(parameter.is_contiguous() for parameter in net.parameters())


def test_further_outputs_weigh_in_training():
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.other = small_net(), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
            return (self.body(x), self.other(x.flatten(1))) if self.training else self.body(x)

    net = TwoHeads()
    before = net.other.weight.clone()
    history = fit(net, small_data(), FAST)
    assert not torch.equal(net.other.weight, before)
    assert history.rows[-1]["validation_top1"] is not None


def test_every_epoch_begins_in_training_mode():
    """However the network came, and whatever listeners leave it in between epochs."""
    data, ends = small_data(), []
    for came, left in ((True, True), (False, False)):
        net, modes = small_net().train(came), []

        def step(model: nn.Module, x: Tensor, y: Tensor, modes: list[bool] = modes) -> tuple[Tensor, Tensor]:
            modes.append(all(module.training for module in model.modules()))
            return cross_entropy()(model, x, y)

        def leave(event: Event, net: nn.Module = net, left: bool = left) -> None:
            if isinstance(event, EpochEvent):
                net.train(left)

        fit(net, data, replace(FAST, evaluate_every=0), step=step, on_event=leave)
        assert modes == [True] * 12
        ends.append(weights(net))
    assert_same(*ends)


def test_loss_that_is_not_finite_stops_with_advice():
    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = cross_entropy()(model, x, y)[0]
        step.calls += 1
        return loss * float("nan") if step.calls == 3 else loss

    step.calls = 0
    with pytest.raises(Diverged, match=r"step 3 \(learning rate 0\.0\d+\): try a smaller `lr`") as caught:
        fit(small_net(), small_data(), FAST, step=step)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_weight_that_is_not_finite_stops_before_it_is_saved(tmp_path):
    from compressor.training.checkpoint import latest_checkpoint

    def spoil(state: TrainState) -> None:
        if state.step == 6:
            state.model[8].bias.data[0] = float("inf")

    with pytest.raises(Diverged, match=r"8\.bias are no longer finite.*last good checkpoint"):
        fit(small_net(), small_data(), FAST, after_step=spoil, saving=Saving(tmp_path))
    content, warnings = latest_checkpoint(tmp_path)
    assert content["counters"]["step"] == 0
    assert warnings == []


def test_rollback_halves_the_rate_and_goes_on(tmp_path):
    calls, rates = [0], []

    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = cross_entropy()(model, x, y)[0]
        calls[0] += 1
        return loss * float("inf") if calls[0] in (8, 10) else loss

    notes: list[Event] = []
    history = fit(
        small_net(),
        small_data(),
        replace(FAST, on_nan="rollback", schedule="constant"),
        step=step,
        after_step=lambda state: rates.append((state.step, state.lr)),
        on_event=notes.append,
        saving=Saving(tmp_path),
    )
    # Step 8 fails twice, each time after step 7, and each time training goes back to the end of the first epoch.
    assert [step for step, _ in rates] == [1, 2, 3, 4, 5, 6, 7, 7, 7, 8, 9, 10, 11, 12]
    assert dict(rates)[12] == pytest.approx(0.1 / 4)
    assert [note.text for note in notes if isinstance(note, NoteEvent)] == history.notes
    assert "back to step 6 with 0.5 of the learning rate" in history.notes[0]
    assert len(history.rows) == 2


def test_rollbacks_are_bounded(tmp_path):
    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy()(model, x, y)[0] * float("nan")

    with pytest.raises(Diverged):
        fit(small_net(), small_data(), replace(FAST, on_nan="rollback"), step=step, saving=Saving(tmp_path))


def test_rollback_without_checkpoints_is_wrong_use():
    with pytest.raises(UsageError, match="checkpoint"):
        fit(small_net(), small_data(), replace(FAST, on_nan="rollback"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_short_memory_halves_the_pieces_and_keeps_the_gradients(error):
    """A step that cannot take more than 5 of the 16 images ends at the weights of one that can (no batch-norm here)."""
    data, ends, sizes = small_data(), [], []
    for limit in (16, 5):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))

        def step(model: nn.Module, x: Tensor, y: Tensor, limit: int = limit) -> tuple[Tensor, Tensor]:
            if len(x) > limit:
                raise error
            sizes.append(len(x))
            return cross_entropy()(model, x, y)

        history = fit(net, data, replace(FAST, batch_size=16), step=step)
        ends.append((weights(net), history))
    assert sizes[12:] == [4] * 4 * 12
    for name, tensor in ends[0][0].items():
        assert torch.allclose(tensor, ends[1][0][name], atol=1e-6)
    assert [row["train_top1"] for row in ends[0][1].rows] == [row["train_top1"] for row in ends[1][1].rows]
    assert [note.split(":")[1].split()[0] for note in ends[1][1].notes] == ["8", "4"]


def test_memory_for_not_even_two_images_is_one_line():
    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    with pytest.raises(CompressorError, match="out of memory with 2 images at a time"):
        fit(small_net(), small_data(), FAST, step=step)


def test_other_errors_of_a_step_pass_through():
    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(small_net(), small_data(), FAST, step=step)


def test_no_validation_where_none_is_asked_for():
    rows = fit(small_net(), small_data(), replace(FAST, evaluate_every=0)).rows
    assert all(row["validation_top1"] is None for row in rows)


@pytest.mark.parametrize(
    ("device", "says"), [("gpu", "choose auto"), ("cuda:99", "GPUs are usable"), ("cuda:x", "choose auto")]
)
def test_device_that_is_not_there_is_wrong_use(device, says):
    with pytest.raises(UsageError, match=says):
        fit(small_net(), small_data(), replace(FAST, device=device))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"momentum": -0.5}, "Invalid momentum"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_are_wrong_use(settings, says):
    with pytest.raises(UsageError, match=says):
        fit(small_net(), small_data(), replace(FAST, **settings))


def test_model_with_nothing_to_train_is_one_line():
    with pytest.raises(ModelError, match="no parameters to train"):
        fit(small_net().requires_grad_(False), small_data(), FAST)


def test_memory_short_in_the_optimizer_is_one_line(monkeypatch):
    def refuse(*arguments: object, **keywords: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(torch.optim.SGD, "step", refuse)
    with pytest.raises(CompressorError, match=r"out of memory \(CUDA out of memory\. Tried"):
        fit(small_net(), small_data(), FAST)


def test_global_switches_are_put_back():
    before = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    fit(small_net(), small_data(), replace(FAST, epochs=1, deterministic=True))
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_in_bfloat16_learns_and_repeats_itself():
    data, ends = small_data(train=512, held_out=128), []
    for _ in range(2):
        net = small_net()
        history = fit(net, data, replace(FAST, epochs=8, device="cuda", deterministic=True, augment="crop"))
        ends.append(weights(net))
    assert history.rows[-1]["validation_top1"] > 0.6
    assert_same(ends[0], ends[1])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 1, 8, 8, generator=generator), torch.randint(10, (12,), generator=generator)


def test_the_loss_is_cross_entropy_and_softened_divergence(batch):
    x, y = batch
    teacher, student = small_net(seed=1, dropout=0.0), small_net(seed=2, dropout=0.0)
    loss, right = distilling(teacher, DistillSettings(True, 0.3, 4.0), small_data())(student, x, y)
    scores, wanted = student(x), teacher(x)
    softened, target = (scores / 4).softmax(1), (wanted / 4).softmax(1)
    divergence = (target * (target.log() - softened.log())).sum(1).mean() * 16
    expected = 0.7 * functional.cross_entropy(scores, y) + 0.3 * divergence
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert right == (scores.argmax(1) == y).sum() and not loss.requires_grad


def test_a_network_that_agrees_with_its_teacher_learns_nothing_from_it(batch):
    x, y = batch
    student = small_net(dropout=0.0).eval()
    distilling(copy.deepcopy(student), DistillSettings(True, 1.0, 2.0), small_data())(student, x, y)
    assert max(float(p.grad.abs().max()) for p in student.parameters()) < 1e-6


def test_the_teacher_does_not_change(batch):
    x, y = batch
    teacher, student = small_net(seed=1), small_net(seed=2)
    teacher.train()
    before = weights(teacher)
    distilling(teacher, DistillSettings(True, 0.5, 4.0), small_data())(student.train(), x, y)
    assert_same(weights(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_no_temperature_is_refused():
    with pytest.raises(UsageError, match="distill_"):
        distilling(small_net(), DistillSettings(True, 0.5, 0.0), small_data())
