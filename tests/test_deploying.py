"""The programs in docs/deploying.md: Python's runs; C++'s is compiled and run where its headers are at hand."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.exits.detachable import Detachable
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.package import export_package
from compressor.report.card import Card
from compressor.vision.preparation import Preparation
from tests.exits.nets import detachable, images
from tests.exporting.nets import trained

PAGE = (Path(__file__).parents[1] / "docs" / "deploying.md").read_text(encoding="utf-8")
_HEADER = "onnxruntime_cxx_api.h"
_PLACES = ("/usr/include", "/usr/local/include", "/opt/onnxruntime/include")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Detachable]:
    """A folder in which a package lies as `deploy`, and its model."""
    torch.manual_seed(0)
    model = trained(detachable())
    place = tmp_path_factory.mktemp("deploying")
    card = Card(preparation=Preparation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))
    export_package(model, images()[:1], place / "deploy", card=card, settings=PackageSettings(latency=False))
    return place, model


def program(language: str) -> str:
    [block] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    return block


def test_the_python_program_runs_the_smallest_exit(
    deployed: tuple[Path, Detachable], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = deployed
    monkeypatch.chdir(folder)
    found: dict[str, np.ndarray] = {}
    exec(compile(program("python"), "deploying.md", "exec"), found)
    x = torch.full((1, 3, 16, 16), -0.5 / 0.2)
    with torch.no_grad():
        expected = model(x, exit=model.exits).numpy()
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-3, atol=1e-4)


def headers() -> Path | None:
    """The folder of onnxruntime's C++ headers: ONNXRUNTIME_INCLUDE, or where systems keep them."""
    places = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), *_PLACES]
    for place in (Path(each) for each in places if each):
        for folder in (place, place / "onnxruntime", place / "onnxruntime" / "core" / "session"):
            if (folder / _HEADER).exists():
                return folder
    return None


def library() -> Path | None:
    """The shared library that onnxruntime's Python package brings along."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.submodule_search_locations is not None
    found = sorted((Path(spec.submodule_search_locations[0]) / "capi").glob("libonnxruntime.so.*"))
    return found[0] if found else None


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.skipif(
    headers() is None, reason=f"{_HEADER} is in no usual place (libonnxruntime-dev); ONNXRUNTIME_INCLUDE may name one"
)
def test_the_cpp_program_gives_the_class_that_torch_does(deployed: tuple[Path, Detachable]) -> None:
    folder, model = deployed
    (folder / "classify.cpp").write_text(program("cpp"))
    command = ["g++", "-std=c++17", "-Wall", "-Werror", "classify.cpp", "-I", str(headers())]
    found = library()
    if found is None:
        subprocess.run([*command, "-c"], cwd=folder, check=True)
        pytest.skip("compiled; there is no library to run it with")
    shutil.copy(found, folder / "libonnxruntime.so.1")
    subprocess.run([*command, "libonnxruntime.so.1", "-Wl,-rpath,$ORIGIN", "-o", "classify"], cwd=folder, check=True)
    x = images(count=1)
    (folder / "image.bin").write_bytes(x.numpy().tobytes())
    for exit in range(model.exits + 1):
        ran = subprocess.run(
            ["./classify", "deploy/model.onnx", "image.bin", str(exit)], cwd=folder, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        with torch.no_grad():
            assert int(ran.stdout) == int(model(x, exit=exit).argmax())
