"""What a model is traced on, a copy that shares nothing with it and computes the same, and what is taken down."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import fx, nn

from compressor.graph.skeleton import Replica, skeleton
from compressor.graph.tensors import named_tensors
from compressor.graph.trace import Way, outline, run


class Twice(nn.Module):
    """A layer of its own that stands in a graph, too: the graph is copied by a rule of its own, with all it holds."""

    def __init__(self, graph_first: bool) -> None:
        super().__init__()
        layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        held = {"layer": layer, "graph": nn.Sequential(fx.symbolic_trace(layer), nn.Linear(4, 2))}
        for name in sorted(held, reverse=not graph_first):
            self.add_module(name, held[name])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.graph(self.layer(x))


@pytest.mark.parametrize("graph_first", [True, False])
def test_graphs_inside_a_model_are_copied_whole(graph_first):
    model = Twice(graph_first).eval()
    copied = skeleton(model, real=True)
    x = torch.randn(3, 4)
    torch.testing.assert_close(copied(x), model(x))
    ours, theirs = ({tensor.data_ptr() for tensor in each.state_dict().values()} for each in (model, copied))
    assert not ours & theirs and len(ours) == len(theirs)
    assert all(tensor.is_meta for tensor in skeleton(model).state_dict().values())


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today")


def test_operators_count_as_those_of_the_module_that_ran_them_hooks_included():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 1)), nn.Flatten())
    model[0].register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
    model[1].register_forward_hook(lambda _module, _inputs, output: output.abs())
    traced = run(Replica(model), Way(torch.empty(2, 3, 4, 4, device="meta")))
    assert [(op.name, op.module) for op in traced.ops] == [
        ("mul", "0"), ("convolution", "0"), ("relu", "1.0"), ("convolution", "1.1"), ("abs", "1"), ("view", "2"),
    ]  # fmt: skip
    calls = {call.module: call for call in traced.calls}
    assert (calls["1"].start, calls["1"].end) == (2, 5)
    assert calls["1"].outputs == traced.ops[4].outputs and calls["1"].inputs == traced.ops[1].outputs


def test_a_trace_that_fails_puts_module_calls_back():
    before = nn.Module.__call__
    traced = run(Replica(nn.Sequential(nn.ReLU(), Failing())), Way(torch.empty(2, 3)))
    assert isinstance(traced.error, ValueError) and [op.module for op in traced.ops] == ["0"]
    assert nn.Module.__call__ is before


def test_traces_in_several_threads_leave_module_calls_as_they_were():
    before = nn.Module.__call__
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with ThreadPoolExecutor(4) as pool:
        traces = list(pool.map(lambda _: run(Replica(model), Way(torch.empty(2, 3, 4, 4))), range(16)))
    assert nn.Module.__call__ is before
    assert all([op.module for op in traced.ops] == ["0", "1"] for traced in traces)


def test_tensors_are_named_as_torch_names_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, bias=False))
    model[2].weight = model[0].weight  # tied: one tensor, one name
    model.register_parameter("scale", nn.Parameter(torch.ones(4)))
    model.register_buffer("passing", torch.zeros(1), persistent=False)
    ours, torchs = named_tensors(model), dict(model.named_parameters()) | dict(model.named_buffers())
    assert list(ours) == list(torchs) and all(ours[name] is torchs[name] for name in ours)


class Warning_(nn.Module):
    """Warns of an input that is not as wide as it was written for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != 8:
            warnings.warn("another width", stacklevel=1)
        return x


def test_a_warning_ends_no_trial_where_the_user_has_warnings_raise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried = outline(Replica(nn.Sequential(nn.Conv2d(3, 4, 1), Warning_())), Way(torch.empty(2, 3, 4, 4)))
    assert tried.error is None and tried.gave == ((2, 4, 4, 4),)
