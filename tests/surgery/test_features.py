"""Every feature of nn.Module that torch documents goes through `prune_`: layers shrink, the network runs and trains."""

import types

import pytest
import torch
import torch.nn.utils.parametrize as parametrize
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import compressor

X = torch.randn(4, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions and a norm between them; `a` makes the channels that go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.norm(self.a(x))))
        return y


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def changed(**methods):
    """The network as a class that overrides these."""
    return type("Own", (Net,), methods)()


def with_(function):
    model = Net()
    function(model)
    return model


def bound(model):
    model.forward = types.MethodType(lambda self, x: self.b(self.a(x)), model)


def closed(model):
    model.forward = lambda x: model.b(model.a(x))


def shared_layers(model):
    model.again = model.norm


def lists(model):
    model.scales = nn.ParameterList([nn.Parameter(torch.ones(8, 1, 1))])
    model.shifts = nn.ParameterDict({"a": nn.Parameter(torch.zeros(8, 1, 1))})
    model.norms = nn.ModuleDict({"x": nn.BatchNorm2d(8)})
    model.forward = types.MethodType(
        lambda self, x: self.b(self.norms["x"](self.a(x)) * self.scales[0] + self.shifts["a"]), model
    )


def buffers(model):
    model.register_buffer("scale", torch.ones(8, 1, 1), persistent=False)
    model.register_buffer("nothing", None)
    model.register_parameter("none", None)
    model.forward = types.MethodType(lambda self, x: self.b(self.a(x) * self.scale), model)


def extra_state(self):
    return {"calls": 1}


class Adapter(nn.Module):
    """As LoRA has it: a frozen layer and a low-rank one beside it."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = (
            nn.Conv2d(base.in_channels, 2, 3, bias=False),
            nn.Conv2d(2, base.out_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y


def adapted(model):
    model.a = Adapter(model.a)


def in_autocast(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = self.a(x)
    return self.b(y.float())


def attribute(self, name):
    try:
        return nn.Module.__getattr__(self, name)
    except AttributeError:
        return nn.Module.__getattr__(self, name.removeprefix("my_"))


def functional(self, x):
    weights = {name: 1 * value for name, value in self.a.named_parameters()}
    return self.b(torch.func.functional_call(self.a, weights, (x,)))


FEATURES = {
    "compiled": lambda: with_(lambda m: m.compile(backend="eager")),
    "compiled part": lambda: with_(lambda m: m.a.compile(backend="eager")),
    "extra state": lambda: changed(get_extra_state=extra_state, set_extra_state=lambda self, state: None),
    "weight norm": lambda: with_(lambda m: utils.parametrizations.weight_norm(m.a)),
    "weight norm of columns": lambda: with_(lambda m: utils.parametrizations.weight_norm(m.a, dim=1)),
    "old weight norm": lambda: with_(lambda m: utils.weight_norm(m.a)),
    "spectral norm": lambda: with_(lambda m: utils.parametrizations.spectral_norm(m.b)),
    "old spectral norm": lambda: with_(lambda m: utils.spectral_norm(m.b)),
    "parametrization": lambda: with_(lambda m: parametrize.register_parametrization(m.a, "weight", Doubled())),
    "masks": lambda: with_(lambda m: prune.l1_unstructured(m.a, "weight", 0.3)),
    "structured masks": lambda: with_(lambda m: prune.ln_structured(m.a, "weight", 0.3, n=2, dim=0)),
    "shared module": lambda: with_(shared_layers),
    "containers": lambda: with_(lists),
    "buffers": lambda: with_(buffers),
    "bound forward": lambda: with_(bound),
    "closed forward": lambda: with_(closed),
    "own call": lambda: changed(__call__=lambda self, x: nn.Module.__call__(self, x) + 1),
    "own getattr": lambda: changed(__getattr__=attribute, forward=lambda self, x: self.my_b(self.my_a(x))),
    "own setattr": lambda: changed(__setattr__=lambda self, name, value: nn.Module.__setattr__(self, name, value)),
    "own deepcopy": lambda: changed(__deepcopy__=lambda self, memo: self),
    "failing deepcopy": lambda: changed(__deepcopy__=lambda self, memo: memo["no"]),
    "checkpoint": lambda: changed(forward=lambda self, x: self.b(checkpoint(self.a, x, use_reentrant=False))),
    "autocast": lambda: changed(forward=in_autocast),
    "functional call": lambda: changed(forward=functional),
    "adapter": lambda: with_(adapted),
    "frozen": lambda: Net().requires_grad_(False),
    "channels last": lambda: Net().to(memory_format=torch.channels_last),
    "bfloat16": lambda: Net().bfloat16(),
    "double": lambda: Net().double(),
    "no grad": lambda: changed(forward=torch.no_grad()(Net.forward)),
    "graph module": lambda: torch.fx.symbolic_trace(Net()),
    "initialised lazy": lambda: with_(lambda m: setattr(m, "a", nn.LazyConv2d(8, 3)) or m(X)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch's old norms are deprecated
@pytest.mark.parametrize("name", FEATURES)
def test_the_network_shrinks_runs_and_trains(name):
    model = FEATURES[name]()
    x = X.to(next(model.parameters()).dtype)
    heard = []
    model.a.register_forward_hook(lambda module, inputs, output: heard.append(output.shape[1]))
    model.register_state_dict_post_hook(lambda *_: heard.append("state"))
    flags = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    compressor.prune_(model, x)
    heard.clear()
    assert flags == [module.training for module in model.modules()]
    assert grads == [parameter.requires_grad for parameter in model.parameters()]
    assert model(x).shape == (4, 4, 6, 6) and heard[0] == 4
    assert "state" in (model.state_dict() and heard)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and name != "no grad":
        optimizer = torch.optim.SGD(trained, 0.01)
        model(x).float().square().mean().backward()
        optimizer.step()
        assert all(each.grad is None or each.grad.shape == each.shape for each in trained)
    model.eval()
    assert model(x).isfinite().all()


def test_dense_masks_stay_masks():
    model = with_(lambda m: prune.l1_unstructured(m.a, "weight", 0.3))
    compressor.prune_(model, X)
    assert model.a.weight_mask.shape == model.a.weight_orig.shape == (4, 3, 3, 3)
    model(X)
    prune.remove(model.a, "weight")
    assert model.a.weight.shape == (4, 3, 3, 3)


def test_what_mixes_all_weights_is_refused_with_its_name():
    model = with_(lambda m: utils.parametrizations.orthogonal(m.b))
    with pytest.raises(compressor.ModelError, match=r"every layer is frozen; .*parametrizations"):
        compressor.prune_(model, X)
    assert model.a.out_channels == 8


def test_attention_runs_or_says_why_not():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    report = compressor.prune_(layer, torch.randn(2, 5, 8))
    assert layer.linear1.out_features == 8 and layer(torch.randn(2, 5, 8)).shape == (2, 5, 8)
    assert all(report.frozen.values())
