"""Where maps are looked at in plain, residual, depthwise and functional networks, and what the hooks record there."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.graph.capture import capture
from compressor.graph.channels import Channels
from compressor.pruning.adapnet import observe
from compressor.pruning.adapnet.maps import Means, Part, draw_images, moments, show
from compressor.pruning.adapnet.observe import View, Watch, reader_inputs, views
from compressor.pruning.adapnet.subspace import new_autoencoder
from compressor.pruning.adapnet.unit import Unit

CPU = torch.device("cpu")


class Block(nn.Module):
    """A residual block that uses one ReLU module twice, as torchvision's do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y = y + (x if self.down is None else self.down(x))
        return self.relu(y)


class Functional(nn.Module):
    """Activations that are no modules: what is read shows only at the readers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.relu(self.conv2(x)).flatten(1))


def residual() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        Block(6, 6),
        Block(6, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(8, 7),
        nn.ReLU(),
        nn.Linear(7, 5),
    )


def captured(model: nn.Module) -> Channels:
    return capture(model, torch.zeros(2, 3, 8, 8))


def places(model: nn.Module, channels: Channels, group: str) -> list[tuple[str, int, bool]]:
    return [(view.module, view.call, view.takes_input) for view in views(model, channels, channels.group(group))]


def test_plain_channels_are_seen_after_the_activation_and_before_pooling() -> None:
    model = plain()
    channels = captured(model)
    assert places(model, channels, "0") == [("5", 0, False)]  # after the depthwise convolution, where they are read
    assert places(model, channels, "6") == [("7", 0, False)]
    (view,) = views(model, channels, channels.group("6"))
    assert (view.height, view.width) == (4, 4)


def test_channels_without_maps_are_not_seen() -> None:
    model = plain()
    assert views(model, captured(model), captured(model).group("10")) == ()


def test_coupled_channels_are_seen_after_every_addition() -> None:
    model = residual()
    channels = captured(model)
    assert places(model, channels, "0") == [("1", 0, False), ("2.relu", 1, False)]
    assert places(model, channels, "2.conv1") == [("2.relu", 0, False)]
    assert places(model, channels, "3.conv1") == [("3.relu", 0, False)]


def test_functional_activations_are_seen_at_the_reader() -> None:
    model = Functional()
    channels = captured(model)
    assert places(model, channels, "conv1") == [("conv2", 0, True)]
    assert places(model, channels, "conv2") == [("conv2", 0, False)]  # its reader takes no maps


@pytest.fixture(autouse=True)
def two_batches_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "REC_BATCHES", 2)


def watched(
    model: nn.Module, channels: Channels, names: list[str], slots: list[int | None]
) -> tuple[dict[str, Unit], Means]:
    """Units of the groups, after one forward pass for every slot."""
    generator = torch.Generator().manual_seed(0)
    units = {n: Unit(n, channels.group(n).ids.tolist(), 8, new_autoencoder(generator, CPU)) for n in names}
    for unit in units.values():
        unit.start_recording(3 * 2)  # of which two batches take half each
    seen: dict[str, tuple[View, ...]] = {n: views(model, channels, channels.group(n)) for n in names}
    means, asked = Means(), iter(slots)
    means.begin(channels)
    watch = Watch(
        units,
        seen,
        reader_inputs(model, channels),
        generator,
        lambda: next(asked),
        lambda count: (0, count),
    )
    model.train()
    with watch.on(model):
        for _ in slots:
            model(torch.rand(4, 3, 8, 8, generator=generator))
            if (shown := watch.take()) is not None:
                for name, maps in shown.maps.items():
                    recording = units[name].recording
                    assert recording is not None
                    recording.add(maps, units[name].frozen)
                for weight, given in shown.moments:
                    means.add(weight, given)
    return units, means


def test_only_the_asked_passes_are_recorded_and_no_hook_stays() -> None:
    model = residual()
    units, means = watched(model, captured(model), ["0", "2.conv1", "3.conv1"], [None, 0, None, 1, None])
    assert all(unit.recording is not None and unit.recording.filled == 6 for unit in units.values())
    assert set(means.batches.values()) == {2}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_batch_in_pieces_is_recorded_once_and_evaluation_never() -> None:
    model = plain()
    units, means = watched(model, captured(model), ["0"], [0, 0, 0])
    assert units["0"].recording is not None and units["0"].recording.filled == 3
    assert set(means.batches.values()) == {1}


def test_recorded_maps_are_those_of_the_groups_channels() -> None:
    model = residual()
    channels = captured(model)
    marked = channels.group("2.conv1").ids.tolist()
    with torch.no_grad():
        model[2].bn1.weight.zero_()
        model[2].bn1.bias.copy_(torch.tensor([0.0, 1, 0, 1, 0, 1]))  # every other map is all ones, the others dead
    units, _ = watched(model, channels, ["2.conv1"], [0, 1])
    recording = units["2.conv1"].recording
    assert recording is not None and len(marked) == 6
    assert recording.fired.all(1).tolist() == recording.maps.flatten(1).amax(1).bool().tolist()
    assert recording.dead().tolist() == [True, False] * 3


@pytest.mark.parametrize(("kind", "sizes", "plane"), [(nn.Conv1d, (8,), (1, 8)), (nn.Conv3d, (2, 4, 8), (8, 8))])
def test_maps_of_one_and_three_dimensions_are_seen_as_planes(
    kind: type[nn.Module], sizes: tuple[int, ...], plane: tuple[int, int]
) -> None:
    model = nn.Sequential(kind(3, 6, 3, padding=1), nn.ReLU(), kind(6, 4, 1)).train()
    x = torch.randn(4, 3, *sizes)
    channels = capture(model, x)
    seen = views(model, channels, channels.group("0"))
    assert [(view.module, view.height, view.width) for view in seen] == [("1", *plane)]
    unit = Unit("0", channels.group("0").ids.tolist(), 8, new_autoencoder(torch.Generator(), CPU))
    unit.start_recording(3 * 2)
    source = torch.Generator().manual_seed(1)
    watch = Watch({"0": unit}, {"0": seen}, {}, source, lambda: 0, lambda count: (0, count))
    with watch.on(model), torch.no_grad():
        model(x)
        maps = model[:2](x).reshape(4, 6, *plane)
    drawn = draw_images(6, 3, 4, torch.Generator().manual_seed(1))
    shown, expected = watch.take(), show(maps, drawn, 8, Part(0, 4))
    assert shown is not None and torch.equal(shown.maps["0"].maps, expected.maps)
    assert torch.equal(shown.maps["0"].peak, maps.amax((0, 2, 3)))


@pytest.mark.parametrize("build", [plain, residual, Functional], ids=["plain", "residual", "functional"])
def test_means_are_those_of_what_the_readers_get(build: type[nn.Module]) -> None:
    model = build()
    channels = captured(model)
    inputs: dict[str, list[Tensor]] = {}
    readers = reader_inputs(model, channels)
    for weight in readers:
        module = model.get_submodule(weight.rpartition(".")[0])
        module.register_forward_pre_hook(
            lambda _m, given, weight=weight: inputs.setdefault(weight, []).append(given[0])
        )
    _, means = watched(model, channels, [], [0, 1])
    for group in channels.free:
        expected: dict[int, list[float]] = {}
        for place in group.places:
            if place.role == "column" and place.tensor in readers:
                ids = channels.identities[place.tensor, place.dim].tolist()
                given = torch.cat(inputs[place.tensor]).movedim(readers[place.tensor], 0).flatten(1).mean(1).tolist()
                for identity, value in zip(ids, given):
                    expected.setdefault(identity, []).append(value)
        found = means.of(channels, group)
        assert found is not None
        assert found == pytest.approx({i: sum(expected[i]) / len(expected[i]) for i in group.ids.tolist()}, abs=1e-5)


def test_change_is_what_the_readers_output_varies_without_a_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 1, bias=False))
    whole = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)).train()
    channels = capture(whole, torch.zeros(1, 3, 8, 8))
    means = Means()
    means.begin(channels)
    images = torch.rand(16, 3, 8, 8)
    given = model[1](model[0](images)).detach()
    means.add("0.2.weight", moments(given, 1))
    found = means.change(whole, channels, channels.group("0.0"))
    assert found is not None
    # Without channel c, and with its mean made up for, the output differs by (a_c - mean a_c) times its columns.
    kernel = model[2].weight.detach()[:, :, 0, 0]
    wanted = torch.stack(
        [((given[:, c] - given[:, c].mean()).square().mean() * kernel[:, c].square().sum()).double() for c in range(6)]
    )
    assert torch.allclose(found, wanted / wanted.sum(), rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_readers_of_any_rank_have_their_channels_on_the_first_dimension_and_linear_ones_on_the_last(rank: int) -> None:
    conv = getattr(nn, f"Conv{rank}d")
    model = nn.Sequential(conv(3, 6, 1), nn.ReLU(), conv(6, 4, 1), nn.Flatten(), nn.Linear(4 * 2**rank, 5))
    found = reader_inputs(model, capture(model, torch.zeros(1, 3, *(2,) * rank)))
    assert found == {"2.weight": 1, "4.weight": -1}
