"""What a run is worth, in words: said first of all where it is worth nothing."""

import json
from dataclasses import asdict, replace

from compressor.files.plain import from_plain
from compressor.profiling.latency import ImageTimes
from compressor.report.sections import Section
from compressor.routing.curve import Point
from compressor.routing.observing import Balance
from compressor.routing.phases import Taught
from compressor.routing.section import Findings, Way, doubts, remarks, section
from compressor.routing.settings import RouteSettings
from compressor.routing.units import Unit
from tests.routing.nets import SHAPE, small_data

UNITS = tuple(Unit(i, f"layer{i}", "layer", i, i + 1, SHAPE, SHAPE, 50, "identity") for i in range(2))


def point(kind: str, macs: float, top1: float, shares: tuple[float, ...] = (0.5, 0.5)) -> Point:
    return Point(kind, 0.5, macs, top1, shares)


ROUTED = point("router", 60, 0.90)
WAYS = (
    Way("early exit by confidence", point("early exit", 60, 0.89)),
    Way("always depth 0", point("fixed", 50, 0.80)),
    Way("all layers", point("fixed", 100, 0.91)),
)


def findings(routed: Point = ROUTED, ways: tuple[Way, ...] = WAYS) -> Findings:
    taught = Taught(Balance((30, 10)), small_data().validation, router_top1=0.7, router_majority=0.75)
    curves = {"router": [ROUTED], "fixed depth": [way.point for way in ways]}
    return Findings(UNITS, (0, 1), 100, 0.91, (Way("the router", routed), *ways), curves, taught, {})


def test_a_saving_is_said_with_its_price():
    said = remarks(findings())
    assert said[0] == "Routing saves 40.00 % of the MACs at -1.00 pp of test top-1."
    assert said[1] == (
        "The router names 70.00 % of held-out labels; the commonest label alone would be right for 75.00 %."
    )
    assert len(said) == 2


def test_no_reduction_is_said_first():
    assert remarks(findings(replace(ROUTED, macs=101.0)))[0].startswith("This is no reduction")


def test_constant_router_is_said():
    said = remarks(findings(replace(ROUTED, shares=(0.0, 1.0))))
    assert said[0] == "The router sends every image to depth 1: it decides nothing."


def test_shallower_network_that_does_as_well_is_said():
    worse, better = (Way(f"always depth {each}", point("fixed", 50, 0.90 + each / 100)) for each in (0, 1))
    line = next(line for line in remarks(findings(ways=(WAYS[0], worse, better, WAYS[2]))) if "shallower" in line)
    assert line.startswith("It does not beat a shallower network: always depth 1 takes 50 MAC and gets 91.00 % right")
    assert line.endswith(", the router 60 MAC and 90.00 %.")


def test_better_early_exit_is_said():
    better = (Way("early exit by confidence", point("early exit", 60, 0.91)), *WAYS[1:])
    assert any("Early exit by confidence is better" in line for line in remarks(findings(ways=better)))


def test_slower_network_is_said():
    slow, fast = ImageTimes(2.0, 2.0, 2.0, 10, 1), ImageTimes(1.0, 1.0, 1.0, 10, 1)
    found = replace(findings(), times={"torch": {"whole": fast, "routed": slow}})
    assert any("not faster on torch: 2.00 ms" in line for line in remarks(found))
    assert not any(
        "not faster" in line for line in remarks(replace(found, times={"torch": {"whole": slow, "routed": fast}}))
    )


def test_section_and_findings_are_plain_data():
    found = findings()
    part = section(found, remarks(found))
    assert from_plain(Section, json.loads(json.dumps(asdict(part)))) == part
    assert json.loads(json.dumps(found.to_json()))["labels"] == [30, 10]


def test_few_validation_images_are_said_where_they_choose_the_threshold():
    """0.2 % may be lost: of fewer than 500 images one is more than that."""
    assert "one is 0.20% of them" in doubts(499, RouteSettings())[0] and not doubts(500, RouteSettings())
    assert doubts(199, RouteSettings(target_macs=0.5)) and not doubts(200, RouteSettings(target_macs=0.5))
    assert not doubts(10, RouteSettings(threshold=0.5))
