"""A plan as a file: the same run as without it, whatever of it a person edits, and every line that does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import compressor
from compressor.errors import CompressorError, UsageError
from compressor.graph import capture
from compressor.loading.opening import open_model
from compressor.pruning.settings import PruneSettings
from compressor.runs.jobs import PruneJob
from compressor.runs.plans import NAME
from compressor.runs.run import dry_run, run
from compressor.runs.settings import ModelSettings, OutputSettings

DIGITS = str(Path(__file__).parents[2] / "sample_models" / "digits_cnn.safetensors")


def job(out: Path, **changes: object) -> PruneJob:
    output = OutputSettings(str(out), latency=False, onnx=False)
    made = PruneJob(ModelSettings(DIGITS), None, output, choice=PruneSettings(method="l2", ratio=0.5, round_to=1))
    return replace(made, **changes)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned") / "run"
    dry_run(job(folder))
    assert [each.name for each in folder.iterdir()] == [NAME]
    return folder / NAME


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(open_model(folder / "model.safetensors").module.state_dict())


def test_a_plan_carried_out_is_the_run_that_would_have_been(planned: Path, tmp_path: Path) -> None:
    by_plan = run(job(tmp_path / "a", choice=PruneSettings(), plan=str(planned)))
    straight = run(job(tmp_path / "b"))
    assert by_plan.after.macs == straight.after.macs == json.loads(planned.read_text())["macs"]
    assert [edit["channels"] for edit in by_plan.edits] == [edit["channels"] for edit in straight.edits]
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_what_a_person_edits_is_what_goes(planned: Path, tmp_path: Path) -> None:
    content = json.loads(planned.read_text())
    first, *others = content["groups"]
    content["groups"] = {first: {"channels": content["groups"][first]["channels"], "remove": [3, 0]}}
    (tmp_path / NAME).write_text(json.dumps(content))
    report = compressor.prune(
        DIGITS, OutputSettings(latency=False, onnx=False), out=tmp_path / "run", plan=str(tmp_path / NAME)
    )
    module = open_model(Path(DIGITS)).module
    group = capture(module, torch.zeros(1, 1, 8, 8)).group(first)
    assert [(edit["group"], edit["channels"]) for edit in report.edits] == [(first, sorted(group.ids[[0, 3]].tolist()))]
    assert set(others) <= report.refused.keys()
    kept = [i for i in range(group.size) if i not in (0, 3)]
    assert torch.equal(weights(tmp_path / "run")["0.weight"], module.state_dict()["0.weight"][kept])


def broken(planned: Path, change: object) -> str:
    content = json.loads(planned.read_text())
    change(content["groups"], next(iter(content["groups"])))  # type: ignore[operator]
    return json.dumps(content, indent=1)


WRONG = {
    "unknown": (lambda groups, name: groups.update(nowhere=groups.pop(name)), "the network has no group nowhere"),
    "near": (lambda groups, name: groups.update({f"{name}.": groups.pop(name)}), "did you mean"),
    "size": (lambda groups, name: groups[name].update(channels=7), "channels here, and not 7"),
    "beyond": (lambda groups, name: groups[name].update(remove=[0, 99]), "and no 99"),
    "twice": (lambda groups, name: groups[name].update(remove=[1, 1]), "removes a channel twice"),
    "key": (lambda groups, name: groups[name].update(removed=[1]), "a group is written"),
    "words": (lambda groups, name: groups[name].update(remove=["1"]), "a group is written"),
    "all": (lambda groups, name: groups[name].update(remove=list(range(groups[name]["channels"]))), "one has to stay"),
    "frozen": (lambda groups, name: groups.update({"12": {"channels": 10, "remove": [0]}}), "12 is frozen: output"),
    "nothing": (lambda groups, name: groups.clear(), "removes nothing"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_a_line_that_does_not_fit_is_named_and_nothing_is_written(
    change: object, said: str, planned: Path, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_text(broken(planned, change))
    with pytest.raises(UsageError, match=said) as error:
        run(job(tmp_path / "run", choice=PruneSettings(), plan=str(tmp_path / NAME)))
    if said != "removes nothing":
        text = (tmp_path / NAME).read_text().splitlines()
        number = int(str(error.value).partition("line ")[2].partition(":")[0])
        assert '"remove"' in "".join(text[number - 1 : number + 3])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "is no plan"),
        ('{"format": "compressor plan", "version": 9, "groups": {}}', "version 9"),
        (
            '{"format": "compressor plan", "version": 1, "groups": {}, "group": {}}',
            "has no group .did you mean groups",
        ),
    ],
)
def test_what_is_no_plan_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(CompressorError, match=said):
        run(job(tmp_path / "run", choice=PruneSettings(), plan=str(tmp_path / NAME)))


def test_a_plan_and_what_would_decide_it_anew_exclude_each_other(planned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`plan` and `ratio` both decide"):
        compressor.prune(DIGITS, out=tmp_path / "run", ratio=0.3, plan=str(planned))


def test_a_plan_is_replaced_only_where_that_is_allowed(planned: Path) -> None:
    before = planned.read_text()
    dry_run(job(planned.parent))  # the same again
    with pytest.raises(UsageError, match="holds another plan"):
        dry_run(job(planned.parent, choice=PruneSettings(ratio=0.25)))
    assert planned.read_text() == before


@pytest.mark.slow
def test_a_run_may_lie_beside_its_plan(planned: Path) -> None:
    run(job(planned.parent, choice=PruneSettings(), plan=str(planned)))
    assert planned.exists() and (planned.parent / "model.safetensors").exists()
