"""`--exit` of `evaluate` and `profile`: one way through a model of several, in a checkpoint and in its package."""

import json

import pytest

from compressor.report.manifest import read_manifest
from tests.cli.command import ROOT

DIGITS = "sample_models/digits_cnn.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the run of a detached network, and its package."""
    from compressor.cli import main

    folder = tmp_path_factory.mktemp("exits")
    flags = ["--exits", "1", "--data", "digits", "--epochs", "1", "--no-latency", "--no-onnx", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for words in (
            ["detach", DIGITS, *flags, "--out", str(folder / "run")],
            [
                "export",
                str(folder / "run/model.safetensors"),
                "--data",
                "digits",
                "--no-latency",
                "--out",
                str(folder / "deploy"),
            ],
            ["export", DIGITS, "--out", str(folder / "plain.onnx")],
        ):
            with pytest.raises(SystemExit) as left:
                main(words)
            assert left.value.code == 0
    return folder


def found(ran):
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


@pytest.mark.parametrize("number", [0, 1])
def test_checkpoint_package_and_manifest_agree_about_an_exit(compressor, made, number):
    facts = read_manifest(made / "deploy").exits[number]
    for file in (made / "run/model.safetensors", made / "deploy/model.onnx"):
        evaluated = found(compressor("evaluate", file, "--data", "digits", "--exit", number, "--json"))
        assert evaluated["top1"] == pytest.approx(facts.top1, abs=0.003)  # one image in 359 may be a tie
        profiled = found(compressor("profile", file, "--exit", number, "--json"))
        assert profiled["macs"] == facts.macs


def test_without_it_the_base_counts(compressor, made):
    whole, base = (
        found(compressor("evaluate", made / "deploy/model.onnx", "--data", "digits", *flag, "--json"))
        for flag in ((), ("--exit", 0))
    )
    assert whole == base


def test_latency_is_that_of_the_exit(compressor, made, monkeypatch):
    seen = []
    monkeypatch.setattr("compressor.exporting.latency.onnx_latency", lambda *given: seen.append(given[1]) or None)
    compressor("profile", made / "deploy/model.onnx", "--exit", 1, "--latency", "--json")
    assert [dict(feeds) for feeds in seen] == [{"start": 1}]


@pytest.mark.parametrize("command", [["profile"], ["evaluate", "--data", "digits"]], ids=["profile", "evaluate"])
def test_an_exit_that_is_not_there_is_one_line(compressor, made, command):
    for file in (made / "run/model.safetensors", made / "deploy/model.onnx"):
        ran = compressor(command[0], file, *command[1:], "--exit", 2)
        assert ran.code == 2 and "there is no exit 2: the model has 0 (base), 1 (" in ran.err
    ran = compressor(command[0], made / "plain.onnx", *command[1:], "--exit", 0)
    assert ran.code == 2 and "leave --exit away" in ran.err
