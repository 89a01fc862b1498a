"""Milliseconds at every depth are those of the whole exported network, which sends images on."""

import numpy as np
import onnx
import onnxruntime
import torch

from compressor.exporting.forms import AtDepth
from compressor.runs import depth_times as module
from compressor.runs.depth_times import depth_times
from tests.routing.nets import Residual, routed


def test_each_depth_is_timed_in_the_whole_network(monkeypatch):
    torch.manual_seed(0)
    network = routed(Residual, leave_after=(1, 3)).eval()
    network.set_threshold_([0.3])
    x = torch.randn(2, 1, 8, 8)
    ran = []

    def latency(path, shape):
        session = onnxruntime.InferenceSession(path)
        ran.append(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        sends = {"NonZero", "ScatterND"} <= {node.op_type for node in onnx.load(path).graph.node}
        return {"median": 10.0 * len(ran) + sends}

    monkeypatch.setattr(module, "file_latency", latency)
    assert depth_times(network, x) == (11.0, 21.0)
    with torch.no_grad():
        for depth, scores in enumerate(ran):
            wanted = AtDepth(network, depth, router=False)(x)[0]
            np.testing.assert_allclose(scores, wanted.numpy(), atol=1e-5)
    assert torch.allclose(network.thresholds, torch.tensor([0.3]))
