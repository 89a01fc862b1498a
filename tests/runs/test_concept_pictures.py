"""Pictures of concepts: the exemplars of each, strongest concept first."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from compressor.pruning.adapnet.subspace import new_autoencoder
from compressor.pruning.adapnet.unit import Unit
from compressor.runs.adapnet_section import section
from compressor.runs.concept_pictures import galleries


def unit_of(concepts):
    unit = Unit("conv", [0, 1], 8, new_autoencoder(torch.Generator().manual_seed(0), torch.device("cpu")))
    unit.table = torch.tensor([[1.0, 6.0, 2.0], [1.0, 6.0, 4.0]], dtype=torch.float64)
    unit.exemplars = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(1)).half()
    unit.owners = torch.tensor([0, 1, 1, 2, 2])
    unit.concepts = concepts
    return unit


def opened(uri):
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)), dtype=float)


def test_the_strongest_concept_stands_first_with_its_own_maps():
    unit = unit_of([0, 1])
    [gallery] = galleries([unit])
    assert [(label, len(pictures)) for label, pictures in gallery.rows] == [("60 %", 2), ("10 %", 1)]
    map_ = unit.exemplars[1].float().numpy()
    wanted = 255 * (map_ - map_.min()) / (map_.max() - map_.min())
    assert np.abs(opened(gallery.rows[0][1][0]) - wanted).max() <= 0.51


def test_a_layer_without_concepts_has_none_and_many_layers_are_thinned():
    assert galleries([unit_of([])]) == ()
    assert len(galleries([unit_of([1])] * 40)) <= 6


def test_marks_stand_where_a_layer_was_edited():
    rows = [
        {"period": p, "frozen": 0, "prunes": 0, "merges": 0, "inserts": 0}
        | {"groups": [{"group": "conv", "filters": 8 - p, "clusters": 3, "concepts": 2}]}
        for p in range(3)
    ]
    edits = [{"kind": "prune", "period": 2, "group": "conv"}, {"kind": "prune", "period": 1, "group": "elsewhere"}]
    [part] = section(rows, edits)
    [marks] = [curve for curve in part.plots[0].curves if curve.look]
    assert (marks.label, marks.x, marks.y) == ("pruned", (2.0,), (6.0,))
