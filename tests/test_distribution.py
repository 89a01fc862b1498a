"""What is published: wheel and source archive are built, and the wheel alone runs the demo from an empty folder."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

import compressor
from tests.pages import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with both, by the backend that pyproject.toml names, which needs no network."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: make install")
    place = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", place], cwd=ROOT, check=True, capture_output=True)
    return place


@pytest.mark.slow
def test_the_source_archive_has_what_a_developer_needs(built):
    [archive] = built.glob(f"cnn_compressor-{compressor.__version__}.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    wanted = {"LICENSE", "Makefile", "constraints.txt", "CONTRIBUTING.md", "docs/README.md", "tests/pages.py"}
    assert wanted | {"benchmarks/readme.py", "sample_models/digits_cnn.safetensors"} <= names


@pytest.mark.slow
def test_the_wheel_runs_the_demo_from_an_empty_folder(built, tmp_path):
    [wheel] = built.glob(f"cnn_compressor-{compressor.__version__}-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "compressor/sample_models/digits_cnn.safetensors" in names and not any("tests/" in name for name in names)
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    only = os.environ | {"PYTHONPATH": str(site)}
    code = "import compressor; print(compressor.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd=folder, env=only, capture_output=True, text=True)
    assert where.stdout.startswith(str(site))
    demo = [sys.executable, "-m", "compressor", "demo"]
    ran = subprocess.run(demo, cwd=folder, env=only, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (folder / "runs" / "demo" / "model.onnx").exists()
