"""`shrink`: targets follow from validation images, the result from images that nothing looked at."""

from dataclasses import replace
from pathlib import Path

import pytest

from compressor.certify import Paired
from compressor.errors import CompressorError, UsageError
from compressor.report.run_comparison import DATA
from compressor.runs import shrink as shrinking
from compressor.runs.jobs import ShrinkJob
from compressor.runs.models import open_model
from compressor.runs.promise import put_aside, right_of
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings, PromiseSettings, TimeSettings
from compressor.runs.shrink import Search, shrink
from compressor.training.data import open_data

DIGITS = ModelSettings(str(Path(__file__).parents[2] / "sample_models" / "digits_cnn.safetensors"))


def job(folder, max_drop=0.1, seconds=60.0, **more):
    output = OutputSettings(str(folder), latency=False, onnx=False)
    return ShrinkJob(
        DIGITS, "digits", output, training=replace(FINETUNE, device="cpu"), promise=PromiseSettings(max_drop),
        time=TimeSettings(seconds), **more,
    )  # fmt: skip


@pytest.mark.parametrize("border", [0.02, 0.31, 0.5, 0.77, 0.98])
def test_the_search_ends_close_to_the_smallest_target_that_passes(border):
    search, tried = Search.of(None), []
    while not search.over(0.5):
        tried.append(search.target)
        search.told(search.target >= border)
    assert search.low < border <= search.high < border + 0.025 and len(tried) <= 7


def test_milliseconds_begin_with_what_was_asked_for():
    search = Search.of(4.0)
    assert search.target == 4.0
    search.told(True)
    assert (search.low, search.high, search.target) == (0.0, 4.0, 2.0)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A search that has time for two runs, by a clock that every run moves on by a quarter of the time."""
    folder, clock = tmp_path_factory.mktemp("shrink") / "run", [0.0]

    def moving(cell, *given):
        clock[0] += 25
        return carried_out(cell, *given)

    carried_out = shrinking.carry_out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shrinking.time, "perf_counter", lambda: clock[0])
        patch.setattr(shrinking, "carry_out", moving)
        patch.setattr(shrinking, "_epochs", lambda job: 0)
        return folder, shrink(job(folder, seconds=60.0))


def test_it_stops_before_the_time_is_over_and_leaves_the_network(found):
    folder, compared = found
    assert [Path(point.run).name for point in compared.points if point.method == "obs"] == ["obs-0.500", "obs-0.250"]
    chosen = open_model(Path(compared.promised) / "model.safetensors").module.state_dict()
    left = open_model(folder / "model.safetensors")
    assert all((left.module.state_dict()[name] == tensor).all() for name, tensor in chosen.items())
    assert left.measurements["certificate"] == compared.certificate.to_json()
    assert (folder / DATA).exists()


def test_the_promise_is_of_images_put_aside(found):
    folder, compared = found
    data, aside = put_aside(open_data("digits", input_shape=(1, 8, 8)), seed=0)
    before, after = (
        right_of(open_model(path).module, aside, data) for path in (DIGITS.model, folder / "model.safetensors")
    )
    assert compared.certificate.observed == pytest.approx(Paired.of(before, after).drop)
    assert compared.certificate.images == len(aside) and compared.certificate.kept


def test_nothing_is_left_where_nothing_can_be_promised(tmp_path, monkeypatch):
    monkeypatch.setattr(shrinking, "_epochs", lambda job: 0)
    compared = shrink(job(tmp_path / "run", max_drop=0.001, seconds=0.1))
    assert compared.promised is None and not (tmp_path / "run" / "model.safetensors").exists()
    assert compared.promise.startswith("No promise of at most 0.1 points")


def test_milliseconds_that_cannot_be_reached_end_it_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(shrinking, "_epochs", lambda job: 0)

    def fails(*given):
        raise CompressorError("the target of 0.001 ms cannot be reached")

    monkeypatch.setattr(shrinking, "carry_out", fails)
    with pytest.raises(CompressorError, match=r"every run failed: obs-0.001ms: the target of 0.001 ms cannot be"):
        shrink(job(tmp_path / "run", target_ms=0.001))


def test_a_trained_network_is_needed(tmp_path):
    with pytest.raises(UsageError, match="starts from a trained model"):
        replace(job(tmp_path / "run"), model=ModelSettings(arch="torchvision:resnet18")).completed()
