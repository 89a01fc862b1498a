"""AdapNet from a network to a report: its phases, targets and limits, and that a broken run goes on exactly."""

import base64
import io
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import compressor
from compressor.errors import CompressorError, ModelError, UsageError
from compressor.pruning.adapnet import boundary, prune, schedule, tables
from compressor.pruning.adapnet.section import galleries, section
from compressor.pruning.adapnet.settings import PRESETS
from compressor.pruning.adapnet.subspace import new_autoencoder
from compressor.pruning.adapnet.unit import Unit
from compressor.report.report import Report
from compressor.runs.jobs import AdaptJob
from compressor.runs.models import open_model
from compressor.runs.run import dry_run, run
from compressor.runs.settings import GoalSettings, ModelSettings, OutputSettings
from compressor.runs.stages import PeriodEvent
from compressor.training.events import BatchEvent, NoteEvent
from compressor.training.interrupt import Interrupted
from compressor.training.settings import DistillSettings, TrainSettings

ARCH = "sample_models/digits_cnn.py:build"
# A fifth of the network's width, so that a run takes seconds; periods of half an epoch.
SETTINGS = replace(
    PRESETS["quick"],
    startup_epochs=2,
    max_epochs=4,
    finetune_epochs=1,
    lsep=10,
    batch_size=64,
    beta_start=0.7,
    dict_size=96,
    lr=0.05,
)


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """Filters are judged by fewer maps than usual, and the changes of structure take all their epochs."""
    with pytest.MonkeyPatch.context() as patched:
        for room in (boundary, tables, prune):
            patched.setattr(room, "ROW_MIN", 20)
        patched.setattr(schedule, "STOP_FILTERS", 0)
        yield


def job(out, goals=None, model=None, distilling=None, **changes):
    return AdaptJob(
        model or ModelSettings(arch=ARCH, arch_arg=(("width", 0.25),)),
        "digits",
        OutputSettings(str(out), latency=False, onnx=False),
        goals=goals or GoalSettings(round_to=1),
        training=TrainSettings(log_seconds=0.0),
        preset="quick",
        adapnet=replace(SETTINGS, **changes),
        distilling=distilling or DistillSettings(),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    events = []
    report = run(job(out), events.append)
    return out, report, events


def state_of(out):
    return open_model(out / "model.safetensors", arch=ARCH).module.state_dict()


def assert_same_run(out, report, other_out, other):
    assert report.edits == other.edits
    mine, theirs = state_of(out), state_of(other_out)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)

    def without_times(rows):
        return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]

    assert without_times(report.rows) == without_times(other.rows)
    assert report.after.top1 == other.after.top1


def test_a_run_from_scratch_prunes_merges_and_inserts(whole):
    out, report, _ = whole
    assert set(Counter(edit["kind"] for edit in report.edits)) == {"prune", "merge", "insert"}
    for edit in report.edits:
        assert {"period", "group", "channels", "why"} <= edit.keys()
    assert report.after.params < report.before.params and report.after.macs < report.before.macs
    assert report.before.top1 < 0.3 < report.after.top1
    assert report.frozen == {"12": "output of the model"}
    assert Report.load(out).edits == report.edits
    assert (out / "metrics.jsonl").read_text().count('"phase": "period"') == 8


def test_the_phases_follow_each_other(whole):
    _, report, _ = whole
    assert [row["phase"] for row in report.rows if row["phase"] != "period"] == [
        *["startup"] * 2, *["periods"] * 4, "finetune",
    ]  # fmt: skip
    epochs = [row["epoch"] for row in report.rows]
    assert epochs == sorted(epochs) and len(set(epochs)) == len(epochs)
    first = {edit["period"] for edit in report.edits}
    assert min(first) >= 0 and max(first) <= 7


def test_the_saved_network_is_the_one_that_was_measured(whole):
    out, report, _ = whole
    module = compressor.load(out / "model.safetensors", arch=ARCH)
    assert sum(p.numel() for p in module.parameters()) == report.after.params
    assert all(layer.after == module.get_submodule(layer.name).weight.shape[0] for layer in report.layers)


def test_every_period_is_told(whole):
    _, report, events = whole
    told = [event for event in events if isinstance(event, PeriodEvent)]
    assert [event.row["period"] for event in told] == list(range(8))
    for kind in ("prune", "merge", "insert"):
        count = sum(len(e["channels"]) if kind == "prune" else 1 for e in report.edits if e["kind"] == kind)
        assert sum(event.row[f"{kind}s"] for event in told) == count
    assert told[-1].text.startswith("period 7  pruned ")


def test_the_page_shows_every_layer_over_the_periods(whole):
    out, report, _ = whole
    (section,) = report.sections
    filters, concepts, edits = section.plots
    layers = [curve for curve in filters.curves if not curve.look]  # the others are marks of edits
    assert [curve.label for curve in layers] == [curve.label for curve in concepts.curves] == ["0", "3", "7"]
    assert [len(curve.x) for curve in layers] == [8] * 3
    marked = {(x, curve.label) for curve in filters.curves if curve.look for x in curve.x}
    words = {"prune": "pruned", "merge": "merged", "insert": "inserted"}
    assert marked == {(float(edit["period"]), words[edit["kind"]]) for edit in report.edits}
    assert [row[0] for row in section.tables[0].rows] == ["0", "3", "7"]
    assert sum(sum(curve.y) for curve in edits.curves if curve.label != "frozen") == sum(
        len(edit["channels"]) if edit["kind"] == "prune" else 1 for edit in report.edits
    )
    assert "<h2>AdapNet</h2>" in (out / "report.html").read_text()


def interrupting(when):
    """A listener that sends SIGINT once, at the first event for which `when` holds."""
    sent = []

    def tell(event):
        if not sent and when(event):
            sent.append(event)
            signal.raise_signal(signal.SIGINT)

    return tell


@pytest.mark.parametrize(
    "when",
    [
        pytest.param(
            lambda event: isinstance(event, BatchEvent) and event.epoch == 0 and event.batch == 7,
            marks=pytest.mark.slow,
        ),
        lambda event: isinstance(event, PeriodEvent) and event.row["period"] == 4,
        pytest.param(
            lambda event: isinstance(event, BatchEvent) and event.epoch == 5 and event.batch == 4,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda event: isinstance(event, BatchEvent) and event.epoch == 6 and event.batch == 3,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["in the start-up", "right after an edit", "within a period", "in fine-tuning"],
)
def test_a_broken_run_goes_on_to_the_same_network(when, whole, tmp_path):
    out, report, _ = whole
    broken = tmp_path / "broken"
    with pytest.raises(Interrupted, match="compressor resume"):
        run(job(broken), interrupting(when))
    assert_same_run(out, report, broken, run(job(broken), resume=True))


def test_the_structure_stops_changing_when_the_target_is_met(tmp_path):
    report = run(job(tmp_path / "run", GoalSettings(target_params=0.9, round_to=1), startup_epochs=1))
    assert 0.85 < report.after.params / report.before.params <= 0.9
    assert "target" not in report.refused
    assert sum(row["phase"] == "periods" for row in report.rows) < SETTINGS.max_epochs


def test_widths_are_multiples_at_the_end_and_the_target_holds(tmp_path):
    report = run(job(tmp_path / "run", GoalSettings(target_macs=0.8, round_to=4), startup_epochs=1))
    changed = [layer for layer in report.layers if layer.after != layer.before]
    assert changed and all(layer.after % 4 == 0 for layer in changed)
    assert report.after.macs <= 0.8 * report.before.macs
    again = compressor.load(tmp_path / "run" / "model.safetensors", arch=ARCH)
    assert sum(p.numel() for p in again.parameters()) == report.after.params


def test_a_target_out_of_reach_keeps_what_came_of_it_and_says_so(tmp_path):
    notes = []
    report = run(
        job(tmp_path / "run", GoalSettings(target_macs=0.05), startup_epochs=0, max_epochs=2, finetune_epochs=0),
        lambda event: notes.append(event.text) if isinstance(event, NoteEvent) else None,
    )
    assert "were asked for" in report.refused["target"] and report.refused["target"] in notes
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_plan_that_costs_too_much_is_undone_and_reported(tmp_path, monkeypatch):
    falling = iter([0.9 - 0.1 * number for number in range(1000)])
    monkeypatch.setattr("compressor.runs.adapnet.measured_here", lambda subject: next(falling))
    report = run(job(tmp_path / "run", GoalSettings(undo_drop=0.05), startup_epochs=0, max_epochs=3))
    assert report.edits == () and report.after.params == report.before.params
    assert len(report.refused) >= 2
    assert all("more than `undo_drop` allows: undone" in reason for reason in report.refused.values())


def test_distilling_needs_somebody_to_learn_from(tmp_path):
    with pytest.raises(UsageError, match="`distill` has no teacher"):
        run(job(tmp_path / "run", distilling=DistillSettings(True), startup_epochs=0))


def test_a_temperature_below_zero_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="distill_temperature is -1, and has to be 0 or more"):
        run(job(tmp_path / "run", distilling=DistillSettings(True, distill_temperature=-1.0)))
    assert not (tmp_path / "run").exists()


def test_an_untrained_network_learns_from_its_start_up_copy(tmp_path):
    short = {"startup_epochs": 1, "max_epochs": 2, "finetune_epochs": 1}
    report = run(job(tmp_path / "run", distilling=DistillSettings(True), **short))
    assert report.after.top1 > 0.3


def test_a_dry_run_says_what_would_be_judged_and_writes_nothing(tmp_path):
    report = dry_run(job(tmp_path / "run"))
    assert "would train 2 epochs without changes, up to 4 in which every 10 steps" in report.notes[-2]
    assert "0 (8), 3 (16), 7 (16)" in report.notes[-1]
    assert report.after.macs is None and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_papers_decay_is_remarked_on_where_no_batch_norm_makes_up_for_it(tmp_path):
    def noted(weight_decay, arch=ARCH):
        model = ModelSettings(arch=str(arch), input=(1, 8, 8))
        return "weight decay" in " ".join(dry_run(job(tmp_path / "run", model=model, weight_decay=weight_decay)).notes)

    plain = tmp_path / "plain.py"
    plain.write_text(
        "from torch import nn\n"
        "def build():\n"
        "    convolution = nn.Conv2d(1, 8, 3, padding=1)\n"
        "    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))\n"
    )
    built = f"{plain}:build"
    assert noted(0.01, built) and not noted(5e-4, built) and not noted(0.01)


def test_nothing_to_edit_is_an_error_with_reasons(tmp_path):
    with pytest.raises(ModelError, match="nothing that AdapNet could change: .*(kept|keep)"):
        run(job(tmp_path / "run", GoalSettings(keep=("*",))))


@pytest.mark.parametrize(
    ("changes", "goals", "message"),
    [
        ({"lsep": 60}, {}, "fits 1 times into 4 epochs of 20 steps.*`lsep` 26 or less, or `max_epochs` 9 or more"),
        ({"max_epochs": 0}, {}, "max_epochs is 0, and has to be 1 or more"),
        ({}, {"target_macs": 2e9}, "no more than the 2,000,000,000 of `target_macs`"),
        ({}, {"target_params": -1.0}, "`target_params` is -1"),
        ({}, {"undo_drop": 2.0}, "undo_drop is 2, and has to be 1 or less"),
    ],
    ids=["long period", "no epochs", "met already", "negative", "drop"],
)
def test_settings_that_make_no_sense_are_one_line_before_anything_is_written(changes, goals, message, tmp_path):
    with pytest.raises(CompressorError, match=message):
        run(job(tmp_path / "run", GoalSettings(**goals), **changes))
    assert not (tmp_path / "run").exists()


def unit_of(concepts):
    unit = Unit("conv", [0, 1], 8, new_autoencoder(torch.Generator().manual_seed(0), torch.device("cpu")))
    unit.table = torch.tensor([[1.0, 6.0, 2.0], [1.0, 6.0, 4.0]], dtype=torch.float64)
    unit.exemplars = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(1)).half()
    unit.owners = torch.tensor([0, 1, 1, 2, 2])
    unit.concepts = concepts
    return unit


def opened(uri):
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)), dtype=float)


def test_the_strongest_concept_stands_first_with_its_own_maps():
    unit = unit_of([0, 1])
    [gallery] = galleries([unit])
    assert [(label, len(pictures)) for label, pictures in gallery.rows] == [("60 %", 2), ("10 %", 1)]
    map_ = unit.exemplars[1].float().numpy()
    wanted = 255 * (map_ - map_.min()) / (map_.max() - map_.min())
    assert np.abs(opened(gallery.rows[0][1][0]) - wanted).max() <= 0.51


def test_a_layer_without_concepts_has_none_and_many_layers_are_thinned():
    assert galleries([unit_of([])]) == ()
    assert len(galleries([unit_of([1])] * 40)) <= 6


def test_marks_stand_where_a_layer_was_edited():
    rows = [
        {"period": p, "frozen": 0, "prunes": 0, "merges": 0, "inserts": 0}
        | {"groups": [{"group": "conv", "filters": 8 - p, "clusters": 3, "concepts": 2}]}
        for p in range(3)
    ]
    edits = [{"kind": "prune", "period": 2, "group": "conv"}, {"kind": "prune", "period": 1, "group": "elsewhere"}]
    [part] = section(rows, edits)
    [marks] = [curve for curve in part.plots[0].curves if curve.look]
    assert (marks.label, marks.x, marks.y) == ("pruned", (2.0,), (6.0,))
