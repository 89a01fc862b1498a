"""Deep subspace clustering of feature maps: DSC-Net's autoencoder and the closed form of its self-expressive layer.

Every tensor has a leading dimension `units`: the groups of channels of one map size are worked on together, padded to
the largest dictionary among them, with a mask `valid` (units, maps) for the places that hold a map.

Reference: AdapNet, section 3.1 and equation (2); Ji et al., "Deep Subspace Clustering Networks", the network for
COIL100: one 5x5 convolution of stride 2 to 50 channels, its transpose, ReLU after both. The sequence differs from the
papers in one point: the autoencoder is trained on mini-batches and kept from period to period, and the coefficients,
which have a closed form for p = 2, are solved for rather than trained.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

EPOCHS, BATCH, LEARNING_RATE = 2, 128, 1e-3  # of the autoencoders, in every period
LAMBDA1, LAMBDA2 = 1.0, 30.0  # of equation (2): DSC-Net's values for COIL100
ALPHA = 0.2  # share of a column's coefficients that the affinity keeps
TAU = 0.1  # connects the graph

CHANNELS = 50
KERNEL = 5
# TensorFlow's "same" padding for a 5x5 kernel of stride 2 on an even side: one before, two after.
PADDING = (1, 2, 1, 2)
WEIGHTS = ("encode_weight", "encode_bias", "decode_weight", "decode_bias")
ADAM_DECAY = (0.9, 0.999)

Autoencoder = dict[str, Tensor]


def new_autoencoder(generator: torch.Generator, device: torch.device) -> Autoencoder:
    """One unit's autoencoder with its Adam state: Xavier-uniform weights, zero biases."""
    area = KERNEL * KERNEL
    bound = (6.0 / (area + area * CHANNELS)) ** 0.5

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device).mul_(2).sub_(1).mul_(bound)

    weights = {
        "encode_weight": uniform(area, CHANNELS),
        "encode_bias": torch.zeros(1, CHANNELS),
        "decode_weight": uniform(CHANNELS, area),
        "decode_bias": torch.zeros(1, 1),
    }
    moments = {f"{name}.{kind}": torch.zeros_like(weights[name]) for name in WEIGHTS for kind in ("mean", "square")}
    state = {**weights, **moments, "steps": torch.zeros(())}
    return {name: value.to(device) for name, value in state.items()}


def stack(autoencoders: list[Autoencoder]) -> Autoencoder:
    """The autoencoders of several units as one, with a leading dimension `units`."""
    return {name: torch.stack([one[name] for one in autoencoders]) for name in autoencoders[0]}


def unstack(autoencoder: Autoencoder) -> list[Autoencoder]:
    """The single autoencoders of a stacked one; their tensors are their own."""
    count = autoencoder["steps"].shape[0]
    return [{name: value[i].clone() for name, value in autoencoder.items()} for i in range(count)]


def encode(autoencoder: Autoencoder, maps: Tensor) -> Tensor:
    """Latents (units, maps * side^2 / 4, 50) of `maps` (units, maps, side, side), one row per place."""
    # As a product of 5x5 patches: one input channel makes this faster than a grouped convolution.
    patches = F.pad(maps, PADDING).unfold(2, KERNEL, 2).unfold(3, KERNEL, 2)
    rows = patches.reshape(maps.shape[0], -1, KERNEL * KERNEL)
    return torch.baddbmm(autoencoder["encode_bias"], rows, autoencoder["encode_weight"]).relu()


def decode(autoencoder: Autoencoder, latents: Tensor, side: int) -> Tensor:
    """Maps (units, maps, side, side) from latents as `encode` gives them."""
    units, places = latents.shape[0], (side // 2) ** 2
    columns = torch.bmm(latents, autoencoder["decode_weight"])
    columns = columns.view(-1, places, KERNEL * KERNEL).transpose(1, 2)
    padded = F.fold(columns, (side + 3, side + 3), KERNEL, stride=2)
    maps = padded[:, 0, 1 : side + 1, 1 : side + 1].reshape(units, -1, side, side)
    return (maps + autoencoder["decode_bias"][..., None]).relu()


def unit_latents(autoencoder: Autoencoder, maps: Tensor) -> Tensor:
    """Latents flattened and scaled to length 1: (units, maps, 50 * side^2 / 4)."""
    rows = encode(autoencoder, maps).reshape(*maps.shape[:2], -1)
    return F.normalize(rows, dim=2, eps=1e-8)


def reconstruction_loss(autoencoder: Autoencoder, maps: Tensor, valid: Tensor) -> Tensor:
    """Half the squared error of each unit's reconstructions, summed over its maps: (units,).

    Reference: equation (2), first term.
    """
    errors = decode(autoencoder, encode(autoencoder, maps), maps.shape[-1]) - maps
    return 0.5 * (errors.square().sum((2, 3)) * valid).sum(1)


def train_(
    autoencoder: Autoencoder,
    maps: Tensor,
    valid: Tensor,
    generator: torch.Generator,
    *,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    lr: float = LEARNING_RATE,
) -> None:
    """Train the stacked autoencoder in place for `epochs` over each unit's maps (units, maps, side, side)."""
    units, count = valid.shape
    sizes = valid.sum(1)
    for _ in range(epochs):
        keys = torch.rand(units, count, generator=generator, device=generator.device).to(maps.device)
        order = (keys + 2.0 * ~valid).argsort(1)  # each unit's maps in random order, its padding last
        for start in range(0, count, batch):
            chosen = order[:, start : start + batch]
            inside = torch.arange(start, start + chosen.shape[1], device=maps.device)[None] < sizes[:, None]
            some = maps.gather(1, chosen[..., None, None].expand(-1, -1, *maps.shape[2:]))
            _step_(autoencoder, partial(reconstruction_loss, maps=some, valid=inside), inside.any(1), lr)


def _step_(autoencoder: Autoencoder, loss: Callable[[Autoencoder], Tensor], active: Tensor, lr: float) -> None:
    """One step of Adam for every unit that is `active` (units,)."""
    with torch.enable_grad():
        weights = {name: autoencoder[name].detach().requires_grad_() for name in WEIGHTS}
        gradients = torch.autograd.grad(loss(weights).sum(), list(weights.values()))
    active = active.to(gradients[0].dtype)
    autoencoder["steps"] = autoencoder["steps"] + active
    first, second = ADAM_DECAY
    steps, active = autoencoder["steps"].clamp(min=1)[:, None, None], active[:, None, None]
    for name, gradient in zip(WEIGHTS, gradients):
        mean, square = autoencoder[f"{name}.mean"], autoencoder[f"{name}.square"]
        mean += active * (1 - first) * (gradient - mean)
        square += active * (1 - second) * (gradient.square() - square)
        scale = (square / (1 - second**steps)).sqrt() + 1e-8
        autoencoder[name] = autoencoder[name] - active * lr * (mean / (1 - first**steps)) / scale


def self_expression(gram: Tensor, mu: float = 2 * LAMBDA1 / LAMBDA2) -> tuple[Tensor, Tensor]:
    """Coefficients that express every map by the others, and the inverse they come from: both (units, maps, maps).

    The exact minimum of lambda1 |C|^2 + lambda2/2 |Z - Z C|^2 under diag(C) = 0, where `gram` holds the products of the
    latents column j expresses map j. Padding (zero rows of `gram`) expresses nothing.

    Reference: equation (2), second and third term, with p = 2.
    """
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, _ = torch.linalg.cholesky_ex(gram + mu * eye)
    inverse = torch.cholesky_inverse(factor)
    coefficients = -inverse / inverse.diagonal(dim1=-2, dim2=-1)[:, None, :]
    return coefficients * (1 - eye), inverse


def affinity(coefficients: Tensor, valid: Tensor, *, alpha: float = ALPHA, tau: float = TAU) -> Tensor:
    """Symmetric affinity (units, maps, maps) of the maps, zero at padding.

    Each column keeps its largest coefficients until their sum first exceeds `alpha` of the column's; `tau` times the
    mean degree is then spread over all pairs, so that the graph is connected. Reference: DSC-Net's published code.
    """
    rows = coefficients.abs().transpose(1, 2)  # sorted along the last dimension, which is contiguous
    ordered, order = rows.sort(dim=2, descending=True)
    before = ordered.cumsum(2) - ordered
    kept = ordered * (before <= alpha * ordered.sum(2, keepdim=True))
    rows = torch.zeros_like(rows).scatter_(2, order, kept)
    graph = (rows + rows.transpose(1, 2)) / 2
    count = valid.sum(1)[:, None, None].clamp(min=1)
    mean_degree = graph.sum((1, 2))[:, None, None] / count
    pairs = valid[:, :, None] & valid[:, None, :]
    return graph + pairs * (tau * mean_degree / count)


def spectrum(graph: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues (units, count), falling, and their eigenvectors (units, maps, count), as doubles.

    Of D^-1/2 A D^-1/2, so that one minus a value is an eigenvalue of the normalised Laplacian. Padding has no part.
    """
    graph = graph.double()
    scale = graph.sum(2).clamp(min=1e-300).rsqrt() * valid
    normalised = graph * scale[:, :, None] * scale[:, None, :]
    # LAPACK takes one matrix after the other, so there padding would only cost time.
    return (one_by_one if graph.device.type == "cpu" else together)(normalised, valid, count)


def one_by_one(matrices: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues and their eigenvectors of each matrix without its padding."""
    units, size = valid.shape
    values, vectors = matrices.new_zeros(units, count), matrices.new_zeros(units, size, count)
    for i, used in enumerate(valid.sum(1).tolist()):
        taken = min(count, used)
        one_values, one_vectors = torch.linalg.eigh(matrices[i, :used, :used])
        values[i, :taken] = one_values.flip(0)[:taken]
        vectors[i, :used, :taken] = one_vectors.flip(1)[:, :taken]
    return values, vectors


def together(matrices: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same for all matrices at once, whose eigenvalues lie in -1..1: padding is given -2, so it comes last."""
    padded = matrices - 2 * torch.diag_embed((~valid).to(matrices.dtype))
    values, vectors = torch.linalg.eigh(padded)
    return values.flip(1)[:, :count], vectors.flip(2)[:, :, :count]
