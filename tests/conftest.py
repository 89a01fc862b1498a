"""What every test gets: one seed, folders of its own instead of those in the person's home, little waiting."""

import gc
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.commands import briefly, once

once()
briefly()
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        os.environ[name] = str(tmp_path_factory.mktemp(name))


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _little_garbage():
    """What is there when a module begins stays: Python looked through half a million objects at every collection."""
    gc.set_threshold(10_000, 20, 20)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_drawings(monkeypatch):
    """A test's own runs write pages without drawings, a quarter second each; runs that a module shares have them."""
    monkeypatch.setattr("compressor.report.html.draw", lambda plot: "")


def pytest_collection_modifyitems(items):
    for item in items:
        if {"slow", "zoo"} & set(item.keywords):
            item.add_marker(pytest.mark.timeout(3600))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
