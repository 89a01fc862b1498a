"""Costs and maps are the same in whatever mode of torch they are asked for, and wrappers are opened."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import compressor
from compressor.graph import capture
from compressor.graph.neutral import AsWritten, bare
from compressor.profiling.costs import profile
from tests.untouched import untouched


class Counting(TorchDispatchMode):
    """Counts operators, as torch's own FlopCounterMode does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[-1] - 2, device=x.device, dtype=x.dtype)
        return self.head((self.norm(self.first(x)) * places).relu())


@contextlib.contextmanager
def default(change: Any, value: Any, back: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(back)


MODES: dict[str, Any] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta by default": lambda: default(torch.set_default_device, "meta", None),
    "meta inside": lambda: torch.device("meta"),
    "doubles": lambda: default(torch.set_default_dtype, torch.float64, torch.float32),
    "halves": lambda: default(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "deterministic": lambda: default(torch.use_deterministic_algorithms, True, False),
    "fake tensors": FakeTensorMode,
    "a counter": Counting,
}


@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("name", MODES)
def test_figures_and_maps_are_the_same_in_every_mode(name: str, made_inside: bool) -> None:
    model, x = Network().eval(), torch.randn(1, 3, 8, 8)
    macs, free = profile(model, x).macs, [group.name for group in capture(model, x).free]
    assert macs == 36 * 8 * 27 + 36 * 8 * 4 and free == ["first"]
    with MODES[name]() as mode:
        if made_inside:
            model, x = Network().eval(), torch.randn(1, 3, 8, 8)
        before = mode.seen if name == "a counter" else 0
        assert profile(model, x).macs == macs
        assert [group.name for group in capture(model, x).free] == free
        assert name != "a counter" or mode.seen == before


def test_pruning_in_inference_mode_leaves_a_network_that_trains() -> None:
    model, x = Network(), torch.randn(2, 3, 8, 8)
    labels = torch.zeros(2, 6, 6, dtype=torch.int64)
    with torch.inference_mode():
        compressor.prune_(model, x, ratio=0.5)
    nn.functional.cross_entropy(model.train()(x), labels).backward()
    assert model.first.out_channels == 4 and model.first.weight.grad is not None


def test_scores_by_gradients_work_without_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            compressor.prune_(model, x, method="taylor", ratio=0.3, batches=[(x, y)])


def test_inside_functional_transforms_there_is_one_clear_line() -> None:
    model = Network().eval()
    with pytest.raises(compressor.UsageError, match="outside"):
        torch.func.vmap(lambda x: torch.tensor(profile(model, x).macs))(torch.randn(2, 1, 3, 8, 8))


def test_wrappers_are_opened() -> None:
    model, x = Network().eval(), torch.randn(1, 3, 8, 8)
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert bare(wrapped) is model
    assert profile(wrapped, x).macs == profile(model, x).macs
    assert [group.name for group in capture(wrapped, x).groups] == [group.name for group in capture(model, x).groups]
    compressor.prune_(wrapped, x, ratio=0.5)
    assert model.first.out_channels == 4


def test_what_is_compiled_runs_as_it_is_written_as_long_as_anyone_is_inside() -> None:
    seen, x, inside = [], torch.ones(2), AsWritten()

    @torch.compile(backend=lambda graph, _: seen.append(graph) or graph.forward)
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    with inside:
        assert torch.equal(doubled(x), 2 * x)
        with inside:
            doubled(x)
        doubled(x)
    assert not seen
    doubled(x)
    assert len(seen) == 1


@pytest.fixture
def process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_wrapper_that_keeps_sizes_is_not_edited() -> None:
    model, x = Network(), torch.randn(1, 3, 8, 8)
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert capture(wrapped, x).free and profile(wrapped, x).macs
    with untouched(model), pytest.raises(compressor.ModelError, match=r"\.module"):
        compressor.prune_(wrapped, x, ratio=0.5)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("kind", ["FSDP", "DTensor"])
def test_weights_spread_over_processes_are_refused_in_one_line(kind: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_module

    model, mesh, x = Network(), init_device_mesh("cpu", (1,)), torch.randn(1, 3, 8, 8)
    spread = fully_shard(model, mesh=mesh) if kind == "FSDP" else distribute_module(model, mesh)
    for wrapped in (spread, nn.Sequential(spread)):
        refused = pytest.raises(
            compressor.ModelError, match=r"spread the weights over processes.* before it is wrapped"
        )
        with untouched(wrapped), refused:
            compressor.prune_(wrapped, x, ratio=0.5)
