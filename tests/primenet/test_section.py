"""PrimeNet's part of the report: what its curves hold, and what is said where it does not pay."""

import json

import pytest

from compressor.files.plain import from_plain
from compressor.primenet.learning import TrainingMemory
from compressor.primenet.phases import Learnt
from compressor.primenet.section import remarks, section
from compressor.report.measurements import Measurements
from compressor.report.sections import Section

ROWS = [
    {"phase": "representation", "epoch": 0, "train_loss": 3.0,
     "local_losses": {"3": 1.0, "5": 0.5}, "chosen": {"3": 1, "5": 3}},
    {"phase": "representation", "epoch": 1, "train_loss": 2.0,
     "local_losses": {"3": 0.75, "5": 0.25}, "chosen": {"3": 0, "5": 4}},
    {"phase": "classifier", "epoch": 2, "train_loss": 1.0},
]  # fmt: skip
MEMORY = TrainingMemory(16, 1_000_000, 2_000_000, {3: 1_200_000, 5: 1_300_000})


def drawn(kept: tuple[int, ...] = (5,)):
    return section(Learnt(ROWS, {"3": 0.8, "5": 0.3}, kept), {3: 2_000_000, 5: 5_000_000}, MEMORY)


def test_curves_are_those_of_the_first_phase():
    losses, choices = drawn().plots
    assert [(curve.label, curve.x, curve.y) for curve in losses.curves] == [
        ("3x3", (1, 2), (1.0, 0.75)),
        ("5x5", (1, 2), (0.5, 0.25)),
        ("network + chosen scale", (1, 2), (3.0, 2.0)),
    ]
    assert [curve.y for curve in choices.curves] == [(25.0, 0.0), (75.0, 100.0)]


def test_table_says_which_scale_is_kept_and_what_it_costs():
    scales, memory = drawn().tables
    assert scales.rows == (("3x3", 0.8, 0, "2.000 MMAC", ""), ("5x5", 0.3, 4, "5.000 MMAC", "yes"))
    assert [row[1] for row in memory.rows] == ["1.000 MB", "2.000 MB", "1.200 MB", "1.300 MB"]


def test_entropy_says_that_all_scales_are_paid_for():
    assert "the costs are those of all scales" in drawn((3, 5)).text
    assert "cut away" in drawn((5,)).text


def test_is_plain_data():
    from dataclasses import asdict

    assert from_plain(Section, json.loads(json.dumps(asdict(drawn())))) == drawn()


@pytest.mark.parametrize(
    ("macs", "top1", "fit", "said"),
    [
        (50, 0.9, "pool", []),
        (50, 0.8, "pool", ["The MACs that it saves cost 10.0 points of accuracy."]),
        (150, 0.95, "pool", ["It does not pay here: the network takes 150 MAC with the block and took 100 MAC before; "
                             "--fit stride makes the block cheaper."]),
        (150, 0.8, "stride", ["It does not pay here: the network takes 150 MAC with the block and took 100 MAC before; "
                              "a longer stage saves more.", "It costs 10.0 points of accuracy as well."]),
    ],
)  # fmt: skip
def test_says_in_words_what_it_is_worth(macs, top1, fit, said):
    assert remarks(Measurements(macs=100, top1=0.9), Measurements(macs=macs, top1=top1), fit) == said
