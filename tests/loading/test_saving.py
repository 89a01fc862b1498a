"""What is written opens again, the same: whole, edited, of every kind of architecture; and nothing is overwritten."""

import numpy as np
import pytest
import torch
from torch import nn

import compressor
from compressor import vision
from compressor.errors import CompressorError, FileError, ModelError, UsageError
from compressor.loading import open_model, save_model
from tests.loading import nets


def assert_same_outputs(one: nn.Module, other: nn.Module, *shape: int) -> None:
    x = torch.rand(2, *shape)
    with torch.no_grad():
        assert torch.equal(one.eval()(x), other.eval()(x))


def test_everything_that_was_said_comes_back(tmp_path):
    arch = nets.write(tmp_path)
    opened = open_model(None, arch=arch, arch_arguments={"num_classes": 2, "width": 4})
    save_model(
        opened,
        tmp_path / "runs" / "new" / "model.pt",
        classes=["cat", "dog"],
        mean=np.array([0.5]),
        std=(np.float32(0.25),),
        history=["compressor train ..."],
        measurements={"macs": np.int64(12), "top1": None, "latency_ms": {"torch": (1.0, 2)}},
    )
    again = open_model(tmp_path / "runs" / "new" / "model.pt")
    assert_same_outputs(opened.module, again.module, 1, 8, 8)
    assert again.arch == opened.arch
    assert again.input_shape == (1, 8, 8)
    assert (again.classes, again.mean, again.std) == (("cat", "dog"), (0.5,), (0.25,))
    assert again.history == ("compressor train ...",)
    assert again.measurements == {"macs": 12, "top1": None, "latency_ms": {"torch": (1.0, 2)}}
    save_model(again, tmp_path / "next.pt", history=["compressor prune ..."])
    assert open_model(tmp_path / "next.pt").history == ("compressor train ...", "compressor prune ...")


def test_edited_network_opens_with_its_sizes(tmp_path):
    opened = open_model(None, arch=nets.write(tmp_path))
    nets.narrow_(opened.module, 3)
    save_model(opened, tmp_path / "model.pt")
    again = open_model(tmp_path / "model.pt")
    assert again.module.conv.out_channels == 3
    assert_same_outputs(opened.module, again.module, 1, 8, 8)
    assert (tmp_path / "model.pt").stat().st_size < 6000  # the cut-off rows are not in the file


def test_file_holds_plain_types_and_tensors_only(tmp_path):
    save_model(open_model(None, arch=nets.write(tmp_path)), tmp_path / "model.pt")
    held = torch.load(tmp_path / "model.pt", weights_only=True)
    assert held["format"] == "compressor"
    assert held["arch"]["sha256"]


def test_torchvision_network_opens_without_naming_it_again(tmp_path):
    module = vision.build("squeezenet1_1", num_classes=3)
    compressor.save(module, tmp_path / "m.pt", arch="torchvision:squeezenet1_1:num_classes=3", input_shape=(3, 64, 64))
    again = open_model(tmp_path / "m.pt")
    assert_same_outputs(module, again.module, 3, 64, 64)
    assert again.input_shape == (3, 64, 64)


def test_network_of_torchs_layers_needs_no_architecture(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    module[0].weight.grad = torch.ones_like(module[0].weight)
    module[2].register_forward_hook(lambda *_: None)
    compressor.save(module, tmp_path / "m.pt", input_shape=(1, 8, 8))
    again = open_model(tmp_path / "m.pt")
    assert_same_outputs(module, again.module, 1, 8, 8)
    assert not again.module[2]._forward_hooks
    assert len(module[2]._forward_hooks) == 1
    with pytest.raises(UsageError, match="leave --arch away"):
        open_model(tmp_path / "m.pt", arch="torchvision:resnet18")


def test_network_of_own_code_needs_its_architecture(tmp_path):
    module = open_model(None, arch=nets.write(tmp_path)).module
    with pytest.raises(UsageError, match="arch="):
        compressor.save(module, tmp_path / "m.pt")
    holds_a_function = nn.Sequential(nn.ReLU())
    holds_a_function.act = torch.relu
    with pytest.raises(UsageError, match="arch="):
        compressor.save(holds_a_function, tmp_path / "m.pt")
    holds_a_function.act = lambda x: x
    with pytest.raises(UsageError, match="arch="):
        compressor.save(holds_a_function, tmp_path / "m.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


def test_wrong_architecture_is_found_while_saving(tmp_path):
    with pytest.raises(ModelError, match="not an edited torchvision:resnet18"):
        compressor.save(vision.build("squeezenet1_1"), tmp_path / "m.pt", arch="torchvision:resnet18")
    assert not list(tmp_path.iterdir())


def test_wrappers_are_taken_off(tmp_path):
    arch = nets.write(tmp_path)
    opened = open_model(None, arch=arch)
    save_model(nn.DataParallel(opened.module), tmp_path / "m.pt", arch=arch)
    assert_same_outputs(opened.module, compressor.load(tmp_path / "m.pt"), 1, 8, 8)


def test_nothing_is_overwritten_unasked(tmp_path):
    (tmp_path / "m.pt").write_text("precious")
    opened = open_model(None, arch=nets.write(tmp_path))
    with pytest.raises(FileError, match="exists"):
        save_model(opened, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").read_text() == "precious"
    save_model(opened, tmp_path / "m.pt", overwrite=True)
    assert compressor.load(tmp_path / "m.pt")


def test_failed_write_leaves_the_old_file_and_no_new_one(tmp_path, monkeypatch):
    opened = open_model(None, arch=nets.write(tmp_path))
    save_model(opened, tmp_path / "m.pt")
    before = (tmp_path / "m.pt").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("compressor.loading.saving.torch.save", full)
    with pytest.raises(FileError, match="No space left"):
        save_model(opened, tmp_path / "m.pt", overwrite=True)
    assert (tmp_path / "m.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "net.py"]


def test_values_that_would_need_code_are_refused(tmp_path):
    opened = open_model(None, arch=nets.write(tmp_path))
    with pytest.raises(UsageError, match=r"measurements\['where'\] holds a PosixPath"):
        save_model(opened, tmp_path / "m.pt", measurements={"where": tmp_path})


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_weights_that_a_hook_computes_are_refused_until_they_are_plain(tmp_path):
    module = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU()).eval()
    x = torch.randn(2, 1, 5, 5)
    expected = module(x)
    with pytest.raises(UsageError, match="0 computes its weight in a hook .WeightNorm.*remove_weight_norm"):
        compressor.save(module, tmp_path / "model.pt")
    nn.utils.remove_weight_norm(module[0])
    compressor.save(module, tmp_path / "model.pt")
    torch.testing.assert_close(compressor.load(tmp_path / "model.pt")(x), expected)


def test_tensors_that_a_module_remembers_are_no_hindrance(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    module[0].last = module[0].weight * 2  # with a gradient of its own, which deepcopy refuses
    compressor.save(module, tmp_path / "model.pt")
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(compressor.load(tmp_path / "model.pt")(x), module(x))


def test_saving_spends_no_random_numbers(tmp_path):
    opened = open_model(None, arch=nets.write(tmp_path))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    save_model(opened, tmp_path / "m.pt")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", 3),
        ("state", {"conv.weight": "text"}),
        ("arch", {"name": "net"}),
        ("arch", None),
        ("input_shape", "wide"),
        ("structure", {"shapes": {"conv.weight": [1, 1]}}),
        ("structure", {"shapes": {"conv.weight": "text"}}),
        ("structure", {"attributes": {"conv": {"forward": 3}}}),
        ("structure", {"attributes": 3}),
        ("measurements", 3),
    ],
)
def test_damaged_checkpoints_are_one_line(tmp_path, field, value):
    save_model(open_model(None, arch=nets.write(tmp_path)), tmp_path / "m.pt")
    held = torch.load(tmp_path / "m.pt")
    held[field] = value
    torch.save(held, tmp_path / "m.pt")
    with pytest.raises(FileError) as caught:
        open_model(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 5000 + ".py:build", "a\0.py:build", "", ":", "/:build"])
def test_file_names_that_no_file_has_are_one_line(tmp_path, name):
    save_model(open_model(None, arch=nets.write(tmp_path)), tmp_path / "m.pt")
    held = torch.load(tmp_path / "m.pt")
    held["arch"]["name"] = name
    torch.save(held, tmp_path / "m.pt")
    with pytest.raises(CompressorError, match="architecture") as caught:
        open_model(tmp_path / "m.pt")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_checkpoint_downloads_nothing(tmp_path):
    compressor.save(vision.build("squeezenet1_1"), tmp_path / "m.pt", arch="torchvision:squeezenet1_1")
    held = torch.load(tmp_path / "m.pt")
    held["arch"]["arguments"] = {"weights": "DEFAULT"}
    torch.save(held, tmp_path / "m.pt")
    with pytest.raises(UsageError, match="without `weights`"):
        compressor.load(tmp_path / "m.pt")
