"""Sub-models of published architectures compute what their base computes behind the cut, at the listed cost."""

import pytest
import torch

from compressor.exits.cutting import choose_points
from compressor.exits.detachable import make_detachable
from compressor.exits.points import Survey
from compressor.exits.settings import DetachSettings
from compressor.profiling.costs import profile
from compressor.vision import door as vision
from tests.equivalence import randomise_, relative_error
from tests.exits.nets import images

NAMES = ("resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "googlenet", "squeezenet1_0",
         "efficientnet_b0", "regnet_y_400mf", "resnext50_32x4d", "vgg11_bn")  # fmt: skip


@pytest.mark.zoo
@pytest.mark.parametrize("name", NAMES)
def test_two_sub_models(name):
    shape = (3, 96, 96)
    found = Survey(randomise_(vision.build(name)), shape)
    chosen = choose_points(found, DetachSettings(exits=2))
    model = make_detachable(found, {point.at: point.plan for point in chosen}, "stats").eval()
    x = images(shape, 2).double()
    for exit, point in enumerate(chosen, start=1):
        behind = found.chain.segment(point.cut.index, found.end)
        with torch.no_grad():
            inside = model.detach(exit).step_down(x)
            assert inside.shape[1:] == point.cut.shape
            assert relative_error([model(x, exit=exit)], [behind(inside)]) < 1e-12
        cost = profile(model.detach(exit), x[:1], layers=False)
        assert (cost.macs, cost.params) == (point.macs, point.params)
