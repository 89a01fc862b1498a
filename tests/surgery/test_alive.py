"""Edits while something of the model is alive: outputs, views, references, hooks, optimizers of every kind."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from compressor.errors import ModelError
from compressor.graph import capture
from compressor.surgery import Insert, Merge, Plan, Prune, operate_

X, Y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])


def network():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )


def loss_of(model):
    return functional.cross_entropy(model(X), Y)


def edit_(model, optimizer=None, kept=(1, 2, 4)):
    """Leave three of the six channels of layer 0."""
    channels = capture(model, X)
    ids = channels.group("0").ids
    gone = tuple(int(ids[i]) for i in range(len(ids)) if i not in kept)
    return operate_(model, Plan((Prune("0", gone, "t"),)), channels, optimizer)


def spent_loss(model):
    loss = loss_of(model)
    loss.backward()
    return loss


def kept_graph(model):
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    return loss


def view(model):
    return model[0].weight[0]


def second_order(model):
    loss = loss_of(model)
    return torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


ALIVE = {
    "loss": spent_loss,
    "output": lambda model: model(X),
    "retained graph": kept_graph,
    "view": view,
    "detached": lambda model: model[0].weight.detach(),
    "weak reference": lambda model: weakref.ref(model[0].weight),
    "gradient of a gradient": second_order,
    "list of parameters": lambda model: list(model.parameters()),
    "output in evaluation": lambda model: model.eval()(X),
}


@pytest.mark.parametrize("kind", ALIVE)
def test_training_goes_on_whatever_is_alive(kind):
    model = network()
    alive = ALIVE[kind](model)
    parameters = list(model.parameters())
    edit_(model)
    for parameter in model.parameters():
        parameter.grad = None
    loss_of(model).backward()
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert all(parameter.grad.shape == parameter.shape for parameter in parameters)
    assert [tuple(parameter.shape) for parameter in parameters[:4]] == [(3, 3, 3, 3), (3,), (3,), (3,)]
    del alive


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.BatchNorm1d(3), nn.PReLU(3)])
def test_an_output_from_before_cannot_be_backpropagated(layer):
    """Not even where shapes would fit: of a bias nothing is saved, and a scale of one channel spreads."""
    model = nn.Sequential(nn.Linear(5, 3), layer, nn.Linear(4 if isinstance(layer, nn.Linear) else 3, 2))
    x = torch.randn(2, 5)
    out = model(x)
    channels = capture(model, x)
    operate_(model, Plan((Prune("0", tuple(channels.group("0").ids[1:].tolist()), "t"),)), channels)
    with pytest.raises((RuntimeError, ModelError), match="before the layers were edited|modified by an inplace"):
        out.sum().backward()


def test_a_bias_from_before_takes_no_gradient():
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2))
    sum_of_bias = (model[0].bias + 1).sum()  # saves nothing
    channels = capture(model, torch.zeros(2, 3))
    operate_(model, Plan((Prune("0", (int(channels.group("0").ids[0]),), "t"),)), channels)
    with pytest.raises(ModelError, match="before the layers were edited"):
        sum_of_bias.backward()
    assert model[0].bias.grad is None


def test_an_edit_that_keeps_shapes_outdates_what_was_saved_too():
    model, x = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)), torch.randn(2, 3, requires_grad=True)
    out = model(x)
    channels = capture(model, x)
    one, two, three, *_ = channels.group("0").ids.tolist()
    operate_(model, Plan((Merge("0", one, two, "t"), Insert("0", three, "t"))), channels)
    assert model[1].weight.shape == (2, 6)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        torch.autograd.grad(out.sum(), x)  # no parameter's gradient is asked for


def test_parameters_made_in_inference_mode_can_be_edited():
    with torch.inference_mode():
        model = network().eval()
    channels = capture(network(), X)
    for size in (5, 4):
        channels = operate_(model, Plan((Prune("0", (int(channels.group("0").ids[0]),), "t"),)), channels)
        with torch.no_grad():
            assert model(X).shape == (4, 2) and model[0].weight.shape[0] == size
    assert all(parameter.is_inference() for parameter in model.parameters())


def test_hooks_and_attributes_stay():
    model = network()
    weight = model[0].weight
    seen = []
    weight.register_hook(lambda grad: seen.append(grad.shape) or 2 * grad)
    handle = weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.shape))
    weight.owner = "me"
    plain = copy.deepcopy(model)
    alive = loss_of(model)
    edit_(model)
    edit_(plain)
    seen.clear()
    for each in (model, plain):
        each.zero_grad()
        loss_of(each).backward()
    assert seen == [weight.shape, weight.shape] and weight.owner == "me"
    torch.testing.assert_close(weight.grad, 2 * plain[0].weight.grad)
    handle.remove()
    loss_of(model).backward()
    assert len(seen) == 3
    del alive


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_that_are_not_stepped_yet_are_edited(frozen):
    model = network()
    model[0].bias.requires_grad_(not frozen)
    loss_of(model).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    edit_(model)
    kept = torch.tensor([1, 2, 4])
    assert torch.equal(model[0].weight.grad, before["0.weight"][kept])
    assert torch.equal(model[5].weight.grad, before["5.weight"][:, kept])
    assert torch.equal(model[5].bias.grad, before["5.bias"])
    assert model[0].bias.requires_grad is not frozen


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.9),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1, history_size=3),
}


def fit(model, optimizer, steps=2):
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    fit(model, optimizer)
    scheduler.step()
    weight = model[0].weight
    state = {key: value.clone() for key, value in optimizer.state[weight].items() if torch.is_tensor(value)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    edit_(model, optimizer)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    kept = torch.tensor([1, 2, 4])
    if name != "lbfgs":
        assert state and set(optimizer.state[weight]) >= set(state)
    for key, value in state.items():
        now = optimizer.state[weight].get(key)
        if name == "lbfgs":
            assert now is None
        elif value.ndim and len(value) == 6:
            assert torch.equal(now, value[kept])
        else:
            assert torch.equal(now, value)
    fit(model, optimizer)
    scheduler.step()
    assert all(parameter.isfinite().all() for parameter in parameters)


def test_state_of_shapes_of_its_own_starts_again():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p].setdefault("flat", torch.zeros(p.numel()))
                    self.state[p].setdefault("steps", [1, 2])
                    p.data.view(-1).add_(self.state[p]["flat"])

    model = network()
    optimizer = Odd(model.parameters(), 0.1)
    optimizer.step()
    edit_(model, optimizer)
    assert "flat" not in optimizer.state.get(model[0].weight, {})
    assert len(optimizer.state[model[5].bias]["flat"]) == 2, "what was not edited stays"
    optimizer.step()


def test_an_inserted_channel_starts_without_moments():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    fit(model, optimizer)
    channels = capture(model, X)
    before = optimizer.state[model[0].weight]["exp_avg"].clone()
    operate_(model, Plan((Insert("0", int(channels.group("0").ids[0]), "t"),)), channels, optimizer)
    after = optimizer.state[model[0].weight]["exp_avg"]
    assert not after[1].any() and torch.equal(after[[0, 2, 3, 4, 5, 6]], before)


def test_a_gradient_scaler_goes_on():
    model = network()
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), torch.amp.GradScaler("cpu")

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    alive = step()
    edit_(model, optimizer)
    assert step().isfinite() and alive.isfinite()


@pytest.mark.parametrize("form", [torch.channels_last, torch.channels_last_3d, torch.contiguous_format])
def test_memory_formats_stay(form):
    conv, x = (nn.Conv3d, torch.randn(2, 3, 5, 5, 5)) if form is torch.channels_last_3d else (nn.Conv2d, X)
    model = nn.Sequential(conv(3, 6, 3), nn.ReLU(), conv(6, 2, 2)).to(memory_format=form)
    model(x).sum().backward()
    channels = capture(model, x)
    operate_(model, Plan((Prune("0", (int(channels.group("0").ids[0]),), "t"),)), channels)
    for tensor in (model[0].weight, model[2].weight, model[0].weight.grad):
        assert tensor.is_contiguous(memory_format=form)


def test_a_sparse_gradient_stays_sparse():
    model = nn.Sequential(nn.Embedding(7, 6, sparse=True), nn.Linear(6, 2))
    x = torch.tensor([[1, 2], [4, 1]])
    model(x).sum().backward()
    before = model[0].weight.grad.to_dense()
    channels = capture(model, x)
    (columns,) = channels.free
    operate_(model, Plan((Prune(columns.name, (int(columns.ids[0]),), "t"),)), channels)
    assert model[0].weight.grad.is_sparse and torch.equal(model[0].weight.grad.to_dense(), before[:, 1:])


def test_in_inference_mode_parameters_stay_trainable():
    model = network()
    channels = capture(model, X)
    with torch.inference_mode():
        operate_(model, Plan((Prune("0", (int(channels.group("0").ids[0]),), "t"),)), channels)
    loss_of(model).backward()
    assert not any(parameter.is_inference() for parameter in model.parameters())


@pytest.mark.parametrize("fault", ["size", "rows", "interrupted"])
def test_an_edit_that_fails_halfway_changes_nothing(fault, monkeypatch):
    class Stubborn(nn.Conv2d):
        locked = False

        def __setattr__(self, name, value):
            if self.locked and name == "in_channels":
                raise KeyboardInterrupt if fault == "interrupted" else AttributeError("no")
            super().__setattr__(name, value)

    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Stubborn(6, 2, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    out = model(X)
    out.sum().backward(retain_graph=True)
    optimizer.step()
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: grad)
    channels = capture(model, X)
    model[2].locked = fault != "rows"
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    attributes, grads = dict(vars(model[0])), [(p, p.grad, p.grad.clone()) for p in model.parameters()]
    first = int(channels.group("0").ids[0])
    plan = {"rows": Plan((Insert("0", first, "t", {"0.weight": torch.zeros(1)}),))}
    with pytest.raises((ModelError, KeyboardInterrupt, RuntimeError)):
        operate_(model, plan.get(fault, Plan((Prune("0", (first,), "t", means=(1.0,)),))), channels, optimizer)
    assert all(torch.equal(before[0][key], value) for key, value in model.state_dict().items())
    for key, state in optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], before[1]["state"][key]["momentum_buffer"])
    assert all(p.grad is held and torch.equal(held, value) for p, held, value in grads)
    assert vars(model[0]) == attributes and model[0].out_channels == 6 and len(model[0].weight._backward_hooks) == 1
    if fault == "rows":  # refused before anything was touched: what was computed before is still good
        model(X).sum().backward()
        out = None
    gc.collect()
    loss = model(X).sum()
    loss.backward()
    optimizer.step()


@pytest.fixture
def process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_while_distributed_data_parallel_holds_the_model_nothing_is_edited(process_group):
    model = network()
    wrapped = nn.parallel.DistributedDataParallel(model)
    with pytest.raises(ModelError, match="wrap it again"):
        edit_(model)
    assert model[0].out_channels == 6
    loss_of(wrapped).backward()
    del wrapped
    gc.collect()
    edit_(model)
    loss_of(nn.parallel.DistributedDataParallel(model)).backward()
    assert model[0].weight.grad.shape == (3, 3, 3, 3)
