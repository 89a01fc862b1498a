"""The search for the map: what is known is a value, and the map that it ends with runs in every trial."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.graph.refine import Known, Refinement
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Way, run
from compressor.graph.unions import Unions
from tests.networks import NETWORKS

A, B = np.arange(2), np.arange(2, 4)


def test_a_refinement_leaves_what_was_known_as_it_was():
    known = Known()
    more = known.tying(A, B).freezing([A, B], "why")
    assert known == Known() and len(more.pairs) == 1 and [why for _, why in more.frozen] == ["why", "why"]
    ties = Unions(count=4)
    assert len(more.beyond(ties).pairs) == 1 and not ties.pairs and not ties.frozen


@pytest.mark.parametrize("name", ["Plain", "WrittenSize", "StoredGroups", "CheckedSize", "Chunked"])
def test_nothing_objects_to_the_map_that_is_found_and_the_replica_is_as_before(name):
    model = NETWORKS[name]().eval()
    replica = Replica(model)
    shapes = {key: tensor.shape for key, tensor in replica.tensors.items()}
    way = Way(model.example())
    search = Refinement(replica, [(run(replica, way), way)], frozenset())
    found, _ = search.refine(frozenset())
    assert search._tried(found).objection is None
    assert {key: tensor.shape for key, tensor in replica.tensors.items()} == shapes
    assert any(group.frozen is None for group in found.groups) or name == "WrittenSize"


def test_what_is_kept_by_request_is_frozen():
    model = NETWORKS["Plain"]().eval()
    replica, way = Replica(model), Way(model.example())
    search = Refinement(replica, [(run(replica, way), way)], frozenset())
    free = [group.name for group in search.refine(frozenset())[0].groups if group.frozen is None]
    kept, _ = search.refine(frozenset(free[:1]))
    assert [group.name for group in kept.groups if group.frozen is None] == free[1:]


class WeightOnly(nn.Module):
    """Reads the weight of a layer that it never calls, and calls another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.third(self.second(nn.functional.linear(x, self.first.weight)))
        return scores


def test_channels_keep_their_number_where_a_tensor_that_no_run_used_has_as_many():
    replica, way = Replica(WeightOnly().eval()), Way(torch.zeros(2, 3))
    search = Refinement(replica, [(run(replica, way), way)], frozenset({"first.bias"}))
    found = {group.name: group.frozen for group in search.refine(frozenset())[0].groups}
    assert found["first"] == "first.bias, which no run used, has as many channels" and found["second"] is None
