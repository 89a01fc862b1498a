"""The programs in examples, run with small networks."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


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
