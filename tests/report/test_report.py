"""The report as data: what is in the file, and that it comes back as it went."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor.errors import FileError
from compressor.files.paths import write_whole
from compressor.profiling.costs import profile
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from tests.report.reports import bare_report, full_report


@pytest.mark.parametrize("report", [full_report(), bare_report()], ids=["full", "bare"])
def test_a_saved_report_comes_back_equal(report: Report, tmp_path: Path) -> None:
    path = report.save(tmp_path / "run")
    assert path == tmp_path / "run" / "report.json"
    assert Report.load(path.parent) == Report.load(path) == report
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_keys_that_a_newer_compressor_writes_are_left_out() -> None:
    held = json.loads(json.dumps(full_report().to_json()))
    newer = {**held, "carbon": 1, "before": {**held["before"], "joules": 0.1}}
    newer["layers"] = [{**each, "depth": 2} for each in held["layers"]]
    assert Report.from_json(newer) == full_report()


def test_the_file_has_the_promised_keys(tmp_path: Path) -> None:
    data = json.loads(full_report().save(tmp_path).read_text())
    assert {"command", "settings", "seed", "versions", "device", "before", "after", "edits", "frozen"} <= set(data)
    assert {"macs", "macs_thop", "params", "file_bytes", "latency_ms", "top1"} <= set(data["before"])
    assert {"kind", "period", "group", "channels", "why"} <= set(data["edits"][0])
    assert set(data["layers"][0]) == {"name", "before", "after"}
    assert data["frozen"]["fc"] == "the model's output"


def test_whatever_is_null_has_a_reason() -> None:
    for side in (full_report().after, bare_report().before, Measurements(reasons={"top1": "no data"})):
        data = side.to_json()
        assert all(data["reasons"].get(name) for name, value in data.items() if value is None)
    assert Measurements(reasons={"top1": "no data"}).reasons["top1"] == "no data"


def test_measurements_take_over_a_profile() -> None:
    cost = profile(nn.Linear(3, 2), torch.zeros(1, 3))
    side = Measurements.of(cost, top1=0.5, reasons={"file_bytes": "not saved"})
    assert (side.macs, side.params, side.top1) == (6, 8, 0.5)
    assert side.reasons == {"file_bytes": "not saved", "latency_ms": "not asked for"}
    assert "file_bytes" not in Measurements.of(cost, file_bytes=10).reasons


def test_numbers_of_other_libraries_and_infinities_become_plain(tmp_path: Path) -> None:
    row = {"loss": float("nan"), "top1": np.float32(0.5), "count": torch.tensor(3), "path": tmp_path, "sizes": (1, 2)}
    report = dataclasses.replace(bare_report(), rows=(row,))
    assert Report.load(report.save(tmp_path)).rows == (
        {"loss": None, "top1": 0.5, "count": 3, "path": str(tmp_path), "sizes": [1, 2]},
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no report"),
        (b"\xff\xfe", "is no report"),
        (b"[]", "no report of compressor's"),
        (b'{"macs": 1}', "no report of compressor's"),
        (b'{"report_version": 99}', "version 99"),
        (b'{"report_version": 1, "before": {}}', "broken"),
        (b'{"report_version": 1, "before": {}, "after": {}, "layers": [{"nam": 1}]}', "broken"),
    ],
    ids=["empty", "binary", "list", "other json", "newer", "cut short", "wrong part"],
)
def test_files_that_are_no_report_are_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        Report.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"report\.json cannot be read"):
        Report.load(tmp_path)


def test_a_file_is_replaced_whole_and_readable(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a" / "b.txt", "old")
    plain = tmp_path / "plain"
    plain.touch()
    assert write_whole(path, "new").read_text() == "new"
    assert path.stat().st_mode == plain.stat().st_mode
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]
    with pytest.raises(FileError, match="cannot be written"):
        write_whole(plain / "b.txt", "")


def test_a_notebook_shows_the_page() -> None:
    html = full_report()._repr_html_()
    assert html.startswith("<article") and html.rstrip().endswith("</article>") and "<svg" in html
