"""A promise is made on images that nothing else looked at, by every verb that changes a network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import compressor
from compressor.certify import Paired, estimated, p_value
from compressor.errors import CompressorError, DataError, UsageError
from compressor.exits.settings import CNSN, DetachSettings, falling
from compressor.files.plain import from_plain
from compressor.pruning.settings import PruneSettings
from compressor.report.comparison import answers
from compressor.report.measurements import Certificate, Figure
from compressor.report.report import Report
from compressor.runs.jobs import DetachJob, PruneJob
from compressor.runs.models import open_model
from compressor.runs.promise import put_aside, resampled
from compressor.runs.run import run
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings, PromiseSettings
from compressor.training.data import open_data
from compressor.training.evaluate import which_right
from compressor.training.own_task import OwnTask

DIGITS = ModelSettings(str(Path(__file__).parents[2] / "sample_models" / "digits_cnn.safetensors"))
QUICK = replace(FINETUNE, epochs=1, device="cpu")


def pruned(folder, max_drop, **more):
    job = PruneJob(
        DIGITS, "digits", OutputSettings(str(folder), latency=False, onnx=False), training=QUICK,
        choice=PruneSettings("l1", target_macs=0.5), promise=PromiseSettings(max_drop, **more),
    )  # fmt: skip
    return run(job)


def test_half_of_the_test_images_are_put_aside_and_nothing_else_has_them():
    data = open_data("digits")
    kept, aside = put_aside(data, seed=3)
    both = {part.images[i].numpy().tobytes() for part in (kept.test, aside) for i in range(len(part))}
    assert len(both) == len({image.numpy().tobytes() for image in data.test.images})
    assert not {image.numpy().tobytes() for image in kept.test.images} & {
        image.numpy().tobytes() for image in aside.images
    }
    assert (kept.test.labels.bincount() - aside.labels.bincount()).abs().max() <= 1
    assert kept.train is data.train and kept.validation is data.validation


def test_too_few_images_are_not_divided():
    data = open_data("digits")
    few = replace(data, test=data.test.take(torch.arange(11)))
    with pytest.raises(DataError, match="11 test images are too few for a promise"):
        put_aside(few, seed=0)


def test_the_result_is_compared_with_the_network_as_it_came_on_those_images(tmp_path):
    report = pruned(tmp_path / "run", 0.2)
    found = report.after.certificate
    data, aside = put_aside(open_data("digits", input_shape=(1, 8, 8)), seed=0)
    before = which_right(open_model(DIGITS.model).module, aside, data)
    after = which_right(open_model(tmp_path / "run" / "model.safetensors").module, aside, data)
    paired = Paired.of(before, after)
    assert (found.images, found.observed) == (len(aside), pytest.approx(paired.drop))
    assert found.kept and p_value(paired, 0.2) <= 0.05
    assert found.words().startswith("Loses at most 20 points of top-1")
    assert (found.words(), True) in answers(report.before, report.after)
    assert float(report.after.top1) * len(data.test) == pytest.approx(round(report.after.top1 * len(data.test)))


def test_the_promise_goes_with_the_report_and_the_checkpoint(tmp_path):
    report = pruned(tmp_path / "run", 0.001, confidence=0.9)
    assert Report.load(tmp_path / "run").after.certificate == report.after.certificate
    held = open_model(tmp_path / "run" / "model.safetensors").measurements["certificate"]
    assert held["words"].startswith("No promise of at most 0.1 points of top-1 can be made on 18")
    assert held["confidence"] == 0.9 and (held["would_do"] is None or held["would_do"] > held["images"])
    assert "can be promised on these" in held["words"]


@pytest.mark.slow
def test_of_sub_models_the_smallest_that_keeps_it_is_named(tmp_path):
    choice, data = DetachSettings(exits=1), open_data("digits", input_shape=(1, 8, 8))
    aside = put_aside(data, seed=0)[1]
    training = falling("cnsn", replace(CNSN, epochs=2, batch_size=256))
    for drop, promised in ((0.98, 1), (0.001, None)):
        output, asked = OutputSettings(str(tmp_path / str(drop)), latency=False, onnx=False), PromiseSettings(drop)
        report = run(DetachJob(DIGITS, "digits", output, choice=choice, training=training, promise=asked))
        assert report.details["promised_exit"] == promised
        words = report.after.certificate.words()
        assert words.startswith("Exit 1, the smallest that can be promised, loses at most 98" if promised else "No")
        certificate, model = report.after.certificate, open_model(output.out + "/model.safetensors").module
        assert (certificate.exit, certificate.kept) == (promised, promised is not None)
        if promised:
            x = torch.cat([x for x, _ in data.passing(aside)])
            with torch.no_grad():
                differ = model.detach(1)(x).argmax(1) != model.detach(0)(x).argmax(1)
            assert certificate.differed == int(differ.sum())


def test_without_images_nothing_is_promised(tmp_path):
    from compressor.runs.verbs import prune

    with pytest.raises(UsageError, match="max_drop.*needs.*data"):
        prune(DIGITS.model, out=tmp_path / "run", max_drop=0.01)
    assert not (tmp_path / "run").exists()


COUNT = {"train": 32, "validation": 48, "test": 90}


class Signs:
    """Which of two classes an image is of; the share that is right."""

    batches = False

    def data(self, split: str) -> Any:
        x = torch.randn(COUNT[split], 3, 8, 8, generator=torch.Generator().manual_seed(len(split)))
        given = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())
        return DataLoader(given, 2) if self.batches else given

    def loss(self, model: nn.Module, batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def measure(self, model: nn.Module, batches: Any) -> dict[str, Any]:
        return {"right": torch.cat([model(x).argmax(1) == y for x, y in batches]).float().mean()}

    def inputs(self, batch: Any) -> Any:
        return batch[0]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 2),
    )  # fmt: skip


@pytest.mark.parametrize("batches", [False, True])
def test_samples_are_measured_as_numpy_does_it_and_the_model_runs_once(batches: bool) -> None:
    user = Signs()
    user.batches = batches
    task, aside = put_aside(OwnTask(user, "signs"), seed=0)
    model, calls = network().eval(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = resampled(model, aside, task, 30)
    units = list(task.passing(aside, 1))
    assert len(calls) == len(units) == (22 if batches else 45)
    with torch.no_grad():
        right = np.array([float((model(x).argmax(1) == batch[1]).float().mean()) for x, batch in units])
    random = np.random.default_rng(0)
    samples = [right[random.integers(len(right), size=len(right))].mean() for _ in range(30)]
    np.testing.assert_allclose(found, [right.mean(), *samples], atol=1e-6)


def test_no_example_is_in_both_halves() -> None:
    for batches in (False, True):
        user = Signs()
        user.batches = batches
        task, aside = put_aside(OwnTask(user, "signs"), seed=0)
        halves = [{row.numpy().tobytes() for x, _ in task.passing(part) for row in x} for part in (task.test, aside)]
        assert not halves[0] & halves[1] and sum(map(len, halves)) == COUNT["test"]


class Hoarder(Signs):
    """Takes all batches before the model runs."""

    def measure(self, model: nn.Module, batches: Any) -> dict[str, Any]:
        return super().measure(model, list(batches))


class Dice(Signs):
    def measure(self, model: nn.Module, batches: Any) -> dict[str, Any]:
        return {"right": super().measure(model, batches)["right"] + torch.rand(()) / 10}


class Few(Signs):
    def data(self, split: str) -> Any:
        return torch.utils.data.Subset(super().data(split), range(30))


class Untested(Signs):
    def data(self, split: str) -> Any:
        return None if split == "test" else super().data(split)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Hoarder, "measure cannot be repeated on what the model gave"),
        (Dice, "measure cannot be repeated on what the model gave"),
        (Few, "15 of half of the test data are too few for a promise"),
        (Untested, "has no test data to make a promise on"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_is_done(kind: type, says: str, tmp_path: Any) -> None:
    net = network()
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(CompressorError, match=says) as refused:
        compressor.prune(
            tmp_path / "net.pt", task=kind(), trust=True, input=(3, 8, 8), method="l1", target_macs=0.6, epochs=1,
            device="cpu", max_drop=0.1, out=tmp_path / "run",
        )  # fmt: skip
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_the_report_and_the_checkpoint_say_that_it_is_an_estimate(tmp_path: Any) -> None:
    torch.save(network(), tmp_path / "net.pt")
    report = compressor.prune(
        tmp_path / "net.pt", task=Signs(), trust=True, input=(3, 8, 8), method="l1", target_macs=0.6, epochs=1,
        device="cpu", max_drop=0.9, out=tmp_path / "run", latency=False, onnx=False,
    )  # fmt: skip
    found = report.after.certificate
    assert found.kept and (found.images, found.unit, found.figure) == (45, "examples", "right")
    assert found.words().startswith("Loses at most 0.9 of right on examples like these, with 95% confidence (n = 45")
    assert "bootstrap estimate" in found.words()
    assert (found.words(), True) in answers(report.before, report.after)
    assert Report.load(tmp_path / "run").after.certificate == found


def test_the_order_is_tested_until_one_fails_and_the_direction_is_the_figures() -> None:
    random = np.random.default_rng(0)
    larger = 0.5 + random.normal(0, 0.01, 401)
    safe, bold = larger - 0.01, larger - random.normal(0.05, 0.01, 401)
    kwargs = {"drop": 0.02, "images": 50, "unit": "examples"}
    at, certificate = estimated(larger, [safe, bold, safe], Figure("mIoU"), **kwargs)
    assert at == 0 and certificate.observed == pytest.approx(0.01) and certificate.drop == pytest.approx(0.01)
    at, certificate = estimated(larger, [bold, safe], Figure("mIoU"), **kwargs)
    assert at is None and not certificate.kept
    words = certificate.words()
    assert words.startswith("No promise of at most 0.02 of mIoU can be made on 50 examples at 95% conf")
    assert "bootstrap estimate" in words
    assert estimated(larger, [bold], Figure("mae", higher=False), **kwargs)[0] == 0
    assert from_plain(Certificate, certificate.to_json()) == certificate


def test_it_is_broken_about_as_often_as_it_says() -> None:
    """By hundreds of samples of a population whose drop is just what may be lost; an estimate, so 6 to 8 %."""
    random, broken = np.random.default_rng(1), 0
    for _ in range(200):
        lost = random.random(300) < 0.1
        draws = random.integers(300, size=(400, 300))
        samples = np.append(lost.mean(), lost[draws].mean(1))
        broken += (
            estimated(np.zeros(401), [-samples], Figure("x"), drop=0.1, images=300, unit="examples")[0] is not None
        )
    assert 0.01 < broken / 200 <= 0.1
