"""The two phases from end to end: what learns when, what is kept, and going on after being stopped in either."""

from dataclasses import replace

import pytest
import torch

from compressor.errors import UsageError
from compressor.primenet.learning import best_scale, local_losses
from compressor.primenet.network import PrimeNetwork
from compressor.primenet.phases import CLASSIFIER, REPRESENTATION, train_in_two_phases
from compressor.primenet.settings import REPRESENTATION as PAPER
from compressor.training.checkpoint import Saving
from compressor.training.evaluate import evaluate
from compressor.training.events import EpochEvent
from tests.primenet.nets import CLASSES, network, stripes

QUICK = replace(PAPER, epochs=2, batch_size=8, lr=0.01, device="cpu")


def fresh(**settings) -> PrimeNetwork:
    torch.manual_seed(0)
    return network(retrain_epochs=2, retrain_batch_size=4, local_lr=0.01, **settings)


def test_learns_stripes_and_keeps_the_scale_that_did_best():
    net, data = fresh(), stripes()
    told = []
    learnt = train_in_two_phases(net, data, QUICK, on_event=told.append)
    assert evaluate(net, data.test, data).top1 > 0.6 > 1 / CLASSES
    assert net.stage.block.scales == learnt.kept == (best_scale({int(k): v for k, v in learnt.losses.items()}),)
    assert [row["phase"] for row in learnt.rows] == [REPRESENTATION] * 2 + [CLASSIFIER] * 2
    assert [row["epoch"] for row in learnt.rows] == [0, 1, 2, 3]
    for row in learnt.rows[:2]:
        assert set(row["local_losses"]) == set(row["chosen"]) == {"3", "5", "7"}
        assert sum(row["chosen"].values()) == 4  # batches of the epoch
    assert learnt.rows[1]["validation_local_losses"] == pytest.approx(learnt.losses)
    assert [event.row for event in told if isinstance(event, EpochEvent)] == learnt.rows


def test_the_chosen_scale_has_the_smallest_loss_on_validation_data():
    net, data = fresh(), stripes()
    learnt = train_in_two_phases(net, data, replace(QUICK, epochs=1))
    again, _ = fresh(), None
    train_in_two_phases(_with_second(again, 0, "entropy"), data, replace(QUICK, epochs=1))
    found = local_losses(again, data.validation, data)
    assert {str(scale): loss for scale, loss in found.items()} == pytest.approx(learnt.losses, rel=1e-5)


def test_equal_losses_keep_the_smaller_scale():
    assert best_scale({7: 0.1, 3: 0.1, 5: 0.2}) == 3


def test_the_block_is_held_in_the_second_phase():
    data = stripes()
    one, two = (_with_second(fresh(), epochs) for epochs in (0, 2))
    for net in (one, two):
        train_in_two_phases(net, data, QUICK)
    for (name, ours), theirs in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs) == name.startswith("stage.block"), name


def test_the_last_layer_alone_is_retrained_where_asked():
    data = stripes()
    one, two = (_with_second(fresh(retrain="head"), epochs) for epochs in (0, 2))
    for net in (one, two):
        train_in_two_phases(net, data, QUICK)
    for (name, ours), theirs in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs) == (not name.startswith("rest.5")), name


def test_validation_figures_are_those_of_the_scale_that_would_be_kept():
    net, data = _with_second(fresh(), 0), stripes()
    learnt = train_in_two_phases(net, data, replace(QUICK, epochs=1))
    result = evaluate(net, data.validation, data)
    assert learnt.rows[0]["validation_top1"] == result.top1
    assert learnt.rows[0]["validation_loss"] == pytest.approx(result.loss)
    silent = train_in_two_phases(_with_second(fresh(), 0), data, replace(QUICK, epochs=1, evaluate_every=0))
    assert silent.rows[0]["validation_top1"] is None and silent.losses == learnt.losses


def test_entropy_keeps_every_scale():
    net, data = fresh(inference="entropy"), stripes()
    assert train_in_two_phases(net, data, QUICK).kept == (3, 5, 7)
    assert len(net.stage.block.heads) == 3 and evaluate(net, data.test, data).top1 > 0.5


class Stop(Exception):
    pass


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 3])
def test_goes_on_to_the_same_weights(stopped_after, tmp_path):
    data = stripes()
    whole = fresh()
    expected = train_in_two_phases(whole, data, QUICK)

    def stop(event):
        # Told before the epoch's checkpoint is written: the run goes on from the one before it.
        if isinstance(event, EpochEvent) and event.row["epoch"] == stopped_after:
            raise Stop

    with pytest.raises(Stop):
        train_in_two_phases(fresh(), data, QUICK, on_event=stop, saving=Saving(tmp_path))
    again = fresh()
    torch.manual_seed(99)
    learnt = train_in_two_phases(again, data, QUICK, saving=Saving(tmp_path, resume=True))
    for (name, ours), theirs in zip(again.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert learnt.losses == expected.losses and learnt.kept == expected.kept
    timeless = [[{key: row.get(key) for key in ("phase", "epoch", "train_loss", "local_losses", "chosen")}
                 for row in each.rows] for each in (learnt, expected)]  # fmt: skip
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(("change", "training"), [({}, {"batch_size": 1}), ({"retrain_batch_size": 1}, {})])
def test_refuses_batches_of_one_image(change, training):
    net = fresh()
    net.settings = replace(net.settings, **change)
    with pytest.raises(UsageError, match="batches of one image"):
        train_in_two_phases(net, stripes(), replace(QUICK, **training))


def _with_second(net: PrimeNetwork, epochs: int, inference: str = "static") -> PrimeNetwork:
    net.settings = replace(net.settings, retrain_epochs=epochs, inference=inference)
    return net


@pytest.mark.gpu
def test_learns_on_a_gpu_and_goes_on_there(tmp_path):
    net, data = fresh(), stripes()
    learnt = train_in_two_phases(net, data, replace(QUICK, device="cuda"), saving=Saving(tmp_path))
    assert len(learnt.rows) == 4 and next(net.parameters()).is_cuda
    again = train_in_two_phases(fresh(), data, replace(QUICK, device="cuda"), saving=Saving(tmp_path, resume=True))
    assert again.losses == learnt.losses and again.kept == learnt.kept
