"""Benchmarks that the script for a GPU runs, at a toy scale on the CPU: else nobody sees that they are broken."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.test_folders import write_images


def test_training_is_measured_beside_plain_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning", reason="benchmarks need the peer: make install")
    from benchmarks import training

    for number in range(4):
        write_images(tmp_path / "images" / "train" / f"class {number}", 80, (32, 32))
        write_images(tmp_path / "images" / "test" / f"class {number}", 4, (32, 32), seed=1)
    monkeypatch.setattr(training, "PERIOD", 2)
    data, out = f"folder:{tmp_path / 'images'}", tmp_path / "out.json"
    words = ["--data", data, "--images", "256", "--rounds", "1", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["training", *words])
    training.main()
    result = json.loads(out.read_text())
    assert result["images_per_second"].keys() == {"ours", "plain", "bare"} and result["adapnet"]["periods"] == 2


def test_the_script_for_a_gpu_writes_as_it_goes_and_keeps_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu

    commands = {"quick": "print('done')", "long": "import time; time.sleep(60)", "broken": "raise SystemExit(3)"}
    parts = [gpu.Part(name, (sys.executable, "-c", code), 2.0) for name, code in commands.items()]
    monkeypatch.setattr(gpu, "parts", lambda *_: iter(parts))
    words = ["--nets", ".", "--data", "x=y", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["code"] for name, part in found.items()} == {"quick": 0, "long": 124, "broken": 3}
    assert found["quick"]["said"] == "done\n" and found["long"]["seconds"] < 30
    gpu.main()  # what is done is not done again
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["quick"] == found["quick"]


def test_the_script_for_a_gpu_has_all_that_it_should_show() -> None:
    from benchmarks import gpu

    names = [part.name for part in gpu.parts(Path("nets"), "cifar10-jpeg=folder:DIR", Path("out"), "cuda")]
    assert names == ["tests", "training", "resnet56", "resnet56-adapnet", "two processes", "real"]


def test_a_recipe_of_the_peer_is_a_plan_that_leaves_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning", reason="benchmarks need the peer: make install")
    from benchmarks import real_arms
    from compressor import load
    from compressor.graph.tensors import named_tensors
    from compressor.surgery import operate_
    from compressor.training.data import open_data

    taken: list[nn.Module] = []
    take = real_arms._taken
    monkeypatch.setattr(real_arms, "_taken", lambda *given: taken.append(take(*given)) or taken[-1])
    case = real_arms.Case(load("sample_models/digits_cnn.safetensors").eval(), open_data("digits"), 0, 1)
    plan, channels = real_arms.RECIPES["TP magnitude"].plan(case, 0.5)
    operate_(case.start, plan, channels)
    small = named_tensors(taken[0])
    assert all(torch.equal(tensor, small[name]) for name, tensor in named_tensors(case.start).items())
