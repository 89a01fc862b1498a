"""From a period's recorded maps to clusters and counts, for many groups of channels at once.

What is costly runs batched on the maps' device: per map size one training of the stacked autoencoders, then for all
groups together one self-expression problem and one eigen-decomposition. Maps never travel to the host; masks,
embeddings and counts do.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.pruning.adapnet import clusters, subspace, tables
from compressor.pruning.adapnet.clusters import PER_CLUSTER, Clustering
from compressor.pruning.adapnet.maps import Recording
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.unit import Unit

# Bounds of the working memory: groups of side 32 trained together (smaller maps: more), and bytes of latents at a time.
_TOGETHER_AT_32 = 8
_LATENT_BYTES = 2**26


@dataclass
class _Task:
    """One group on its way through a boundary."""

    unit: Unit
    recording: Recording
    fired: Tensor  # (filters, maps) on the host
    dictionary: Tensor  # (n, side, side): exemplars of the old clusters, then new maps
    latents: Tensor | None = None  # (n, d), rows of length 1
    inverse: Tensor | None = None  # (n, n)

    @property
    def count(self) -> int:
        return len(self.dictionary)


def choose_maps(fired: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """About `count` of the maps that fired, the same number from every filter that has them, at random.

    `fired` is (filters, maps) on the host; the result holds indices into its flat form. With more filters than `count`
    one map each from a random subset.
    """
    filters, maps = fired.shape
    each = min(math.ceil(count / max(int(fired.any(1).sum()), 1)), maps)
    keys = torch.rand(filters, maps, generator=generator).masked_fill(~fired, -1.0)
    best = keys.topk(each, dim=1)
    flat = (best.indices + maps * torch.arange(filters)[:, None])[best.values >= 0]
    order = torch.randperm(len(flat), generator=generator)[:count]
    return flat[order].sort().values


def extract(
    units: list[Unit], classes: int | None, settings: AdapNetSettings, generator: torch.Generator
) -> dict[str, Clustering]:
    """Cluster the recorded maps of every unit and update its autoencoder, exemplars and table in place.

    Returns the clusterings by the unit's name, for those whose dictionary was enough: at least 8 maps for each cluster
    to be told apart, exemplars among them. The other units keep their tables.
    """
    tasks = [task for unit in units if (task := _prepare(unit, settings, generator)) is not None]
    for group in _by_size(tasks):
        _train_(group, generator)
    found = _cluster(tasks, classes, settings, generator) if tasks else []
    labels = [_assign(task, clustering) for task, clustering in zip(tasks, found)]
    for task, one in zip(tasks, labels):  # only now waiting for the device
        _count_(task, one.cpu())
    return {task.unit.name: clustering for task, clustering in zip(tasks, found)}


def _prepare(unit: Unit, settings: AdapNetSettings, generator: torch.Generator) -> _Task | None:
    """The unit's dictionary, or None when too few maps fired."""
    recording = unit.recording
    if recording is None or recording.filled == 0:
        return None
    fired = recording.fired.cpu()
    chosen = choose_maps(fired, settings.dict_size, generator)
    enough = len(chosen) >= PER_CLUSTER * clusters.K_MIN
    if not enough or len(unit.exemplars) + len(chosen) < PER_CLUSTER * unit.clusters:
        return None
    maps = recording.maps.flatten(0, 1)[chosen.to(unit.device)]
    return _Task(unit, recording, fired, torch.cat([unit.exemplars, maps]))


def _by_size(tasks: list[_Task]) -> Iterator[list[_Task]]:
    """Tasks of one map size, as many together as the memory is meant for."""
    sizes: dict[int, list[_Task]] = defaultdict(list)
    for task in tasks:
        sizes[task.unit.size].append(task)
    for size, members in sizes.items():
        together = max(1, _TOGETHER_AT_32 * 32**2 // size**2)
        for start in range(0, len(members), together):
            yield members[start : start + together]


def _train_(group: list[_Task], generator: torch.Generator) -> None:
    """Two epochs of the autoencoders, and from them every task's latents and inverse Gram matrix."""
    maps = torch.nn.utils.rnn.pad_sequence([task.dictionary for task in group], batch_first=True).float()
    valid = _valid(group)
    autoencoder = subspace.stack([task.unit.autoencoder for task in group])
    subspace.train_(autoencoder, maps, valid, generator)
    with torch.no_grad():
        latents = subspace.unit_latents(autoencoder, maps) * valid[..., None]
    for i, (task, trained) in enumerate(zip(group, subspace.unstack(autoencoder))):
        task.unit.autoencoder = trained
        task.latents = latents[i, : task.count]


def _valid(group: list[_Task]) -> Tensor:
    """Mask (units, longest dictionary) of the places that hold a map."""
    counts = torch.tensor([task.count for task in group])
    return (torch.arange(int(counts.max()))[None] < counts[:, None]).to(group[0].unit.device)


def _gram(tasks: list[_Task]) -> Tensor:
    """Products of each task's latents, padded with zeros: (units, n, n)."""
    largest = max(task.count for task in tasks)
    gram = torch.zeros(len(tasks), largest, largest, device=tasks[0].unit.device)
    for i, task in enumerate(tasks):
        assert task.latents is not None
        gram[i, : task.count, : task.count] = task.latents @ task.latents.T
    return gram


def _cluster(
    tasks: list[_Task], classes: int | None, settings: AdapNetSettings, generator: torch.Generator
) -> list[Clustering]:
    """Clusterings of all dictionaries; the units' clusters grow to match."""
    valid = _valid(tasks)
    coefficients, inverse = subspace.self_expression(_gram(tasks))
    graph = subspace.affinity(coefficients, valid)
    limits = [clusters.count_limit(classes, task.unit.filters, task.count) for task in tasks]
    values, vectors = subspace.spectrum(graph, valid, max(limits) + 1)
    values, vectors = values.cpu(), vectors.cpu()
    found = []
    for i, task in enumerate(tasks):
        unit, limit = task.unit, limits[i]
        task.inverse = inverse[i, : task.count, : task.count]
        counted = clusters.eigengap(values[i], min(clusters.K_MIN, limit), limit)
        number = max(counted, unit.clusters)
        points = clusters.embed(vectors[i, : task.count], number)
        start = clusters.seed(points, clusters.transported(points, unit.owners, unit.clusters), number, generator)
        weights = torch.zeros(number, dtype=torch.float64)
        weights[: unit.clusters] = unit.points.clamp(max=settings.dict_size)
        clustering = clusters.without_empty(clusters.cluster(points, start, weights), unit.clusters)
        _adopt_(task, clustering)
        found.append(clustering)
    return found


def _adopt_(task: _Task, found: Clustering) -> None:
    """Give the unit its new clusters and every cluster its new exemplars; one without points keeps the old ones."""
    unit, clusters_now = task.unit, len(found.centres)
    added = clusters_now - unit.clusters
    old = [torch.nonzero(unit.owners == q).flatten() for q in range(unit.clusters)] + [torch.zeros(0).long()] * added
    # The exemplars are the first maps of the dictionary, so an old exemplar's index there is its own.
    chosen = [new if len(new) else old[q] for q, new in enumerate(clusters.nearest(found, clusters.EXEMPLARS))]
    unit.owners = torch.repeat_interleave(torch.tensor([len(one) for one in chosen]))
    unit.exemplars = task.dictionary[torch.cat(chosen).to(unit.device)]
    unit.table = tables.add_columns(unit.table, clusters_now)
    unit.idle = torch.cat([unit.idle, unit.idle.new_zeros(added)])
    sizes = torch.bincount(found.labels, minlength=clusters_now)
    unit.points = torch.cat([unit.points, unit.points.new_zeros(added)]) + sizes


@torch.no_grad()
def _assign(task: _Task, found: Clustering) -> Tensor:
    """The clusters of all recorded maps that fired, in the order of `fired`, on the maps' device."""
    assert task.latents is not None and task.inverse is not None
    maps = task.recording.maps.flatten(0, 1)
    at_once = max(1, _LATENT_BYTES // (4 * task.latents.shape[1]))
    stacked = subspace.stack([task.unit.autoencoder])
    labels = []
    for part in torch.nonzero(task.fired.flatten()).flatten().to(task.unit.device).split(at_once):
        latents = subspace.unit_latents(stacked, maps[part][None].float())[0]
        labels.append(clusters.assign(latents, task.latents, task.inverse, found))
    return torch.cat(labels)


def _count_(task: _Task, labels: Tensor) -> None:
    """Add the period's labels to the unit's table."""
    unit = task.unit
    filters = torch.nonzero(task.fired)[:, 0]
    new = tables.count_labels(filters, labels, unit.filters, unit.clusters)
    unit.table = unit.table + new
    unit.boundaries += 1
    received = new.sum(0)
    unit.idle = torch.where(received < clusters.RETIRE_SHARE * received.sum(), unit.idle + 1, 0)
