"""The command line as a fixture, in the repository's root and 80 columns wide."""

import pytest

from tests.cli.command import ROOT, Compressor


@pytest.fixture
def compressor(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return Compressor(capsys, tmp_path)
