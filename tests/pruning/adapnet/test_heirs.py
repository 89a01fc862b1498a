"""Stand-ins for filters that go: least squares against NumPy, and what a run makes of them."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from compressor.graph import capture
from compressor.pruning.adapnet.maps import Means, moments
from compressor.pruning.reconstruction import fold
from compressor.pruning.reconstruction.fold import FEW_RIDGE, Fold, residuals, shares
from compressor.pruning.reconstruction.gram import Rows
from compressor.surgery import Prune
from tests.pruning.adapnet.running import Running, small_net
from tests.pruning.adapnet.test_method import pruning_only


def samples(count: int = 4000) -> torch.Tensor:
    """Six channels, of which the last two hang on the others."""
    found = torch.randn(count, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found[:, 4] = found[:, 0] - 0.5 * found[:, 1] + 0.1 * found[:, 4]
    found[:, 5] = 2 * found[:, 2]
    return found


def test_shares_are_the_least_squares_of_what_goes_on_what_stays() -> None:
    values = samples()
    staying, found = shares(torch.cov(values.T), [4, 1])
    assert staying == [0, 2, 3, 5]
    centred = (values - values.mean(0)).numpy()
    ridge = np.sqrt(FEW_RIDGE * values[:, staying].var(0).mean().item() * (len(values) - 1))
    design = np.concatenate([centred[:, staying], ridge * np.eye(4)])
    wanted, *_ = np.linalg.lstsq(design, np.concatenate([centred[:, [4, 1]], np.zeros((4, 2))]), rcond=None)
    assert np.allclose(found.numpy(), wanted, atol=1e-8)


def test_shares_are_what_a_reconstruction_predicts_of_a_network_that_has_not_changed_yet(monkeypatch) -> None:
    """Columns handed on by shares are those of the fold: AdapNet's reconstruction is its special case."""
    monkeypatch.setattr(fold, "RIDGE", FEW_RIDGE)
    values, removed = samples() - samples().mean(0), [1, 4]
    matrix = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    staying, parts = shares(torch.cov(values.T, correction=0), removed)
    folded = Fold(np.arange(6), np.array(removed), constant=False)
    targets = values @ matrix
    held = torch.arange(len(values)) % 8 == 7
    held[:] = False
    held[-1] = True  # one row only judges
    folded.add(Rows(values[None, :, staying], targets[None]), values[None], held)
    found = folded.best(torch.zeros(1, 4, 3, dtype=torch.float64), matrix[None]).matrix
    torch.testing.assert_close(found[0], matrix[staying] + parts @ matrix[removed], atol=1e-3, rtol=0)


def test_residuals_are_small_for_channels_that_others_predict() -> None:
    left = residuals(torch.cov(samples().T)) / samples().var(0)
    assert float(left[[2, 5]].max()) < 0.1 and float(left[4]) < 0.1 and float(left[3]) > 0.9


def test_covariance_is_that_of_what_the_readers_get() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5 * 16, 2))
    channels = capture(model, torch.zeros(1, 3, 8, 8))
    means = Means(joint=True)
    means.begin(channels)
    batches = [torch.rand(8, 3, 8, 8) for _ in range(2)]
    for images in batches:
        given = model[:2](images)
        means.add("2.weight", moments(given, 1, joint=True))
        means.add("4.weight", moments(model[2:4](given), -1, joint=True))
    rows = torch.cat([model[:2](images).detach() for images in batches]).movedim(1, -1).flatten(0, -2).double()
    wanted = torch.cov(rows.T, correction=0)
    found = means.covariance(channels.group("0"))
    assert found is not None
    assert torch.allclose(found, wanted / wanted.diagonal().mean(), atol=1e-5)
    assert means.covariance(channels.group("2")) is None  # a flattened map has many inputs for a channel
    resumed = Means(joint=True)
    resumed.load_state_dict(means.state_dict(), torch.device("cpu"))
    again = resumed.covariance(channels.group("0"))
    assert again is not None and torch.equal(again, found)


def test_a_run_hands_columns_on_and_keeps_more_of_what_the_network_does() -> None:
    torch.manual_seed(0)
    running = Running(replace(pruning_only(), reconstruct=True), small_net(8))
    running.train(60)
    handed = [edit for plan in running.plans for edit in plan.edits if isinstance(edit, Prune) and edit.heirs]
    assert handed
    for edit in handed:
        assert edit.channels[0] not in edit.heirs and all(np.isfinite(share) for (share,) in edit.heirs.values())
