"""`shrink`: targets follow from validation images, the result from images that nothing looked at."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from compressor.certify import Paired
from compressor.errors import CompressorError, UsageError
from compressor.exporting.verify import verify_package
from compressor.report.manifest import read_manifest
from compressor.report.run_comparison import DATA
from compressor.runs import prune as pruning
from compressor.runs import shrink as shrinking
from compressor.runs import subject as opening
from compressor.runs.jobs import ShrinkJob
from compressor.runs.models import open_model
from compressor.runs.promise import Judge, put_aside
from compressor.runs.settings import FINETUNE, ModelSettings, OutputSettings, PromiseSettings, TimeSettings
from compressor.runs.shrink import Search, shrink
from compressor.runs.stages import silent
from compressor.training.data import open_data
from compressor.training.evaluate import which_right

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
    """A search that has time for two runs and one of exits, by a clock that every run moves on, and its runs."""
    folder, clock, runs = tmp_path_factory.mktemp("shrink") / "run", [0.0], []

    def moving(cell, *given):
        clock[0] += 25
        runs.append(cell.name)
        return carried_out(cell, *given)

    carried_out = shrinking.carry_out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shrinking.time, "perf_counter", lambda: clock[0])
        patch.setattr(shrinking, "carry_out", moving)
        patch.setattr(shrinking, "_epochs", lambda *given: (0, {}))
        return folder, shrink(job(folder, seconds=90.0)), runs


def test_it_stops_before_the_time_is_over_and_leaves_the_network(found):
    folder, compared, runs = found
    assert runs == ["obs-0.500", "obs-0.250", "exits"]
    points = {Path(point.run).name for point in compared.points if point.method != "start"}
    assert points | compared.failed.keys() == set(runs)
    chosen = open_model(Path(compared.promised) / "model.safetensors").module.state_dict()
    left = open_model(folder / "model.safetensors")
    assert all((left.module.state_dict()[name] == tensor).all() for name, tensor in chosen.items())
    assert left.measurements["certificate"] == compared.certificate.to_json()
    assert (folder / DATA).exists()


def test_the_promise_is_of_images_put_aside(found):
    folder, compared, _ = found
    data, aside = put_aside(open_data("digits", input_shape=(1, 8, 8)), seed=0)
    before, after = (
        which_right(open_model(path).module, aside, data) for path in (DIGITS.model, folder / "model.safetensors")
    )
    assert compared.certificate.observed == pytest.approx(Paired.of(before, after).drop)
    assert compared.certificate.images == len(aside) and compared.certificate.kept


def test_nothing_is_left_where_nothing_can_be_promised(tmp_path, monkeypatch):
    monkeypatch.setattr(shrinking, "_epochs", lambda *given: (0, {}))
    compared = shrink(job(tmp_path / "run", max_drop=0.001, seconds=0.1))
    assert compared.promised is None and not (tmp_path / "run" / "model.safetensors").exists()
    assert compared.promise.startswith("No promise of at most 0.1 points")


def test_all_of_the_time_is_for_a_target_that_passes(tmp_path, monkeypatch):
    clock, carried_out = [0.0], shrinking.carry_out

    def moving(cell, *given):
        clock[0] += 25
        return carried_out(cell, *given)

    monkeypatch.setattr(shrinking.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(shrinking, "carry_out", moving)
    monkeypatch.setattr(shrinking, "_epochs", lambda *given: (0, {}))
    monkeypatch.setattr(Judge, "drop", lambda self, folder: 1.0)
    shrink(job(tmp_path / "run", seconds=100.0))
    assert sorted(each.name for each in (tmp_path / "run").glob("obs-*")) == ["obs-0.500", "obs-0.750", "obs-0.875"]


def test_blocks_and_channels_are_tried_where_channels_alone_do_not_pass(tmp_path, monkeypatch):
    runs = []

    def only_mixed(tried, cell, decided=None):
        runs.append(cell.name)
        tried.done[cell.name] = None
        return cell.name.startswith("mixed") and cell.job.choice.target_macs >= 0.5

    monkeypatch.setattr(shrinking.Tried, "run", only_mixed)
    monkeypatch.setattr(shrinking.Tried, "passing", lambda tried: [])
    monkeypatch.setattr(shrinking.Tried, "decided", lambda tried: SimpleNamespace(save=lambda folder: None))
    monkeypatch.setattr(shrinking, "_epochs", lambda *given: (0, {}))
    monkeypatch.setattr(shrinking, "find_blocks", lambda *given: SimpleNamespace(found={"a": None}))
    shrink(job(tmp_path / "run"))
    pairs = [
        f"{method}-{target:.3f}" for target in (0.5, 0.25, 0.375, 0.438, 0.469, 0.484) for method in ("obs", "mixed")
    ]
    assert runs == [*pairs, "exits"]


def test_images_are_read_once_and_channels_judged_once_for_each_run(tmp_path, monkeypatch):
    """The trial that tells how many epochs there is time for is the first run's plan."""
    read, judged = [], []
    opened, ranked = opening._open_data, pruning.ranked
    monkeypatch.setattr(opening, "_open_data", lambda *given: read.append(given) or opened(*given))
    monkeypatch.setattr(pruning, "ranked", lambda *given: judged.append(given) or ranked(*given))
    monkeypatch.setattr(shrinking.Tried, "has_time", lambda tried, share=1.0: len(tried.done) < 2)
    shrink(job(tmp_path / "run", seconds=30.0))
    assert len(list((tmp_path / "run").glob("obs-*"))) == 2
    assert len(read) == 1 and len(judged) == 2


def test_milliseconds_that_cannot_be_reached_end_it_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(shrinking, "_epochs", lambda *given: (0, {}))

    def fails(*given):
        raise CompressorError("the target of 0.001 ms cannot be reached")

    monkeypatch.setattr(shrinking, "carry_out", fails)
    with pytest.raises(CompressorError, match=r"every run failed: obs-0.001ms: the target of 0.001 ms cannot be"):
        shrink(job(tmp_path / "run", target_ms=0.001))


def test_a_trained_network_is_needed(tmp_path):
    with pytest.raises(UsageError, match="starts from a trained model"):
        replace(job(tmp_path / "run"), model=ModelSettings(arch="torchvision:resnet18")).completed()


@pytest.mark.parametrize("name", ["model.safetensors", "package/model.safetensors"])
def test_the_network_that_is_read_is_not_deleted(name, tmp_path):
    model = tmp_path / name
    model.parent.mkdir(exist_ok=True)
    shutil.copyfile(DIGITS.model, model)
    asked = job(tmp_path)
    with pytest.raises(UsageError, match="would delete"):
        shrink(replace(asked, model=ModelSettings(str(model)), output=replace(asked.output, overwrite=True)))
    assert model.exists()


def test_a_run_that_goes_on_has_the_epochs_that_it_began_with(tmp_path):
    run = tmp_path / "run" / "obs-0.500"
    run.mkdir(parents=True)
    (run / "settings.json").write_text('{"command": "prune", "epochs": 7}')
    assert shrinking._epochs(job(tmp_path / "run"), tmp_path / "run", None, silent) == (7, {})


@pytest.mark.slow
def test_exits_and_int8_stand_in_one_order_with_the_pruned_networks(tmp_path, monkeypatch):
    """By milliseconds, and what is left is what was promised."""
    monkeypatch.setattr(shrinking, "_epochs", lambda *given: (0, {}))
    monkeypatch.setattr(shrinking.Search, "over", lambda self, first: self.high < 1)
    cheapest, seen = Judge.cheapest, {}
    asked = job(tmp_path / "run", max_drop=0.3, seconds=1000.0)
    monkeypatch.setattr(Judge, "cheapest", lambda judge, costs: cheapest(judge, seen.setdefault("costs", costs)))
    compared = shrink(replace(asked, output=OutputSettings(str(tmp_path / "run"))))
    names = {Path(name).name for name in seen["costs"]}
    assert {"obs-0.500", "exits", "taylor-0.500", "obs-0.500-int8"} <= names
    assert {Path(point.run).name: point.latency for point in compared.points if point.method != "start"} == {
        Path(name).name: cost for name, cost in seen["costs"].items()
    }
    assert [point.method for point in compared.points].count("start") == 1  # on the same images for every run
    assert compared.certificate.kept and compared.certificate.worst_class
    left = tmp_path / "run" / "package"
    if compared.promised.endswith("int8"):
        assert read_manifest(left).certificate == compared.certificate.to_json()
        verify_package(left)
    else:
        assert not left.exists() and (tmp_path / "run" / "model.safetensors").exists()
