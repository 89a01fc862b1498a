"""State dicts with masks and norms in them give the weights that the network computed with."""

import pytest
import torch
import torch.nn.utils.prune as masks
from torch import nn
from torch.nn.utils import parametrizations

from compressor.errors import FileError
from compressor.loading.folding import folded
from compressor.loading.opening import open_model
from tests.loading import nets

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")


def network() -> nn.Sequential:
    """Layers of all kinds, the transposed convolution square so that nothing tells its dims apart."""
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten())
    return layers.append(nn.Linear(4 * 8 * 8, 3)).eval()


CODE = """
from torch import nn


def build():
    layers = [nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 8 * 8, 3))
"""


def mask_(layer: nn.Module) -> None:
    masks.ln_structured(layer, "weight", 0.5, 1, 0)
    masks.random_unstructured(layer, "bias", 0.5)


def train_a_little_(module: nn.Module) -> None:
    """Let the power iterations of spectral norm come close to singular vectors."""
    module.train()
    for _ in range(20):
        module(torch.rand(2, 2, 8, 8))
    module.eval()


CHANGES = {
    "masks": mask_,
    "old weight norm": nn.utils.weight_norm,
    "old weight norm along another dim": lambda layer: nn.utils.weight_norm(layer, dim=1),
    "old weight norm of the whole": lambda layer: nn.utils.weight_norm(layer, dim=None),
    "weight norm": parametrizations.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "spectral norm": parametrizations.spectral_norm,
    "masked direction": lambda layer: masks.l1_unstructured(nn.utils.weight_norm(layer), "weight_v", 0.3),
    "masked before its spectral norm": lambda layer: masks.l1_unstructured(
        parametrizations.spectral_norm(layer).parametrizations.weight, "original", 0.3
    ),
}
PREFIXES = {"none": "", "DataParallel": "module.", "compiled": "_orig_mod.", "both": "module._orig_mod."}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_network_computes_with_the_folded_weights_what_it_computed(tmp_path, change, prefix):
    module = network()
    for layer in (module[0], module[1], module[4]):
        change(layer)
    train_a_little_(module)
    x = torch.rand(1, 2, 8, 8)
    expected = module(x).detach()
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch=nets.write(tmp_path, CODE))
    assert torch.allclose(opened.module(x), expected, atol=1e-6)
    assert "folded into the weights" in opened.notes[0]


def test_masks_that_the_architecture_has_itself_stay(tmp_path):
    code = (
        "from torch import nn\nfrom torch.nn.utils import prune\n\n\ndef build():\n"
        "    layer = nn.Linear(4, 2)\n    prune.identity(layer, 'weight')\n    return nn.Sequential(layer)\n"
    )
    layer = nn.Sequential(nn.Linear(4, 2))
    mask_(layer[0])
    masks.remove(layer[0], "bias")
    torch.save(layer.state_dict(), tmp_path / "m.pt")
    opened = open_model(tmp_path / "m.pt", arch=nets.write(tmp_path, code))
    assert torch.equal(opened.module[0].weight_mask, layer[0].weight_mask)
    assert opened.notes == ()


def test_parametrization_that_is_not_known_is_left_and_named(tmp_path):
    module = network()
    parametrizations.orthogonal(module[4])
    torch.save(module.state_dict(), tmp_path / "m.pt")
    with pytest.raises(FileError, match=r"missing: 4\.weight; .* 4\.parametrizations\.weight\.original"):
        open_model(tmp_path / "m.pt", arch=nets.write(tmp_path, CODE))


@pytest.mark.parametrize(
    "state",
    [
        {"a.weight_orig": torch.ones(2), "a.weight_mask": torch.ones(3)},
        {"a.weight_orig": torch.ones(2)},
        {"a.weight_g": torch.ones(5), "a.weight_v": torch.ones(2, 3)},
        {"a.weight_g": torch.ones(2), "a.weight_v": torch.ones(2, dtype=torch.int32)},
        {"a.weight_orig": torch.ones(2, 3), "a.weight_u": torch.ones(9), "a.weight_v": torch.ones(3)},
        {"a.weight_orig": torch.ones(2), "a.weight_mask": torch.ones(2), "a.weight": torch.ones(2)},
        {"_orig": torch.ones(()), "_mask": torch.ones(1)},
    ],
)
def test_tensors_that_do_not_fit_one_another_are_left(state):
    assert folded(state) == (state, {})
