"""Local learning: own losses, own optimizers, the batch's winner handed on, and the memory it saves."""

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F

from compressor.errors import UsageError
from compressor.primenet.learning import LOCAL_BETAS, LOCAL_EPS, LocalLearning, peak_bytes, training_memory
from compressor.primenet.settings import PrimeNetSettings
from tests.primenet.nets import batch, network


def test_every_capsule_takes_the_step_of_an_adam_of_its_own():
    net = network().train()
    settings = PrimeNetSettings(local_lr=0.01)
    learning = LocalLearning(net, settings)
    reference = copy.deepcopy(net.stage.block)
    adams = {
        scale: torch.optim.Adam(
            [*capsule.parameters(), *reference.heads[scale].parameters()], 0.01, LOCAL_BETAS, LOCAL_EPS
        )
        for scale, capsule in reference.capsules.items()
    }
    for _ in range(3):
        x, y = batch()
        learning.learn(x, y)
        for scale, capsule in reference.capsules.items():
            adams[scale].zero_grad()
            F.cross_entropy(reference.heads[scale](capsule(x)), y).backward()
            adams[scale].step()
    for (name, ours), theirs in zip(net.stage.block.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_the_maps_with_the_smallest_loss_are_handed_on():
    net = network().train()
    reference = copy.deepcopy(net.stage.block)
    learning = LocalLearning(net, net.settings)
    x, y = batch()
    maps, losses, winner = learning.learn(x, y)
    own = {scale: capsule(x) for scale, capsule in reference.capsules.items()}
    expected = [F.cross_entropy(reference.heads[scale](own[scale]), y) for scale in own]
    torch.testing.assert_close(losses, torch.stack(expected))
    assert winner == losses.argmin()
    torch.testing.assert_close(maps, list(own.values())[int(winner)])
    assert not maps.requires_grad


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_capsule_can_win(order):
    """Losses in every order: the number of the winner, its maps, and the losses themselves."""
    net = network().train()
    x = batch(8)[0]
    y = torch.zeros(8, dtype=torch.int64)
    for rank, head in zip(order, net.stage.block.heads.values()):
        head[-1].weight.data.mul_(0.01)
        head[-1].bias.data = torch.tensor([-float(rank), 0, 0, 0])  # the higher the rank, the larger the loss
    reference = copy.deepcopy(net.stage.block)
    maps, losses, winner = LocalLearning(net, net.settings).learn(x, y)
    assert int(winner) == order.index(0)
    assert losses.argsort().tolist() == [order.index(rank) for rank in range(3)]
    torch.testing.assert_close(maps, list(reference.capsules.values())[order.index(0)](x))


def test_equal_losses_choose_the_smaller_scale():
    net = network(scales=(3, 5)).train()
    for capsule in net.stage.block.capsules.values():
        capsule.conv.weight.data.zero_()
    for head in net.stage.block.heads.values():
        head[-1].weight.data.zero_()
    assert LocalLearning(net, net.settings).learn(*batch())[2] == 0


def test_the_rest_gets_its_own_gradients_and_the_block_keeps_none():
    net = network().train()
    learning = LocalLearning(net, net.settings)
    x, y = batch()
    loss, right = learning(net, x, y)
    assert all(parameter.grad is None for parameter in net.stage.block.parameters())
    trunk = [*net.stage.projection.parameters(), *net.rest.parameters()]
    assert all(parameter.grad is not None for parameter in trunk)
    assert loss > 0 and 0 <= right <= len(y)


def test_the_network_learns_nothing_through_the_block():
    """Twice the same capsules, with a different network behind: they end at the same weights."""
    one, other = network().train(), network().train()
    other.stage.block.load_state_dict(one.stage.block.state_dict())
    batches = [batch() for _ in range(3)]
    for net in (one, other):
        learning = LocalLearning(net, net.settings)
        for x, y in batches:
            learning(net, x, y)
    for ours, theirs in zip(one.stage.block.parameters(), other.stage.block.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_epoch_sums_up_losses_and_choices_and_begins_anew():
    net = network().train()
    learning = LocalLearning(net, net.settings)
    seen = []
    for _ in range(4):
        x, y = batch()
        seen.append(learning.learn(x, y)[1])
        learning._note(seen[-1], seen[-1].argmin())
    row = learning.close_epoch()
    mean = torch.stack(seen).mean(0).tolist()
    assert row["local_losses"] == pytest.approx(dict(zip("357", mean)))
    assert sum(row["chosen"].values()) == 4
    assert sum(learning.close_epoch()["chosen"].values()) == 0


def test_state_goes_on_to_the_same_weights():
    net = network().train()
    learning = LocalLearning(net, net.settings)
    batches = [batch() for _ in range(4)]
    for x, y in batches[:2]:
        learning(net, x, y)
    again = copy.deepcopy(net)
    resumed = LocalLearning(again, again.settings)
    resumed.load_state_dict(copy.deepcopy(learning.state_dict()))
    for model, each in ((net, learning), (again, resumed)):
        for x, y in batches[2:]:
            each(model, x, y)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert learning.close_epoch() == resumed.close_epoch()


def test_refuses_a_batch_of_one():
    net = network().train()
    with pytest.raises(UsageError, match="batches of one image"):
        LocalLearning(net, net.settings)(net, *batch(1))


def test_peak_memory_is_that_of_the_tensors_that_live_at_once():
    x = torch.zeros(1000)

    def run():
        y = x + 1
        z = y * 2
        del y
        z.view(10, 100).mul_(2)  # a view and an operator in place take nothing
        torch.zeros(250)

    assert peak_bytes(run) == 2 * 4000  # y and z; later z and the 250


def test_local_learning_takes_less_memory_than_back_propagation_at_the_end():
    net = network()
    x, y = batch(16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = training_memory(net, x, y)
    assert found.local < 0.8 * found.joint
    assert set(found.plain) == {3, 5, 7}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
