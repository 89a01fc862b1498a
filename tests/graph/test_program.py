"""Networks as exported graphs: the groups of the eager network, right after surgery, in training and evaluation."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from compressor.errors import ModelError
from compressor.graph import capture
from compressor.graph import program as programs
from compressor.graph.program import name_of, program, signature
from compressor.graph.skeleton import skeleton
from compressor.surgery import operate_
from compressor.vision import door as vision
from tests.equivalence import half_plan, masked_outputs, move, outputs, randomise_, relative_error
from tests.networks import NETWORKS, Residual


def free(model: nn.Module, example: Tensor) -> dict[str, int]:
    return {group.name: group.size for group in capture(model, example).free}


def check(model: nn.Module, example: Tensor) -> None:
    graph = program(model, example).eval()
    assert relative_error(outputs(graph, example), outputs(model, example)) < 1e-12
    channels = capture(graph, example)
    plan = half_plan(channels)
    expected = masked_outputs(graph, example, channels, plan.removed)
    operate_(graph, plan, channels)
    assert relative_error(outputs(graph, example), expected) < 1e-12
    torch.testing.assert_close(outputs(graph, example[:1])[0], outputs(graph, example)[0][:1], msg="any batch")


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_and_surgery_are_those_of_the_network(name: str) -> None:
    model = randomise_(NETWORKS[name]())
    example = move(model.example(), torch.float64)
    if not isinstance(example, Tensor) or len(outputs(model, example)) > 1 or example.ndim != 4:
        pytest.skip("one tensor of images and one output")
    if type(model).__name__ not in ("WrittenSize", "Chunked"):
        assert free(program(model, example).eval(), example) == free(model, example)
    check(model, example)


class Counting(nn.Module):
    """Counts its images with `len`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.norm(self.conv(x)).relu().view(len(x), -1))
        return scores


def test_a_network_that_counts_its_images_has_a_graph_for_any_batch() -> None:
    check(randomise_(Counting()), torch.randn(2, 3, 6, 6, dtype=torch.float64))


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "vgg11"])
def test_torchvision_networks_have_the_same_groups(name: str) -> None:
    model, example = randomise_(vision.build(name)), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert free(program(model, example).eval(), example) == free(model, example)
    check(model, example)


class Statistics(nn.Module):
    """Norms that take the batch's statistics always, and one that does in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.kept, self.instance = nn.BatchNorm2d(4), nn.InstanceNorm2d(4)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.batch(self.instance(self.kept(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize("training", [False, True])
def test_norms_follow_the_mode_where_the_network_does(training: bool) -> None:
    x = torch.randn(4, 3, 5, 5)
    model = Statistics()
    graph = program(model, x)
    twin = copy.deepcopy(model).train(training)
    graph.train(training)
    torch.testing.assert_close(graph(x), twin(x))
    torch.testing.assert_close(graph.kept.running_mean, twin.kept.running_mean)


def test_fine_tuning_the_graph_is_fine_tuning_the_network() -> None:
    model = Residual()
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    graph = program(model, x).train()
    twin = copy.deepcopy(model).train()
    for net in (graph, twin):
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    state = graph.state_dict()
    for name, tensor in twin.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)


def test_copy_of_a_module_around_a_graph_module_is_whole() -> None:
    """A graph module copies itself, and looks at what it holds while it does."""
    inner = program(nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))), torch.randn(2, 1, 6, 6))
    copied = skeleton(nn.Sequential(nn.ReLU(), inner), real=True)
    x = torch.randn(3, 1, 6, 6)
    torch.testing.assert_close(copied.eval()(x), inner.eval()(x.relu()))


def test_a_network_that_does_not_run_is_not_said_to_be_no_graph(capfd: pytest.CaptureFixture[str]) -> None:
    narrow = nn.Sequential(nn.MaxPool2d(4), nn.Conv2d(1, 2, 3))
    with pytest.raises(ModelError, match="does not run on an input of shape 1x1x8x8"):
        program(narrow, torch.zeros(1, 1, 8, 8))
    assert "Error" not in capfd.readouterr().err


def test_dropout_inside_a_recurrent_layer_and_groups_with_named_padding_follow_the_module() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, padding="same", groups=4)
            self.recurrent, self.head = nn.LSTM(4, 5, 2, dropout=0.5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(self.conv(x[:, 0]).transpose(1, 2))[0].mean(1))

    model, image = Recurrent().eval(), torch.rand(2, 1, 4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of weights that an LSTM keeps flat
        graph = program(model, image)
    assert torch.allclose(graph.eval()(image), model(image)) and not torch.allclose(graph.train()(image), model(image))
    convolution = next(node for node in graph.graph.nodes if name_of(node) == "conv1d")
    assert isinstance(convolution.args[6], fx.Node)


class Deeper(nn.Module):
    """Has a layer that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.extra = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.extra(x) if self.training else x).mean((2, 3))


def test_what_only_training_does_is_not_in_the_graph_and_the_network_goes_on_training() -> None:
    model, x = Deeper().train(), torch.randn(2, 3, 4, 4)
    graph = program(model, x)
    assert model.training and not any("extra" in str(node.target) and node.users for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), model.eval()(x))


class Told(nn.Module):
    """A network whose code reads an attribute."""

    def __init__(self, attribute: Any, inner: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.inner = inner()
        self.attribute = attribute

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(self.conv(x)) * float(self.attribute)
        return found.mean((2, 3))


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_graphs", type(programs._graphs)())


@pytest.mark.parametrize("name", sorted(NETWORKS)[::4])
def test_a_second_network_has_the_graph_of_the_first_and_its_own_weights(name: str) -> None:
    torch.manual_seed(0)
    first, second = NETWORKS[name]().eval(), randomise_(NETWORKS[name]()).float().eval()
    example = first.example()
    if not isinstance(example, Tensor) or example.ndim != 4 or len(outputs(first, example)) > 1:
        pytest.skip("one tensor of images and one output")
    program(first, example)
    again = program(second, example)
    again.eval()
    assert relative_error(outputs(again, example), outputs(second, example)) < 1e-6
    own = dict(second.named_parameters())
    assert all(parameter is own[key] for key, parameter in again.named_parameters())
    programs._graphs.clear()
    exported = program(second, example).eval()
    assert exported.state_dict().keys() == again.state_dict().keys()
    assert [(n.op, str(n.target)) for n in exported.graph.nodes] == [(n.op, str(n.target)) for n in again.graph.nodes]


def test_an_edit_of_one_graph_leaves_what_is_remembered() -> None:
    first, second = Told(2.0), Told(2.0)
    graph = program(first, torch.zeros(1, 3, 8, 8))
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and "mul" in str(node.target):
            node.args = (node.args[0], 7.0)
    graph.recompile()
    again = program(second, torch.zeros(1, 3, 8, 8)).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(x), second(x))


@pytest.mark.parametrize(
    "other",
    [
        lambda: Told(3.0),
        lambda: Told(2),
        lambda: Told(2.0, nn.SiLU),
        lambda: Told(2.0).double(),
        lambda: Told(2.0).requires_grad_(False),
    ],
)
def test_what_the_code_can_read_tells_networks_apart(other: Callable[[], nn.Module]) -> None:
    assert signature(Told(2.0)) == signature(Told(2.0)) is not None
    assert signature(Told(2.0)) != signature(other())


def test_tied_weights_tell_networks_apart() -> None:
    tied, loose = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    tied[1].weight = tied[0].weight
    assert signature(tied) != signature(loose)
    shared, single = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared.append(shared[0])
    assert signature(shared) != signature(single)


def closed_over(number: float) -> Callable[[], float]:
    return lambda: number


@pytest.mark.parametrize("held", [torch.ones(()), object(), closed_over(2.0), [torch.ones(())], {"a": object()}])
def test_what_may_differ_unseen_has_no_signature(held: Any) -> None:
    assert signature(Told(held)) is None


def test_a_tensor_that_is_no_buffer_is_each_networks_own() -> None:
    first, second = Told(torch.tensor(2.0)), Told(torch.tensor(5.0))
    second.conv.load_state_dict(first.conv.state_dict())
    x = torch.randn(2, 3, 8, 8)
    program(first, x)
    torch.testing.assert_close(program(second, x).eval()(x), second(x))
