"""A user's own criterion: in memory, from a file, as docs/architecture.md prints it; and what is wrong with one."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import compressor
from compressor.errors import UsageError
from compressor.graph import capture
from compressor.loading.opening import open_model
from compressor.pruning.settings import PruneSettings
from compressor.runs.job import flat
from compressor.runs.jobs import PruneJob
from compressor.runs.resume import resume
from compressor.runs.settings import ModelSettings, OutputSettings

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "sample_models" / "digits_cnn.safetensors"
RECIPE = re.findall(r"^```python\n(# mine\.py\n.*?)^```", (ROOT / "docs" / "architecture.md").read_text(), re.M | re.S)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "mine.py"
    path.write_text(RECIPE[0])
    return path


def network():
    return open_model(DIGITS).module, torch.zeros(1, 1, 8, 8)


def test_the_recipe_of_the_readme_chooses_by_what_it_says(mine, tmp_path):
    """In memory, from a file and on the command line alike: what goes has the smallest largest weight."""
    names: dict[str, object] = {}
    exec(RECIPE[0], names)
    report = compressor.prune_(*network(), method=names["largest"], ratio=0.5, round_to=1)
    of_file = compressor.prune_(*network(), method=f"{mine}:largest", ratio=0.5, round_to=1)
    run = compressor.prune(
        DIGITS, PruneSettings(round_to=1), method=f"{mine}:largest", out=tmp_path / "run", latency=False
    )
    assert [edit["channels"] for edit in report.edits] == [edit["channels"] for edit in of_file.edits]
    assert [edit["channels"] for edit in report.edits] == [edit["channels"] for edit in run.edits]
    assert run.settings["method"] == f"{mine}:largest" and report.settings["method"].endswith(":largest")
    module, example = network()
    first = capture(module, example).free[0]
    weight = dict(module.named_parameters())[next(p.tensor for p in first.places if p.role == "row")]
    order = weight.detach().abs().flatten(1).amax(1).argsort()
    gone = next(edit["channels"] for edit in report.edits if edit["group"] == first.name)
    assert set(gone) == {first.ids[place] for place in order[: len(gone)].tolist()}


def by_position(model, channels, given):
    """A plain mapping will do: the channels that come first go first."""
    return {group.name: torch.arange(group.size) for group in channels.free}


def test_a_mapping_of_tensors_will_do():
    report = compressor.prune_(*network(), method=by_position, ratio=0.5, round_to=1)
    module, example = network()
    free = {group.name: group for group in capture(module, example).free}
    for edit in report.edits:
        assert list(edit["channels"]) == sorted(free[edit["group"]].ids[: len(edit["channels"])].tolist())


WRONG = {
    "nothing": (lambda model, channels, given: None, "returned a NoneType"),
    "no-group": (lambda model, channels, given: {"nowhere": [1.0]}, "scores 'nowhere', which may not be pruned"),
    "too-few": (lambda model, channels, given: {channels.free[0].name: [1.0]}, "scores of shape"),
    "no-numbers": (
        lambda model, channels, given: {g.name: np.full(g.size, np.nan) for g in channels.free},
        "scores that are not finite",
    ),
}


@pytest.mark.parametrize(("score", "said"), WRONG.values(), ids=WRONG)
def test_what_is_no_score_is_named_and_nothing_is_touched(score, said):
    module, example = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UsageError, match=said):
        compressor.prune_(module, example, method=score)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_groups_without_scores_stay_and_say_why():
    module, example = network()
    first = capture(module, example).free[0].name

    def one(model, channels, given):
        return {first: np.arange(channels.group(first).size)}

    report = compressor.prune_(module, example, method=one, round_to=1)
    assert {edit["group"] for edit in report.edits} == {first}
    assert any("gave it no scores" in why for why in report.refused.values())


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("nowhere.py:score", "there is no file nowhere.py: give `method`"),
        ("{mine}:missing", "has no function 'missing'"),
        ("{mine}.txt:x", "neither one of ours nor FILE.py:FUNCTION"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(mine, method, said):
    with pytest.raises(UsageError, match=said) as error:
        compressor.prune_(*network(), method=method.format(mine=mine))
    assert "\n" not in str(error.value)


def test_an_error_in_the_users_code_says_where(mine):
    mine.write_text("def largest(model, channels, given):\n    return 1 / 0\n")
    with pytest.raises(UsageError, match=r"largest failed: ZeroDivisionError: .* \(line 2\)"):
        compressor.prune_(*network(), method=f"{mine}:largest")


def test_a_run_of_somebody_elses_does_not_run_code_unasked(mine, tmp_path):
    """The record of a run names a file that was never named on this machine."""
    import json

    mine.write_text("open('ran', 'w')\n" + mine.read_text())
    job = PruneJob(
        ModelSettings(str(DIGITS)),
        None,
        OutputSettings(str(tmp_path / "run")),
        choice=PruneSettings(method=f"{mine}:largest"),
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text(json.dumps({**flat(job), "cwd": str(tmp_path)}))
    with pytest.raises(UsageError, match="never named on this machine"):
        resume(str(tmp_path / "run"))
    assert not (tmp_path / "ran").exists()
