"""The parts of a reconstruction: stored passes, drawn places, loaders' batches."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compressor.errors import UsageError
from compressor.graph.trace import call_arguments
from compressor.pruning.reconstruction.calibration import Draw, enough_images, inputs_of
from compressor.pruning.reconstruction.gram import Gram, Level, Ridge, Rows, joined
from compressor.pruning.reconstruction.readers import View
from compressor.pruning.reconstruction.replay import DivergedError, Replay
from tests.equivalence import randomise_
from tests.networks import NETWORKS


def leaves(model: nn.Module, given: Any) -> list[Tensor]:
    arguments, keywords = call_arguments(given, model)
    return [leaf for leaf in tree_leaves(model(*arguments, **keywords)) if isinstance(leaf, Tensor)]


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pass_from_stored_activations_gives_what_a_whole_one_gives(name):
    model = randomise_(NETWORKS[name]())
    given = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, model.example())
    wanted = leaves(model, given)
    replay = Replay(model, [given])
    ends = len(replay.program.ops)
    computed: list[int] = []
    for at in [at for at in range(ends - 1) if replay.program.stored_values[at] < float("inf")]:
        hooks = {other: [lambda *_, other=other: computed.append(other)] for other in range(ends)}
        found = replay.run(0, {}, hooks, store=at)
        for one, other in zip(tree_leaves(found), wanted, strict=True):
            torch.testing.assert_close(one, other)
        assert replay.batches[0].at == at


class InPlace(nn.Module):
    """Activations and a sum that overwrite what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu_()
        short = x.clone()
        x = self.norm(self.two(x))
        x += short
        return self.two(x.relu_()).flatten(1)


@torch.no_grad()
def test_what_is_written_in_place_is_stored_as_it_was_left():
    model = InPlace().eval()
    x = torch.randn(4, 3, 5, 5)
    wanted = model(x)
    replay = Replay(model, [x])
    for at in range(len(replay.program.ops) - 1):
        torch.testing.assert_close(replay.run(0, {}, {}, store=at), wanted)
        torch.testing.assert_close(replay.run(0, {}, {}), wanted)  # and again from there


@torch.no_grad()
def test_a_stored_pass_computes_nothing_before_its_start():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    replay = Replay(model, [torch.randn(2, 3, 8, 8)])
    wanted = replay.run(0, {}, {}, store=1)
    replay.tensors["0.weight"].fill_(torch.nan)
    torch.testing.assert_close(replay.run(0, {}, {}), wanted)


def test_other_operators_on_another_batch_are_noticed():
    class Steers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if len(x) > 3 else x.sigmoid()

    replay = Replay(Steers(), [torch.randn(5, 2)])
    with pytest.raises(DivergedError):
        replay.run(0, {}, {}, 1)


def test_places_follow_the_image_and_not_its_batch():
    images = torch.randn(6, 3, 4, 4)
    whole = Draw(images, 8).rows(6 * 50).view(6, 8) - 50 * torch.arange(6)[:, None]
    parts = [Draw(images[at : at + 2], 8).rows(2 * 50).view(2, 8) - 50 * torch.arange(2)[:, None] for at in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert len({tuple(places) for places in whole.tolist()}) == 6
    assert torch.equal(Draw(images, 8).rows(6 * 5), torch.arange(30))


TAKES = nn.Identity()
IMAGES, LABELS = torch.randn(10, 3, 4, 4), torch.arange(10)


@pytest.mark.parametrize(
    "batch",
    [IMAGES, (IMAGES, LABELS), [LABELS, IMAGES], {"label": LABELS, "pixels": IMAGES}, ((IMAGES,), {"y": LABELS})],
)
def test_inputs_are_found_in_batches_of_any_form(batch):
    found = inputs_of([batch, batch], torch.zeros(1, 3, 4, 4), TAKES)
    assert torch.equal(torch.cat(found), torch.cat([IMAGES, IMAGES]))


def test_several_inputs_are_found_by_place_or_name():
    masks = torch.rand(10, 1, 4, 4)
    example = (IMAGES[:1], masks[:1])
    for batch in ((IMAGES, masks, LABELS), ((IMAGES, masks), LABELS)):
        (found,) = inputs_of([batch], example, TAKES)
        assert torch.equal(found[0], IMAGES) and torch.equal(found[1], masks)
    named = {"image": IMAGES, "mask": masks, "label": LABELS}
    (found,) = inputs_of([named], {"mask": masks[:1], "image": IMAGES[:1]}, TAKES)
    assert set(found) == {"image", "mask"} and torch.equal(found["mask"], masks)


def test_what_is_like_no_input_is_refused():
    with pytest.raises(UsageError, match="int64"):
        inputs_of([(LABELS, LABELS)], torch.zeros(1, 3, 4, 4), TAKES)
    with pytest.raises(UsageError, match="mask"):
        inputs_of([{"image": IMAGES}], {"image": IMAGES[:1], "mask": IMAGES[:1]}, TAKES)
    with pytest.raises(UsageError, match="no batch"):
        inputs_of([], IMAGES, TAKES)


def test_large_batches_are_parted_and_small_images_are_more():
    big = torch.zeros(100, 3, 224, 224)
    assert max(map(len, inputs_of([big], big[:1], TAKES))) <= 34
    assert enough_images((3, 224, 224)) == 512 and enough_images((3, 32, 32)) == 2048


def test_a_ridge_is_least_squares_with_a_pull():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (7, 3))
    before = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    inner = x.T @ x
    pull = 0.3 * inner.diagonal().mean()
    rows = torch.cat([x, pull.sqrt() * torch.eye(7, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(rows, torch.cat([y, pull.sqrt() * before])).solution
    torch.testing.assert_close(Ridge(inner, before, 0.3)(x.T @ y), wanted)


@pytest.mark.parametrize("groups, unknowns, count", [(2, 5, 60), (1, 1100, 5000), (3000, 2, 60)])
def test_sums_are_those_of_all_rows_however_they_come(groups, unknowns, count):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(groups, count, n, generator=generator) for n in (unknowns, 3))
    parts = Gram(constant=True)
    for number, rows in enumerate(torch.arange(count).tensor_split(7)):
        parts.add(Rows(x[:, rows], y[:, rows]))
        if number == 3:  # a look in the middle changes nothing
            assert parts.inner.shape == (groups, unknowns + 1, unknowns + 1)
    whole = torch.cat([x, torch.ones_like(x[:, :, :1])], 2).double()
    torch.testing.assert_close(parts.inner, whole.mT @ whole, atol=1e-2, rtol=1e-5)
    torch.testing.assert_close(parts.cross, whole.mT @ y.double(), atol=1e-2, rtol=1e-5)


def test_only_rows_that_an_activation_follows_alike_are_one():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(1, 4, 3, generator=generator)
    rows = []
    for scale, high in ((1.0, torch.inf), (1.0, torch.inf), (2.0, torch.inf), (1.0, 6.0)):
        x, y, values = (torch.randn(1, 10, n, generator=generator) for n in (4, 3, 3))
        rows.append(Rows(x, y, Level(values, torch.full((1, 1, 3), scale), 0.0, high)))
    rows += [Rows(rows[0].x, rows[0].y), Rows(rows[1].x, rows[1].y)]
    found = joined(rows)
    assert [each.x.shape[1] for each in found] == [20, 10, 10, 20]
    apart = torch.stack([each.errors(matrix) for each in rows]).sum(0)
    torch.testing.assert_close(torch.stack([each.errors(matrix) for each in found]).sum(0), apart)


@pytest.mark.parametrize("shape", [(256, 128, 1, 1), (6, 4, 3, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_element_of_a_weight_is_found_in_its_parameter(shape, layout):
    """numpy's unravel_index is wrong for the first shape (2.4.6)."""
    parameter = torch.randn(shape).to(memory_format=layout)
    weight = parameter[1:].transpose(0, 1)
    places = View.of("w", weight, parameter).coordinates(parameter)
    assert torch.equal(parameter[tuple(places)], weight)
