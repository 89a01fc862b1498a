"""Programs that are written: opened by plain torch and by compressor, with what is known of the model inside."""

import json
from pathlib import Path

import pytest
import torch

from compressor.errors import CompressorError, FileError, ModelError
from compressor.exporting.to_torch import export_program
from compressor.graph import capture
from compressor.loading.opening import open_model
from compressor.report.card import Card
from compressor.surgery import operate_
from compressor.vision import door as vision
from compressor.vision.preparation import Preparation
from tests.equivalence import half_plan, masked_outputs, outputs, randomise_, relative_error
from tests.exporting.nets import small_net
from tests.exporting.test_package import Noisy

EXAMPLE = torch.zeros(1, 3, 8, 8)
CARD = Card(
    ("ant", "bee", "cow", "dog"), Preparation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), frame=2), ("compressor prune net.pt",)
)


def test_it_opens_everywhere_and_knows_its_model(tmp_path: Path) -> None:
    images = torch.rand(6, 3, 8, 8)
    check = export_program(
        small_net(), EXAMPLE, tmp_path / "net.pt2", card=CARD, settings={"ratio": 0.5}, check_inputs=images
    )
    assert check.max_rel == 0 and check.inputs == "real" and check.file_bytes == (tmp_path / "net.pt2").stat().st_size
    extra = {"compressor.json": ""}
    plain = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    torch.testing.assert_close(plain(images), small_net()(images))
    assert json.loads(extra["compressor.json"])["settings"] == {"ratio": 0.5}
    opened = open_model(tmp_path / "net.pt2", trust=True)
    assert (opened.classes, opened.preparation, opened.history) == (CARD.classes, CARD.preparation, CARD.history)
    assert opened.input_shape == (3, 8, 8)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pt2"]


def test_what_differs_or_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"mine")
    with pytest.raises(CompressorError, match="differ"):
        export_program(Noisy(), EXAMPLE, path)
    with pytest.raises(ModelError, match="does not run"):
        export_program(small_net(), torch.zeros(1, 1, 8, 8), path)
    with pytest.raises(FileError, match="is a folder"):
        export_program(small_net(), EXAMPLE, tmp_path)
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "vgg11"])
def test_torchvision_networks_are_edited_as_programs(name: str, tmp_path: Path) -> None:
    model, images = randomise_(vision.build(name, num_classes=5)).float(), torch.randn(4, 3, 64, 64)
    export_program(model, images[:1], tmp_path / "net.pt2")
    opened = open_model(tmp_path / "net.pt2", trust=True)
    module, wide = opened.module.double(), images.double()
    channels = capture(module, wide)
    eager = capture(model.double(), wide)
    assert {group.name: group.size for group in channels.free} == {group.name: group.size for group in eager.free}
    plan = half_plan(channels)
    expected = masked_outputs(module, wide, channels, plan.removed)
    operate_(module, plan, channels)
    assert relative_error(outputs(module, wide), expected) < 1e-10

    module.float().train()
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    for _ in range(2):
        torch.nn.functional.cross_entropy(module(images), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    export_program(module.eval(), images[:1], tmp_path / "half.pt2", check_inputs=images)
    again = open_model(tmp_path / "half.pt2", trust=True).module
    assert relative_error(outputs(again, images), outputs(module, images)) < 1e-6
