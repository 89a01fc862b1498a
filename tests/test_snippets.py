"""The lines of Python in the pages that stand outside their programs, and commands in the middle of a sentence."""

import re
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compressor
from compressor.cli import main
from tests.pages import PAGES, ROOT, run

DIGITS = str(ROOT / "sample_models" / "digits_cnn.safetensors")
FILES = {**PAGES, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")}
INLINE = sorted({(page, line) for page, text in FILES.items() for line in re.findall(r"`(compressor \w[^`]*)`", text)})


def lines(page: str, first: str) -> str:
    """The indented lines of a page from one that begins so on to the next paragraph that is not indented."""
    found = re.search(rf"^ {{4}}{re.escape(first)}.*\n(?:(?: {{4}}.*)?\n)*", PAGES[page], flags=re.MULTILINE)
    assert found is not None
    return textwrap.dedent(found.group())


def execute(code: str, given: dict[str, Any]) -> None:
    exec(compile(code, "page", "exec"), given)


@pytest.mark.parametrize(("page", "line"), INLINE, ids=[f"{page}: {line[:50]}" for page, line in INLINE])
def test_a_command_in_a_sentence_has_a_verb_and_flags_that_exist(page: str, line: str) -> None:
    from typer.main import get_command

    from compressor.cli.app import app

    _, verb, *words = shlex.split(line.replace("\n", " "))
    command = get_command(app).get_command(None, verb)  # type: ignore[union-attr,arg-type]
    if verb != "recalibrate":  # the page on architecture brings it in
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known | {"--help", "--help-all"}


def test_what_contributing_says_to_type_is_there() -> None:
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    typed = re.findall(r"^ {4}make ([\w-]+)", FILES["CONTRIBUTING.md"] + FILES["README.md"], flags=re.MULTILINE)
    assert set(typed) == {"install", "check", "test", "demo"} <= set(targets)
    [place] = re.findall(r"pytest -m \"not slow and not zoo\" (\S+)", FILES["CONTRIBUTING.md"])
    assert (ROOT / place).is_dir()


def test_a_plan_and_settings_are_taken_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = re.sub(r"\s+", " ", PAGES["bring-your-own-model.md"])
    monkeypatch.chdir(tmp_path)
    shutil.copy(DIGITS, "model.pt")
    toml = re.search(r"^ {4}# run\.toml\n((?: {4}.*\n)+)", PAGES["bring-your-own-model.md"], flags=re.MULTILINE)
    assert toml is not None
    Path("run.toml").write_text(textwrap.dedent(toml.group(1)).replace("epochs = 10", "epochs = 1"))
    for command in (
        "compressor prune model.pt --config run.toml --out runs/half",
        "compressor prune --config runs/half/settings.json --out runs/again",
    ):
        assert f"`{command}`" in page
        run([*shlex.split(command)[1:], "--no-latency", "--no-onnx"], capsys)
    run(["prune", "model.pt", "--ratio", "0.3", "--dry-run", "--out", "FOLDER"], capsys)
    assert "`compressor prune MODEL --plan FOLDER/plan.json`" in page
    run(
        ["prune", "model.pt", "--plan", "FOLDER/plan.json", "--out", "runs/planned", "--no-latency", "--no-onnx"],
        capsys,
    )


def test_a_detached_and_a_routed_network_are_used_as_their_pages_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common: dict[str, Any] = {"data": "digits", "epochs": 1, "latency": False, "onnx": False}
    compressor.detach(DIGITS, exits=2, out="RUN", **common)
    given: dict[str, Any] = {"compressor": compressor, "x": torch.rand(2, 1, 8, 8)}
    execute(lines("detach.md", "module = compressor.load"), given)
    assert torch.equal(given["small"](given["x"]), given["module"](given["x"], exit=2))
    compressor.route(DIGITS, router_epochs=1, out="runs/routed", **common)
    given = {"compressor": compressor, "images": torch.rand(3, 1, 8, 8)}
    execute(lines("route.md", "network = compressor.load"), given)
    assert len(given["scores"]) == len(given["depths"]) == 3


def test_a_package_is_used_as_the_pages_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    compressor.detach(DIGITS, exits=2, data="digits", epochs=1, latency=False, onnx=False, out=str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["export", "run/model.safetensors", "--to", "onnx", "--data", "digits", "--out", "deploy"])
    given = {"onnxruntime": onnxruntime, "np": np, "x": np.zeros((2, 1, 8, 8), np.float32)}
    execute(lines("commands.md", "session = onnxruntime"), given)
    for name in ("a.png", "b.png"):
        np.save(tmp_path / name.replace(".png", ".npy"), np.full((8, 8), 128, np.uint8))
    monkeypatch.syspath_prepend(str(tmp_path / "deploy"))
    capsys.readouterr()
    execute(lines("deploying.md", "import run ").replace(".png", ".npy"), {})
    assert capsys.readouterr().out.startswith("images at each exit: 0 2")


def test_a_loop_is_broken_off_and_goes_on_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [made] = re.findall(r"^```python\n(.*?)^```", PAGES["your-own-loop.md"], flags=re.MULTILINE | re.DOTALL)
    loader = [(torch.rand(8, 1, 8, 8), torch.randint(5, (8,))) for _ in range(4)]

    def begun() -> dict[str, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))
        given = {"compressor": compressor, "torch": torch, "model": model, "loader": loader}
        given |= {"example": torch.zeros(1, 1, 8, 8), "optimizer": torch.optim.SGD(model.parameters(), 0.01, 0.9)}
        execute(made.replace("steps=1000", "steps=20"), given)
        return given

    given = begun()
    for x, y in loader * 3:
        nn.functional.cross_entropy(given["model"](x), y).backward()
        given["optimizer"].step()
        given["optimizer"].zero_grad()
        given["pruner"].step()
    execute(lines("your-own-loop.md", "torch.save("), given)
    again = begun()
    execute(lines("your-own-loop.md", "saved = torch.load"), again)
    old, new = (each["model"].state_dict() for each in (given, again))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert old["0.weight"].shape[0] < 8
