"""The groups of a model for people: data, table, picture."""

import json

import pytest
from rich.console import Console

from compressor.graph import capture
from compressor.report.coupling import draw_coupling, groups_table
from tests.networks import Attention, Residual, WrittenSize


def test_json_names_members_and_reasons():
    model = Residual()
    data = json.loads(json.dumps(capture(model, model.example()).to_json()))
    stem = next(group for group in data["groups"] if group["name"] == "stem")
    assert stem["makes"] == ["stem", "a2", "b2"]
    assert stem["reads"] == ["a1", "b1", "head"]
    assert stem["free"] and stem["size"] == 6
    head = next(group for group in data["groups"] if group["name"] == "head")
    assert head["why_frozen"] == "output of the model"


@pytest.mark.parametrize("network", [Residual, WrittenSize, Attention])
def test_table_fits_80_columns_and_says_why(network):
    model = network()
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115 - a sink
    console.print(groups_table(capture(model, model.example()).to_json()))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "frozen" in text and "groups are free" in text
    console.file.close()


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_picture_is_drawn(tmp_path, ending):
    model = Residual()
    path = tmp_path / f"coupling{ending}"
    draw_coupling(capture(model, model.example()).to_json(), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == ".png" else b"<?xml")
    if ending == ".svg":
        assert all(name.encode() in content for name in ("stem", "a1", "b2"))
