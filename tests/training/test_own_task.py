"""Tasks of a user's: their data in every form, their batches in pieces, their figures, and wrong use in one line."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from compressor.errors import CompressorError, DataError, UsageError
from compressor.training.batch_norm import recalibrate_
from compressor.training.checkpoint import Diverged, Saving
from compressor.training.evaluate import evaluate
from compressor.training.loop import distilling, fit
from compressor.training.own_part import collate
from compressor.training.own_task import OwnTask
from compressor.training.settings import DistillSettings, TrainSettings
from compressor.training.task import examples_in, shapes, taken
from tests.training.small import assert_same, weights

FAST = TrainSettings(epochs=2, batch_size=8, lr=0.05, device="cpu")
CPU = torch.device("cpu")


class Regression:
    """Numbers from signals; the lower the error the better."""

    lower_is_better = True

    def data(self, split: str) -> Any:
        x = torch.randn(24, 1, 16, generator=torch.Generator().manual_seed(len(split)))
        return TensorDataset(x, x.mean((1, 2)) + 3)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(model(batch[0]).squeeze(1), batch[1])

    def measure(self, model: nn.Module, batches: Any) -> Any:
        errors = torch.cat([(model(x).squeeze(1) - y).abs() for x, y in batches])
        return {"mae": errors.mean(), "worst": float(errors.max())}

    def inputs(self, batch: Any) -> Any:
        return batch[0]


def net(dropout: float = 0.2) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(),
            nn.Linear(64, 1),
        )  # fmt: skip


def task(data: Any = None, **methods: Any) -> OwnTask:
    user = type("Mine", (Regression,), {name: staticmethod(method) for name, method in methods.items()})()
    if data is not None:
        user.data = data
    return OwnTask(user, "mine.py:Mine")


def test_a_task_is_learned_and_measured_by_its_own_figure():
    own = task()
    before, rows = evaluate(net(), own.test, own), fit(model := net(), own, replace(FAST, epochs=6)).rows
    after = evaluate(model, own.test, own)
    assert own.figures == ("mae", "worst") and not own.figure.higher
    assert own.figure.gain(before.main, after.main) > 0 and after.figures["worst"] > after.main
    assert rows[-1]["validation_mae"] == pytest.approx(evaluate(model, own.validation, own).main)
    assert rows[-1]["train_top1"] is None


class Rows(Dataset[Any]):
    """As Hugging Face's: rows are dicts."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"signal": torch.full((1, 16), float(index)), "target": float(index), "name": f"row {index}"}


class Stream(IterableDataset[Any]):
    """As WebDataset's: batches come one after another, and nobody says how many."""

    def __iter__(self) -> Any:
        for number in range(3):
            yield torch.full((4, 1, 16), float(number)), torch.zeros(4)


def generated(split: str) -> Any:
    yield from Stream()


@pytest.mark.parametrize(
    ("data", "batches", "examples"),
    [
        (lambda split: TensorDataset(torch.randn(10, 1, 16), torch.zeros(10)), 2, 8),
        (lambda split: DataLoader(TensorDataset(torch.randn(10, 1, 16), torch.zeros(10)), 4, shuffle=True), 3, 10),
        (lambda split: [(torch.randn(4, 1, 16), torch.zeros(4))] * 2, 2, 8),
        (lambda split: Stream(), 3, 12),
        (generated, 3, 12),
    ],
)
def test_data_as_they_come(data, batches, examples):
    own = task(data)
    settings = replace(FAST, batch_size=4)
    assert own.steps(settings) == batches
    for epoch in range(2):
        seen = list(own.training(settings, epoch, 0, CPU))
        assert len(seen) == batches and sum(examples_in(y) for _, y in seen) == examples
    fit(net(), own, settings)


def test_rows_of_dicts_become_a_dict_of_tensors_and_lists():
    own = task(lambda split: Rows(), inputs=lambda batch: batch["signal"])
    x, y = next(own.passing(own.train, 4))
    assert x.shape == (4, 1, 16) and y["target"].tolist() == [0, 1, 2, 3] and y["name"][3] == "row 3"
    assert "10 examples" in own.amount(own.train)


def test_images_of_their_own_sizes_stay_a_list():
    images, labels = collate([(torch.zeros(3, 4, 4), 1), (torch.zeros(3, 5, 4), 2)])
    assert [tuple(image.shape) for image in images] == [(3, 4, 4), (3, 5, 4)] and labels.tolist() == [1, 2]


def test_a_pass_that_goes_on_in_its_middle_gives_what_it_would_have_given():
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + torch.randn_like(x), y

    for data in (
        lambda split: Noisy(torch.zeros(24, 1, 16), torch.zeros(24)),
        lambda split: DataLoader(Noisy(torch.zeros(24, 1, 16), torch.zeros(24)), 8, shuffle=True),
    ):
        own = task(data)
        state = torch.get_rng_state()
        whole, rest = (list(own.training(FAST, 3, start, CPU)) for start in (0, 2))
        assert torch.equal(whole[2][0], rest[0][0]) and len(rest) == 1
        assert not torch.equal(whole[0][0], next(own.training(FAST, 4, 0, CPU))[0])
        assert torch.equal(torch.get_rng_state(), state)


def test_a_run_that_was_broken_off_ends_in_the_same_weights(tmp_path):
    class Stop(Exception):
        pass

    def leave(state: Any) -> None:
        if state.step == 4:
            raise Stop

    alone, first, resumed = net(), net(), net()
    fit(alone, task(), FAST)
    with pytest.raises(Stop):
        fit(first, task(), FAST, after_step=leave, saving=Saving(tmp_path, every_seconds=0))
    fit(resumed, task(), FAST, saving=Saving(tmp_path, resume=True))
    assert_same(weights(resumed), weights(alone))


BATCHES = {
    "pair": (torch.arange(6), torch.arange(6)),
    "dict": {"x": torch.arange(6), "name": list("abcdef"), "scale": 2.0},
    "lists": ([torch.zeros(3, size, 2) for size in range(6)], [{"box": torch.zeros(2)} for _ in range(6)]),
    "nested": {"inputs": [torch.zeros(6, 2), torch.zeros(6, 3)], "y": torch.zeros(6)},
}


@pytest.mark.parametrize("kind", ["pair", "dict", "lists"])
def test_a_part_of_a_batch_has_a_part_of_everything(kind):
    batch = BATCHES[kind]
    part = taken(batch, slice(1, 3))
    assert examples_in(batch) == 6 and examples_in(part) == 2 and type(part) is type(batch)
    if kind == "dict":
        assert part["x"].tolist() == [1, 2] and part["name"] == ["b", "c"] and part["scale"] == 2.0
    if kind == "lists":
        assert [image.shape[1] for image in part[0]] == [1, 2] and len(part[1]) == 2


def test_examples_of_several_inputs_are_taken_of_as_many_batches_as_it_needs():
    """A quantizer is calibrated on them; images of their own sizes are those of the first batch."""
    mine = task(inputs=lambda batch: {"signal": batch[0], "other": (batch[1], 2.0)})
    every = mine.user.data("train")
    found = mine.examples(mine.train, 20)
    assert torch.equal(found["signal"], every[:20][0]) and torch.equal(found["other"][0], every[:20][1])
    assert found["other"][1] == 2.0
    batches = [torch.full((size, 1, 16), float(number)) for number, size in enumerate((8, 8, 8, 3))]
    mine = task(lambda split: [(batch, batch) for batch in batches], inputs=lambda batch: batch)
    assert [part[:, 0, 0].tolist() for part in mine.examples(mine.train, 18)] == [[0.0] * 8 + [1.0] * 8 + [2.0] * 2] * 2
    mine = task(inputs=lambda batch: (list(batch[0]),))
    assert examples_in(mine.examples(mine.train, 64)) == 24
    listed = task(lambda split: [(batch, batch) for batch in batches], inputs=lambda batch: (list(batch[0]),))
    assert examples_in(listed.examples(listed.train, 20)) == 8


def test_memory_that_runs_out_halves_the_pieces_with_the_gradients_of_the_whole():
    class Scarce(Regression):
        def loss(self, model: nn.Module, batch: Any) -> Tensor:
            if len(batch[0]) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return super().loss(model, batch)

    few, whole = net(0.0), net(0.0)
    for model in (few, whole):
        model[1].eval().requires_grad_(False)
        model[1] = nn.Identity()
    notes = fit(few, OwnTask(Scarce(), "scarce"), FAST).notes
    fit(whole, task(), FAST)
    assert "4 images go through" in notes[0]
    for a, b in zip(few.parameters(), whole.parameters()):
        torch.testing.assert_close(a, b)


def test_distillation_compares_all_tensors_that_the_model_returns():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(0.0)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"main": self.body(x), "further": [self.scale * self.body(x)], "count": 3}

    own = task(loss=lambda model, batch: model(batch[0])["main"].mean() * 0)
    student, teacher = Two().eval(), Two()
    x, y = next(own.training(FAST, 0, 0, CPU))
    step = distilling(teacher, DistillSettings(True, 1.0), own)
    assert step(student, x, y)[0] == 0
    student.scale.data += 1.0
    loss, right = step(student, x, y)
    assert right is None and loss > 0 and student.scale.grad != 0


def test_a_teacher_that_hardly_varies_gives_steps_that_training_survives():
    own, wanted = task(), torch.full((4, 3), 2.0) + 1e-4 * torch.arange(12.0).view(4, 3)
    given = torch.zeros(4, 3, requires_grad=True)
    loss = own.imitation(given, wanted, 1.0)
    loss.backward()
    assert loss == 1 and given.grad.norm() < 1
    assert torch.allclose(own.imitation(wanted + 1e-5, wanted, 1.0), 1e-10 / wanted.var(correction=0), rtol=0.1)


def test_batch_norm_is_measured_anew_on_what_the_model_is_called_with():
    own, model = task(), net()
    assert recalibrate_(model, own.train, own, batches=2, batch_size=8) == 1
    assert model[1].running_mean.abs().sum() > 0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "loss of many": ({"loss": lambda model, batch: model(batch[0])}, "loss gave a tensor, float32 8x1: return one"),
    "loss of counts": ({"loss": lambda model, batch: model(batch[0]).sum().long()}, "loss gave a tensor, int64 scalar"),
    "loss of no tensor": ({"loss": lambda model, batch: 0.5}, "loss gave float: return one number as a tensor"),
    "loss without model": ({"loss": lambda model, batch: torch.ones(())}, "depends on no parameter"),
    "loss that fails": (
        {"loss": lambda model, batch: model(batch[0][:, :, :5])},
        "loss failed on a batch of float32 8x1x16, float32 8: RuntimeError: mat1 and mat2",
    ),
    "several numbers": ({"measure": lambda model, batches: {"mae": torch.ones(3)}}, "mae = tensor.*: return numbers"),
    "None": ({"measure": lambda model, batches: None}, "measure gave 'None': return a dict"),
    "None inside": ({"measure": lambda model, batches: {"mae": None}}, "mae = None: return numbers"),
    "no dict": ({"measure": lambda model, batches: 0.5}, "measure gave '0.5': return a dict"),
    "no number": ({"measure": lambda model, batches: {"mae": "low"}}, "mae = low: return numbers"),
    "not finite": ({"measure": lambda model, batches: {"mae": float("nan")}}, "mae = nan: return numbers that are"),
    "nothing": ({"measure": lambda model, batches: {}}, "return a dict"),
    "inputs that fail": ({"inputs": lambda batch: batch["x"]}, "inputs failed on a batch of float32 8x1x16"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_use_is_one_line(kind):
    methods, said = WRONG[kind]
    own = task(**methods)
    with pytest.raises(UsageError, match=f"mine.py:Mine: .*{said}") as error:
        fit(net(), own, FAST)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "gives", "said"),
    [
        ("correct", lambda outputs, batch: outputs[:, 0] > 0, None),
        ("correct", lambda outputs, batch: (outputs[:, 0] > 0).numpy(), None),
        (
            "correct",
            lambda outputs, batch: outputs > 0,
            "correct gave bool 8x1: return one bool for each of",
        ),
        ("correct", lambda outputs, batch: outputs[:, 0], "correct gave float32 8: return one bool"),
        ("correct", lambda outputs, batch: (outputs > 0).any(), "correct gave bool scalar: return one bool"),
        ("labels", lambda batch: (batch[1] > 0).long(), None),
        ("labels", lambda batch: batch[1], "labels gave float32 8: return the class of each of the 8 examples"),
        ("labels", lambda batch: [0] * 8, "labels gave a list without tensors: return the class"),
        ("labels", lambda batch: batch["y"], "labels failed on a batch of float32 8x1x16, float32 8: TypeError"),
    ],
)
def test_single_examples_are_right_by_the_users_methods(method, gives, said):
    own = task(**{method: gives})
    x, y = next(own.passing(own.test, 8))
    outputs = net()(x).repeat(1, 1 if method == "correct" else 2) * torch.tensor(
        [1.0, 2.0][: 1 + (method != "correct")]
    )
    if said is None:
        wanted = outputs[:, 0] > 0 if method == "correct" else outputs.argmax(1) == (y[1] > 0)
        assert torch.equal(own.correct(outputs, y), wanted)
    else:
        with pytest.raises(UsageError, match=said):
            own.correct(outputs, y)


def test_halves_and_some_of_a_part_are_parts_of_it():
    own = task()
    for first, second in (own.halves(own.train, 0), task(generated).halves(task(generated).train, 0)):
        seen = [[x for x, _ in own.passing(half, 1)] for half in (first, second)]
        whole = [x for x, _ in own.passing(own.train if first.of_examples else task(generated).train, 1)]
        assert sum(map(len, seen)) == len(whole)
        for x in whole:
            assert sum(torch.equal(x, each) for half in seen for each in half) == 1
    few = own.some(own.train, 5, 0)
    assert few.count(1) == 5 and own.some(own.train, 100, 0) is own.train


def test_figures_keep_their_names():
    names = iter(["mae", "other"])
    own = task(measure=lambda model, batches: {next(names): 1.0})
    evaluate(net(), own.test, own)
    with pytest.raises(UsageError, match="measure gave other, and mae before"):
        evaluate(net(), own.test, own)


@pytest.mark.parametrize("method", ["data", "loss", "measure", "inputs"])
def test_a_task_without_a_method_is_refused(method):
    user = type("Half", (), {name: lambda *_: None for name in ("data", "loss", "measure", "inputs") if name != method})
    with pytest.raises(UsageError, match=rf"has no method `{method}\(self"):
        OwnTask(user(), "half.py:Half")


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ([], DataError, r'data\("train"\) is empty'),
        (iter(()), DataError, "is empty"),
        (TensorDataset(torch.zeros(0, 1, 16)), DataError, "is empty"),
        (DataLoader(TensorDataset(torch.zeros(3, 1, 16)), 8, drop_last=True), DataError, "is empty"),
        (3, UsageError, "gave int: return a data set"),
        ("digits", UsageError, "gave str: return a data set"),
        ({"train": []}, UsageError, "gave dict: return a data set"),
    ],
)
def test_a_split_that_holds_nothing_is_refused(given, kind, said):
    with pytest.raises(kind, match=said):
        task(lambda split: given)


class Liar(Stream):
    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 3


def test_batches_that_come_once_only_and_never_again_are_said():
    ended = {split: iter(list(Stream())) for split in ("train", "validation", "test")}
    for data in (ended.__getitem__, lambda split: Liar()):
        with pytest.raises(DataError, match=r'data\("train"\) gave no batch where 3 are expected: return what can be'):
            fit(net(), task(data), FAST)


def test_a_class_in_place_of_an_object_is_refused():
    with pytest.raises(UsageError, match=r"the task Regression is a class: give an object, such as Regression\(\)"):
        OwnTask(Regression, "regression")


def test_without_test_data_those_of_validation_count_and_it_is_said():
    own = task(lambda split: None if split == "test" else TensorDataset(torch.zeros(8, 1, 16), torch.zeros(8)))
    assert own.test is own.validation and "no test data" in own.notes[0]


def test_data_that_fail_say_where():
    def broken(split: str) -> Any:
        yield torch.zeros(4, 1, 16), torch.zeros(4)
        raise OSError("disk gone")

    with pytest.raises(CompressorError, match=r'data\("train"\) failed: OSError: disk gone'):
        fit(net(), task(broken), FAST)


def test_label_smoothing_is_refused_and_a_loss_that_is_not_finite_is_told():
    with pytest.raises(UsageError, match="label smoothing is for labelled images"):
        fit(net(), task(), replace(FAST, label_smoothing=0.1))
    with pytest.raises(Diverged):
        fit(net(), task(loss=lambda model, batch: model(batch[0]).mean() * float("nan")), FAST)


def test_shapes_in_words():
    assert shapes({"x": torch.zeros(2, 3), "y": [torch.zeros(2, dtype=torch.long)]}) == "float32 2x3, int64 2"
    assert "without tensors" in shapes("text")
