"""`compressor inspect` as a person types it."""

import json

import pytest

from tests.cli.command import check_golden

DIGITS = "sample_models/digits_cnn.safetensors"


def test_table_of_groups(compressor):
    ran = compressor("inspect", DIGITS)
    assert ran.code == 0
    check_golden("inspect", ran, compressor.folder)


def test_json_is_one_object_and_respects_keep(compressor):
    ran = compressor("inspect", DIGITS, "--json", "--keep", "*")
    data = json.loads(ran.out)
    assert {group["why_frozen"] for group in data["groups"]} <= {"kept by request", "output of the model"}


def test_sensitivity_needs_images(compressor):
    ran = compressor("inspect", DIGITS, "--sensitivity")
    assert ran.code == 2 and "give both --sensitivity and --data" in ran.err


def test_what_each_group_is_worth(compressor):
    ran = compressor("inspect", DIGITS, "--sensitivity", "--data", "digits", "--json")
    groups = {group["name"]: group["outputs_moved"] for group in json.loads(ran.out)["groups"]}
    assert not groups.pop("12"), "the outputs are frozen"
    for moved in groups.values():
        assert list(moved) == ["0.1", "0.3", "0.5"] and 0 < moved["0.1"] < moved["0.3"] < moved["0.5"] < 0.2


def test_picture_is_written_once(compressor):
    path = compressor.folder / "coupling.svg"
    assert compressor("inspect", DIGITS, "--picture", path).code == 0
    assert path.exists()
    again = compressor("inspect", DIGITS, "--picture", path)
    assert (again.code, "exists; give another name or --overwrite" in again.err) == (2, True)


@pytest.mark.parametrize(("name", "words"), [("c.jpeg", "no known ending"), ("nowhere/c.svg", "does not exist")])
def test_bad_picture_is_one_line(compressor, name, words):
    ran = compressor("inspect", DIGITS, "--picture", compressor.folder / name)
    assert ran.code == 2
    assert words in ran.err and ran.err.count("\n") == 1
