"""A promise is made on images that nothing else looked at, by every verb that changes a network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compressor.certify import Paired, p_value
from compressor.errors import DataError, UsageError
from compressor.exits.settings import CNSN, DetachSettings, falling
from compressor.pruning.settings import PruneSettings
from compressor.report.comparison import answers
from compressor.report.report import Report
from compressor.runs.jobs import DetachJob, PruneJob
from compressor.runs.models import open_model
from compressor.runs.promise import put_aside, right_of
from compressor.runs.run import run
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings, PromiseSettings
from compressor.training.data import open_data

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
    before = right_of(open_model(DIGITS.model).module, aside, data)
    after = right_of(open_model(tmp_path / "run" / "model.safetensors").module, aside, data)
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
