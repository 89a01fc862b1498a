"""Whole runs in two processes: the structure of one process, one writer, and runs that go on in another number."""

import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import compressor
from compressor.errors import CompressorError
from compressor.pruning.adapnet import boundary, prune, schedule, tables
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.settings import PruneSettings
from compressor.runs.job import TrainJob
from compressor.runs.jobs import AdaptJob, DetachJob, PruneJob, ReplaceJob, RouteJob
from compressor.runs.resume import resume
from compressor.runs.run import run as run_job
from compressor.runs.settings import FINETUNE, GoalSettings, ModelSettings, OutputSettings
from compressor.training import distributed
from compressor.training.events import BatchEvent
from compressor.training.settings import TrainSettings
from tests.pruning.adapnet.running import digits, small_net
from tests.training.processes import together

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without processes")

MODEL = ModelSettings(arch="sample_models/digits_cnn.py:build", arch_arg=(("width", 0.25),))
TRAINED = ModelSettings(model="sample_models/digits_cnn.safetensors", arch="sample_models/digits_cnn.py:build")
PROCESSES = {"epochs": 1, "device": "cpu", "sync_bn": True, "log_seconds": 0.0}
TRAINING = TrainSettings(**PROCESSES)
ADAPNET = replace(
    PRESETS["quick"], startup_epochs=1, max_epochs=2, finetune_epochs=1, lsep=10, batch_size=64,
    beta_start=0.7, dict_size=96, lr=0.05,
)  # fmt: skip


def output(out):
    return OutputSettings(str(out), latency=False, onnx=False)


def adapnet_job(out, *, reconstruct=True):
    goals, settings = GoalSettings(undo_drop=0.5), replace(ADAPNET, reconstruct=reconstruct)
    return AdaptJob(MODEL, "digits", output(out), goals=goals, training=TRAINING, preset="quick", adapnet=settings)


DOUBLE = """
from torch import nn

from sample_models import digits_cnn


class Double(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.network = digits_cnn.build(width=width).double()

    def forward(self, x):
        return self.network(x.double())

    def float(self):  # networks are opened as float32
        return self


def build(width=0.25):
    return Double(width)


INPUT_SHAPE = (1, 8, 8)
"""


def run(job, *, interrupt=None):
    """The report as plain data; with `interrupt` the last process receives SIGTERM in that epoch, and the message."""

    def tell(event):
        late = isinstance(event, BatchEvent) and event.epoch == interrupt and event.batch == 3
        if late and distributed.rank() == distributed.size() - 1:
            signal.raise_signal(signal.SIGTERM)

    try:
        return run_job(job, tell).to_json()
    except CompressorError as error:
        return str(error)


def sizes(report):
    return [(layer["name"], layer["after"]) for layer in report["layers"]]


def early(report):
    """The edits of the first period that made any."""
    periods = [edit["period"] for edit in report["edits"]]
    return [(e["kind"], e["group"], e["channels"]) for e in report["edits"] if e["period"] == min(periods)]


def shape(folder):
    state = compressor.load(folder / "model.safetensors").state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def loop(method):
    """A user's own loop, each process with batches of its own: the weights' sum by name, and the edits."""
    torch.manual_seed(0)
    model, images = small_net(8), digits()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    given = {} if method == "adapnet" else {"target_macs": 0.5, "every": 4, "round_to": 1}
    adapnet = AdapNetSettings(lsep=6, max_epochs=1, beta_start=0.3, freeze=False, dict_size=96)
    asked = adapnet if method == "adapnet" else method
    pruner = compressor.Pruner(wrapped, images[0][:1], optimizer, asked, steps=24, **given)
    for step in range(26):
        x, y = (part[(2 * step + distributed.rank()) * 24 :][:24] for part in images)
        nn.functional.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    report = pruner.finish()
    return {name: each.sum().item() for name, each in model.named_parameters()}, report.edits, report.notes


@pytest.fixture
def eager(monkeypatch):
    """AdapNet that decides by little, and to the last period."""
    for room in (boundary, tables, prune):
        monkeypatch.setattr(room, "ROW_MIN", 20)
    monkeypatch.setattr(schedule, "STOP_FILTERS", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("method", ["taylor", "adapnet"])
def test_a_loop_of_ones_own_stays_alike_in_all_processes(method, tmp_path):
    first, second = together(loop, tmp_path, method)
    assert first == second and first[1]
    assert any("no more than the target" in note for note in first[2]) == (method == "taylor")


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_adapnet_makes_the_structure_of_one_process(tmp_path):
    alone = run(adapnet_job(tmp_path / "alone"))
    first, second = together(run, tmp_path, adapnet_job(tmp_path / "two"))
    assert {edit["kind"] for edit in alone["edits"]} >= {"prune", "merge"}
    # Sums over two processes differ in their last bits, which after some periods may turn a clustering.
    assert early(first) == early(alone) and early(alone)
    assert first["edits"] == second["edits"] and sizes(first) == sizes(second)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "alone" / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_in_double_precision_adapnets_structure_is_that_of_one_process_to_the_end(tmp_path):
    (tmp_path / "double.py").write_text(DOUBLE)

    def double(out):
        return replace(adapnet_job(out, reconstruct=False), model=ModelSettings(arch=f"{tmp_path / 'double.py'}:build"))

    def structure(report):
        return [(edit["period"], edit["kind"], edit["group"], edit["channels"]) for edit in report["edits"]]

    alone = run(double(tmp_path / "alone"))
    assert isinstance(alone, dict), alone
    first, second = together(run, tmp_path, double(tmp_path / "two"))
    assert structure(first) == structure(second) == structure(alone) and sizes(first) == sizes(alone)
    assert {edit["kind"] for edit in alone["edits"]} == {"prune", "merge", "insert"}
    assert {edit["period"] for edit in alone["edits"]} == set(range(4))
    mine, theirs = (compressor.load(tmp_path / name / "model.safetensors").state_dict() for name in ("alone", "two"))
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6) for name in mine)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_adapnet_goes_on_in_one_process(tmp_path):
    alone = run(adapnet_job(tmp_path / "alone"))
    told = together(partial(run, interrupt=1), tmp_path, adapnet_job(tmp_path / "two"))
    assert all("compressor resume" in text for text in told)
    done = resume(str(tmp_path / "two")).to_json()
    assert early(done) == early(alone) and [row["epoch"] for row in done["rows"] if row["phase"] != "period"] == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "job",
    [
        PruneJob(TRAINED, choice=PruneSettings(method="l1", target_macs=0.5), data="digits", training=TRAINING),
        PruneJob(TRAINED, choice=PruneSettings(method="taylor", ratio=0.3), data="digits", training=TRAINING),
        TrainJob(MODEL, "digits", training=TRAINING),
        TrainJob(TRAINED, "digits", training=replace(FINETUNE, **PROCESSES), command="compressor finetune"),
        DetachJob(TRAINED, "digits", training=replace(TRAINING, lr=0.01)),
        RouteJob(TRAINED, "digits", training=TRAINING),
        ReplaceJob(TRAINED, "digits", until="6", training=TRAINING),
    ],
    ids=lambda job: job.command.split()[-1] + getattr(getattr(job, "choice", None), "method", ""),
)
def test_every_command_does_what_one_process_does(tmp_path, job):
    alone = run(replace(job, output=output(tmp_path / "alone")))
    assert isinstance(alone, dict), alone
    first, second = together(run, tmp_path, replace(job, output=output(tmp_path / "two")))
    assert sizes(first) == sizes(second) == sizes(alone)
    assert shape(tmp_path / "two") == shape(tmp_path / "alone")
    assert first["after"]["top1"] == pytest.approx(alone["after"]["top1"], abs=0.05)
