"""The Python API: every example in its docstrings runs, keywords are the settings', and mistakes are named."""

import ast
import inspect
import shutil
import textwrap
import typing
from pathlib import Path

import pytest
import safetensors.torch
import torch

import compressor
from compressor.errors import UsageError
from compressor.exits.settings import NSN, DetachSettings
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.settings import PruneSettings
from compressor.routing.settings import RouteSettings
from compressor.runs import jobs
from compressor.runs.asked import Common, asked
from compressor.runs.settings import OutputSettings
from compressor.settings import known_to
from compressor.training.settings import TrainSettings
from compressor.vision import door as vision
from sample_models.vgg16_cifar import build as vgg16

ROOT = Path(__file__).parents[2]
VERBS = ["train", "finetune", "prune", "detach", "route", "replace_early", "evaluate", "inspect", "export", "sweep"]


def example_of(verb):
    return textwrap.dedent(inspect.getdoc(getattr(compressor, verb)).partition("Example:\n")[2])


def run_example(verb, change=lambda code: code):
    """The example of a public function, run as it stands but for what would take long."""
    code = example_of(verb)
    assert code.count(f"compressor.{verb}(") == 1, verb
    exec(compile(change(code), verb, "exec"), {"compressor": compressor})


@pytest.mark.slow
def test_every_example_runs(tmp_path, monkeypatch):
    """In the order in which they build on each other, latency left out."""
    (tmp_path / "sample_models").symlink_to(ROOT / "sample_models")
    monkeypatch.chdir(tmp_path)
    for verb in VERBS:
        run_example(verb, lambda code: code if "latency" in code else code.replace("out=", "latency=False, out="))
    (tmp_path / "runs/small/report.json").unlink()  # as if the run had been broken off
    run_example("resume")
    for name in ("l1", "adapnet"):
        shutil.copytree(tmp_path / "runs/small", tmp_path / "runs" / name)
    run_example("compare")
    assert (tmp_path / "runs/compared/comparison.html").exists()
    flags = {"data": "digits", "chip": "x86", "max_drop": 0.1, "latency": False}
    made = compressor.export("runs/detached/model.safetensors", "runs/deploy", precision="int8", **flags)
    assert [row.top1_float is not None for row in made.manifest.exits] == [True, True]
    run_example("verify_package")
    one = compressor.export("runs/detached/model.safetensors", "runs/exit.onnx", exit=1, opset=18)
    assert one.facts["opset"] == 18
    assert compressor.evaluate("runs/exit.onnx", data="digits", split="validation").count == 143
    assert compressor.Report.load("runs/small")._repr_html_().startswith("<article")


def figures(code):
    """The expressions of an example with what its comments say they are."""
    pairs = [line.split("#", 1) for line in code.splitlines() if "#" in line]
    return {what.strip(): ast.literal_eval(said.strip()) for what, said in pairs}


def test_the_example_of_profile_gives_the_figures_it_names():
    names = {"compressor": compressor, "torch": torch, "module": vgg16()}
    exec(example_of("profile"), names)
    [(what, said)] = figures(example_of("profile")).items()
    assert eval(what, names) == said == (313_201_664, 14_728_266)


@pytest.mark.slow
def test_examples_with_a_resnet18_give_what_they_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"compressor": compressor, "torch": torch, "module": vision.build("resnet18")}
    exec(example_of("prune_"), names)
    for what, said in figures(example_of("prune_")).items():
        assert eval(what, names) == said
    exec(example_of("save"), names)
    safetensors.torch.save_file(vision.build("resnet18").state_dict(), "weights.safetensors")
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "small.safetensors").rename(tmp_path / "runs/demo/model.safetensors")
    names["report"].save("runs/demo")
    exec(example_of("load"), names)
    exec(example_of("Report"), names)


def test_a_keyword_is_what_the_flag_is(tmp_path):
    flags = {"ratio_for": {"3": 0.25}, "keep": ["0"], "seed": 5, "latency": False}
    report = compressor.prune(ROOT / "sample_models/digits_cnn.safetensors", out=tmp_path / "run", onnx=False, **flags)
    wanted = {"ratio_for": (("3", 0.25),), "keep": ("0",), "seed": 5, "latency": False, "ratio": 0.5}
    assert wanted.items() <= report.settings.items()
    assert set(report.settings["chosen"]) >= flags.keys()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epoch": 3}, "there is no setting 'epoch' (did you mean epochs?); compressor.prune knows"),
        ({"epochs": 2.5}, "epochs is 2.5, and has to be a whole number"),
        ({"method": "adapnet", "ratio": 0.5, "data": "digits"}, "ratio is not for adapnet: it decides itself"),
        ({"method": "adapnet"}, "needs `data`"),
        ({"chi_s": 3.0}, "chi_s belongs to method adapnet, not to auto"),
    ],
    ids=["unknown", "type", "not-adapnets", "no-data", "adapnets"],
)
def test_mistakes_are_named(tmp_path, given, said):
    with pytest.raises(UsageError) as error:
        compressor.prune("model.safetensors", out=tmp_path / "run", **given)
    assert said in str(error.value)


def test_mistakes_in_an_export_are_named(tmp_path):
    with pytest.raises(UsageError, match="did you mean chip"):
        compressor.export("model.safetensors", tmp_path / "deploy", chips="arm")
    with pytest.raises(UsageError, match="exit is '1', and has to be a whole number"):
        compressor.export("model.safetensors", tmp_path / "deploy", exit="1")


def test_inspect_tells_what_each_group_is_worth():
    found = compressor.inspect(ROOT / "sample_models/digits_cnn.safetensors", sensitivity=True, data="digits")
    assert found.outputs_moved.keys() == {group.name for group in found.free}
    assert all(0 < moved[0.1] < moved[0.5] < 0.2 for moved in found.outputs_moved.values())
    assert compressor.inspect(ROOT / "sample_models/digits_cnn.safetensors").outputs_moved is None


def test_objects_of_settings_take_the_place_of_what_a_verb_begins_with(tmp_path):
    small = ROOT / "sample_models/digits_cnn.safetensors"
    chosen = PruneSettings(ratio=0.25, round_to=1, seed=3), OutputSettings(latency=False, onnx=False)
    report = compressor.prune(small, *chosen, out=tmp_path / "run", seed=5)
    assert {"ratio": 0.25, "round_to": 1, "seed": 5, "latency": False}.items() <= report.settings.items()
    with pytest.raises(UsageError, match="preset is 'fast', and has to be one of auto, paper"):
        compressor.prune(small, AdapNetSettings(), preset="fast", data="digits", out=tmp_path / "other")
    with pytest.raises(UsageError, match="ratio is not for blocks"):
        compressor.prune(small, PruneSettings(method="blocks", ratio=0.3), data="digits", out=tmp_path / "other")
    with pytest.raises(UsageError, match="RouteSettings is not a settings class of compressor.prune"):
        compressor.prune(small, RouteSettings(), out=tmp_path / "other")


@pytest.mark.parametrize("verb", VERBS)
def test_named_keywords_are_settings_of_the_verb(verb):
    """Whatever a verb's signature names is a setting that the command has, of the same type."""
    function = getattr(compressor, verb)
    kinds = jobs.VERBS[verb.replace("replace_early", "replace")]
    known = {name: each for kind in kinds for name, each in known_to(kind).items()}
    named = inspect.signature(function).parameters.values()
    common = typing.get_type_hints(Common) if verb in ("train", "finetune", "prune", "detach", "route", "sweep") else {}
    names = {one.name for one in named if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)} - {"tell"}
    assert {*names, *common} <= known.keys()


@pytest.mark.parametrize(
    ("verb", "settings", "kind"),
    [
        ("prune", PruneSettings(method="mixed", target_macs=0.5), jobs.MixedJob),
        ("prune", PruneSettings(method="l2"), jobs.PruneJob),
        ("prune", AdapNetSettings(lsep=5), jobs.AdaptJob),
        ("detach", DetachSettings(method="nsn"), jobs.DetachJob),
        ("route", RouteSettings(mode="paper", depths=3), jobs.RouteJob),
    ],
)
def test_an_object_of_settings_chooses_the_method_or_the_mode(verb, settings, kind):
    given = {"settings": (settings, TrainSettings(momentum=0.5)), "keywords": {}, "tell": None}
    job, _ = asked(verb, given | {"model": "net.pt", "data": "digits", "out": "run"})
    assert type(job) is kind and job.training.momentum == 0.5
    if verb == "route":
        assert (job.choice.labels, job.choice.threshold, job.choice.depths) == ("paper", 0.0, 3)
    else:
        assert settings in vars(job).values()


def test_the_training_of_a_mode_that_an_object_chooses_is_the_modes():
    common = {"keywords": {}, "tell": None, "model": "net.pt", "data": "digits", "out": "run"}
    assert asked("detach", common | {"settings": (DetachSettings(method="nsn"),)})[0].training.lr == NSN.lr
    route, _ = asked("route", common | {"settings": (RouteSettings(mode="paper"),)})
    assert route.training.optimizer == "rmsprop"
