"""The programs in examples, run with small networks."""

import ast
import importlib
import json
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from compressor.report.html import draw
from compressor.vision import door
from tests.torchvision_operators import stand_ins

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """A program by its name; skipped where the library that it shows is not installed."""
    name, library = request.param
    assert door.torchvision  # which that library may import; without its compiled operators it can be after the door
    pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(name)


def half_went(report) -> None:
    assert 0.4 < report.after.macs / report.before.macs <= 0.51 and report.rows and report.edits


QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


@pytest.mark.slow
@pytest.mark.parametrize("example", [("lightning_callback", "lightning")], indirect=True)
@pytest.mark.filterwarnings("ignore")  # the library's own: of loaders without workers, of the folder of its logs
def test_lightning_trains_what_the_callback_prunes(example, tmp_path):
    half_went(example.train(2, 8, default_root_dir=tmp_path, **QUIET))


@pytest.mark.slow
@pytest.mark.parametrize("example", [("lightning_callback", "lightning")], indirect=True)
@pytest.mark.filterwarnings("ignore")
def test_where_lightning_adds_up_gradients_the_pruner_counts_steps(example, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(example.compressor.Pruner, "step", lambda pruner: counted.append(1))
    example.train(2, 8, default_root_dir=tmp_path, accumulate_grad_batches=4, limit_train_batches=8, **QUIET)
    assert len(counted) == 4


@pytest.mark.slow
@pytest.mark.parametrize("example", [("hugging_face_trainer", "transformers")], indirect=True)
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_trains_what_the_callback_prunes(example, tmp_path):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    report = example.train(1, (8, 12), output_dir=str(tmp_path), report_to=[], disable_tqdm=True, save_strategy="no")
    half_went(report)


@pytest.mark.slow
@pytest.mark.parametrize("example", [("timm_loop", "timm")], indirect=True)
def test_a_loop_of_timm_prunes(example, capsys):
    half_went(example.train(2, "test_resnet", channels=(8, 8, 12, 12), stem_width=8))
    assert "% of the multiply-adds" in capsys.readouterr().out


@pytest.mark.slow
def test_the_plain_loop_prunes_and_goes_on_from_its_checkpoint(tmp_path, capsys):
    example = runpy.run_path(str(EXAMPLES / "plain_loop.py"))
    report = example["train"](2, 8, tmp_path / "whole.pt")
    assert 0.4 < report.after.macs / report.before.macs <= 0.51 and len(report.rows) == 3
    assert capsys.readouterr().out.splitlines()[1].startswith("epoch 1: ")

    def broken_off(text):
        if text.startswith("epoch 1"):
            raise KeyboardInterrupt

    example["train"].__globals__["print"] = broken_off
    with pytest.raises(KeyboardInterrupt):
        example["train"](2, 8, tmp_path / "last.pt")
    example["train"].__globals__["print"] = print
    assert example["train"](2, 8, tmp_path / "last.pt", resume=True).edits == report.edits
    whole, last = (torch.load(tmp_path / name)["model"] for name in ("whole.pt", "last.pt"))
    assert whole.keys() == last.keys() and all(torch.equal(whole[name], last[name]) for name in whole)


def test_the_notebook_makes_a_smaller_onnx_file_and_shows_a_table_and_plots(tmp_path, monkeypatch):
    """Every cell as it stands but the second's names: of a small network and a few images."""
    for split, count in (("train", 20), ("test", 5)):
        for label, grey in (("dark", 40), ("light", 200)):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (grey + number, grey, grey)).save(
                    tmp_path / "images" / split / label / f"{number}.png"
                )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compressor.report.html.draw", draw)  # which tests of other things leave out
    (tmp_path / "net.py").write_text(
        "from torch import nn\nINPUT_SHAPE = (3, 8, 8)\n\n\ndef build():\n    return nn.Sequential("
        "nn.Conv2d(3, 8, 3), nn.ReLU(), "
        "nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))\n"
    )
    torch.save(runpy.run_path(str(tmp_path / "net.py"))["build"]().state_dict(), "weights.pt")
    book = json.loads((EXAMPLES / "resnet56.ipynb").read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [bool(cell["outputs"]) for cell in code] == [False, *[True] * (len(code) - 1)]  # as they were run
    cells = ["".join(cell["source"]) for cell in code]
    named = cells[0].replace("resnet56-4bfd9763.th", "weights.pt").replace("cifar10", "images")
    cells[0] = named.replace("../benchmarks/stranger_resnet.py:resnet56", "net.py:build")
    assert "images" in cells[0] and "net.py" in cells[0] and "weights.pt" in cells[0]
    shown, names = [], {}
    for cell in cells:
        *lines, last = ast.parse(cell).body
        exec(compile(ast.Module(lines, []), "cell", "exec"), names)
        single = isinstance(last, ast.Expr)
        run = compile(
            ast.Expression(last.value) if single else ast.Module([last], []), "cell", "eval" if single else "exec"
        )
        shown.append(eval(run, names))
    assert "of 10 test images" in shown[1] and "of the multiply-adds" in shown[-1]
    comparison, report = (each._repr_html_() for each in shown[2:4])
    assert "<table" in comparison and "<svg" in comparison and "<table" in report and "<svg" in report
    assert names["report"].after.macs < 0.6 * names["report"].before.macs and names["file"].exists()


@pytest.mark.slow
@pytest.mark.parametrize("example", [("ultralytics_callbacks", "ultralytics")], indirect=True)
@pytest.mark.filterwarnings("ignore")
def test_ultralytics_trains_what_the_callbacks_prune_and_saves_it(example, tmp_path):
    from ultralytics import YOLO

    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 128, 0)).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [box]\n")
    with stand_ins():
        report = example.train(
            "yolo11n.yaml", str(tmp_path / "data.yaml"), 0.7, epochs=1, imgsz=64, batch=2, device="cpu", workers=0,
            plots=False, val=False, project=str(tmp_path), name="run", verbose=False,
        )  # fmt: skip
    assert 0.6 < report.after.macs / report.before.macs <= 0.71
    saved = YOLO(tmp_path / "run" / "weights" / "best.pt").model
    assert sum(each.numel() for each in saved.parameters()) == report.after.params < report.before.params
