"""DSC-Net's pieces against PyTorch's own layers, NumPy's formulas and one-by-one versions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.manifold import spectral_embedding

from compressor.pruning.adapnet import subspace

MU = 2 * 1.0 / 30.0


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def stacked(generator: torch.Generator, units: int) -> subspace.Autoencoder:
    return subspace.stack([subspace.new_autoencoder(generator, torch.device("cpu")) for _ in range(units)])


def unit_rows(generator: torch.Generator, count: int, dimensions: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, dimensions, generator=generator, dtype=torch.float64), dim=1)


def test_encoder_is_a_convolution_with_same_padding(generator: torch.Generator) -> None:
    net = stacked(generator, 2)
    maps = torch.rand(2, 3, 8, 8, generator=generator)
    latents = subspace.encode(net, maps).view(2, 3, 16, 50)
    for unit in range(2):
        kernel = net["encode_weight"][unit].T.reshape(50, 1, 5, 5)
        expected = F.conv2d(F.pad(maps[unit][:, None], (1, 2, 1, 2)), kernel, stride=2).relu()
        torch.testing.assert_close(latents[unit], expected.flatten(2).transpose(1, 2))


def test_decoder_is_a_transposed_convolution_back_to_the_maps_size(generator: torch.Generator) -> None:
    net = stacked(generator, 2)
    latents = torch.rand(2, 3 * 16, 50, generator=generator)
    maps = subspace.decode(net, latents, 8)
    for unit in range(2):
        kernel = net["decode_weight"][unit].view(50, 1, 5, 5)
        images = latents[unit].view(3, 16, 50).transpose(1, 2).reshape(3, 50, 4, 4)
        expected = F.conv_transpose2d(images, kernel, stride=2)[:, 0, 1:9, 1:9].relu()
        torch.testing.assert_close(maps[unit], expected)


def test_training_is_adam_on_each_unit_alone(generator: torch.Generator) -> None:
    net = stacked(generator, 2)
    maps = torch.rand(2, 12, 8, 8, generator=generator)
    valid = torch.ones(2, 12, dtype=torch.bool)
    references = [{name: net[name][u : u + 1].clone().requires_grad_() for name in subspace.WEIGHTS} for u in range(2)]
    subspace.train_(net, maps, valid, generator, epochs=3, batch=12, lr=1e-3)
    for unit, weights in enumerate(references):
        adam = torch.optim.Adam(weights.values(), lr=1e-3)
        for _ in range(3):
            adam.zero_grad()
            subspace.reconstruction_loss(weights, maps[unit : unit + 1], valid[:1]).sum().backward()
            adam.step()
        for name in subspace.WEIGHTS:
            torch.testing.assert_close(net[name][unit], weights[name][0].detach(), atol=1e-6, rtol=1e-4)


def test_padding_takes_no_part_in_training(generator: torch.Generator) -> None:
    short = torch.rand(1, 5, 8, 8, generator=generator)
    long = torch.rand(1, 12, 8, 8, generator=generator)
    maps = torch.cat([F.pad(short, (0, 0, 0, 0, 0, 7), value=9.0), long])
    valid = torch.arange(12)[None] < torch.tensor([[5], [12]])
    together, alone = stacked(torch.Generator().manual_seed(1), 2), stacked(torch.Generator().manual_seed(1), 1)
    subspace.train_(together, maps, valid, generator, epochs=2, batch=6, lr=1e-3)
    subspace.train_(alone, short, valid[:1, :5], generator, epochs=2, batch=6, lr=1e-3)
    assert together["steps"].tolist() == [2, 4]
    for name in subspace.WEIGHTS:
        torch.testing.assert_close(together[name][0], alone[name][0], atol=1e-6, rtol=1e-4)


def test_training_lowers_the_reconstruction_loss(generator: torch.Generator) -> None:
    net = stacked(generator, 1)
    maps, valid = torch.rand(1, 64, 8, 8, generator=generator), torch.ones(1, 64, dtype=torch.bool)
    before = float(subspace.reconstruction_loss(net, maps, valid))
    subspace.train_(net, maps, valid, generator, epochs=20, batch=32, lr=1e-3)
    assert float(subspace.reconstruction_loss(net, maps, valid)) < 0.8 * before


def test_reconstruction_loss_is_the_first_term_of_equation_2(generator: torch.Generator) -> None:
    net = stacked(generator, 1)
    maps = torch.rand(1, 4, 8, 8, generator=generator)
    again = subspace.decode(net, subspace.encode(net, maps), 8).numpy()
    expected = 0.5 * np.linalg.norm(maps.numpy().reshape(4, -1) - again.reshape(4, -1)) ** 2
    loss = subspace.reconstruction_loss(net, maps, torch.ones(1, 4, dtype=torch.bool))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def loss_of(coefficients: np.ndarray, latents: np.ndarray) -> float:
    """Equation (2) without its first term, samples as columns."""
    z = latents.T
    return float(1.0 * np.sum(coefficients**2) + 30.0 / 2 * np.linalg.norm(z - z @ coefficients) ** 2)


def test_each_column_is_the_ridge_solution_on_the_other_maps(generator: torch.Generator) -> None:
    rows = unit_rows(generator, 20, 30)
    coefficients, _ = subspace.self_expression((rows @ rows.T).float()[None], MU)
    z = rows.numpy()
    for j in range(20):
        others = np.delete(np.arange(20), j)
        expected = np.linalg.solve(z[others] @ z[others].T + MU * np.eye(19), z[others] @ z[j])
        np.testing.assert_allclose(coefficients[0, others, j].numpy(), expected, atol=1e-5)
    assert not coefficients[0].diagonal().any()


def test_the_closed_form_is_the_minimum_of_the_self_expression_loss(generator: torch.Generator) -> None:
    rows = unit_rows(generator, 15, 8)
    found = subspace.self_expression((rows @ rows.T)[None], MU)[0][0].numpy()
    best = loss_of(found, rows.numpy())
    noise = np.random.default_rng(0)
    for size in (1e-1, 1e-2, 1e-3):
        step = size * noise.standard_normal(found.shape)
        np.fill_diagonal(step, 0.0)
        assert loss_of(found + step, rows.numpy()) > best


def slow_affinity(coefficients: np.ndarray, alpha: float, tau: float) -> np.ndarray:
    kept = np.zeros_like(coefficients)
    for j in range(coefficients.shape[1]):
        column, total = np.abs(coefficients[:, j]), 0.0
        for i in np.argsort(-column, kind="stable"):
            kept[i, j] = column[i]
            total += column[i]
            if total > alpha * column.sum():
                break
    graph = (kept + kept.T) / 2
    return graph + tau * graph.sum(1).mean() / len(graph)


@pytest.mark.parametrize("alpha", [0.04, 0.2, 0.5])
def test_affinity_keeps_the_largest_coefficients_up_to_a_share(generator: torch.Generator, alpha: float) -> None:
    rows = unit_rows(generator, 18, 6)
    coefficients, _ = subspace.self_expression((rows @ rows.T)[None], MU)
    graph = subspace.affinity(coefficients, torch.ones(1, 18, dtype=torch.bool), alpha=alpha, tau=0.1)
    np.testing.assert_allclose(graph[0].numpy(), slow_affinity(coefficients[0].numpy(), alpha, 0.1), atol=1e-12)


def test_a_padded_problem_is_solved_as_if_it_were_alone(generator: torch.Generator) -> None:
    small, large = unit_rows(generator, 11, 6), unit_rows(generator, 17, 6)
    gram = torch.zeros(2, 17, 17, dtype=torch.float64)
    gram[0, :11, :11], gram[1] = small @ small.T, large @ large.T
    valid = torch.arange(17)[None] < torch.tensor([[11], [17]])

    def solve(gram: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        graph = subspace.affinity(subspace.self_expression(gram, MU)[0], valid, alpha=0.2, tau=0.1)
        return graph, subspace.spectrum(graph, valid, 6)[0]

    graph, values = solve(gram, valid)
    alone, alone_values = solve(gram[:1, :11, :11], valid[:1, :11])
    torch.testing.assert_close(graph[0, :11, :11], alone[0])
    assert not graph[0, 11:].any()
    torch.testing.assert_close(values[0], alone_values[0])


def test_spectrum_is_that_of_the_normalised_laplacian(generator: torch.Generator) -> None:
    graph = torch.rand(14, 14, generator=generator, dtype=torch.float64)
    graph = graph + graph.T
    values, vectors = subspace.spectrum(graph[None], torch.ones(1, 14, dtype=torch.bool), 5)
    degree = graph.sum(1).numpy()
    laplacian = np.eye(14) - graph.numpy() / np.sqrt(np.outer(degree, degree))
    np.testing.assert_allclose(1 - values[0].numpy(), np.linalg.eigvalsh(laplacian)[:5], atol=1e-12)
    np.testing.assert_allclose(laplacian @ vectors[0].numpy(), vectors[0].numpy() * (1 - values[0].numpy()), atol=1e-12)


def test_eigenvectors_are_the_same_one_by_one_and_together(generator: torch.Generator) -> None:
    valid = torch.arange(17)[None] < torch.tensor([[11], [17]])
    graph = torch.rand(2, 17, 17, generator=generator, dtype=torch.float64) * (valid[:, :, None] & valid[:, None, :])
    graph = graph + graph.transpose(1, 2)
    scale = graph.sum(2).clamp(min=1e-300).rsqrt() * valid
    matrices = graph * scale[:, :, None] * scale[:, None, :]
    values, vectors = subspace.one_by_one(matrices, valid, 6)
    other_values, other_vectors = subspace.together(matrices, valid, 6)
    torch.testing.assert_close(other_values, values)
    torch.testing.assert_close((vectors * other_vectors).sum(1).abs(), torch.ones(2, 6, dtype=torch.float64))


def test_spectrum_spans_scikit_learns_embedding(generator: torch.Generator) -> None:
    graph = torch.rand(14, 14, generator=generator, dtype=torch.float64)
    graph = (graph + graph.T).fill_diagonal_(0.0)
    _, vectors = subspace.spectrum(graph[None], torch.ones(1, 14, dtype=torch.bool), 3)
    theirs = spectral_embedding(graph.numpy(), n_components=3, drop_first=False, random_state=0)
    theirs = theirs * np.sqrt(graph.sum(1).numpy())[:, None]  # theirs are divided by the root of the degree
    theirs /= np.linalg.norm(theirs, axis=0)
    overlap = np.abs(np.sum(theirs * vectors[0].numpy(), axis=0))
    np.testing.assert_allclose(overlap, 1.0, atol=1e-5)
