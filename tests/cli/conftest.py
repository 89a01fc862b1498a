"""The command line as a fixture, in the repository's root and 80 columns wide."""

import pytest

from compressor.exporting.latency import Compared
from tests.cli.command import ROOT, Compressor


@pytest.fixture
def compressor(capsys, monkeypatch, tmp_path):
    """Dry runs are not timed, which takes two seconds each: tests/runs does that. The chip is the same everywhere."""
    planned = Compared.of([(0.4, 0.2)] * 9)
    monkeypatch.setattr("compressor.runs.prune.plan_latency", lambda *arguments: planned)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return Compressor(capsys, tmp_path)
