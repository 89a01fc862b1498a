"""Numbers as people read them."""

import pytest

from compressor.report import units


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (units.macs(313_201_664), "313.2 MMAC"),
        (units.macs(1_814_073_344), "1.814 GMAC"),
        (units.macs(156_000_000), "156.0 MMAC"),
        (units.macs(12), "12 MAC"),
        (units.shape((3, 32, 32)), "3x32x32"),
        (units.shape((None, 8)), "anyx8"),
        (units.share(0.0678), "6.8%"),
        (units.share(1.289, 2), "128.90%"),
        (units.share(6.8e283), "over 1,000%"),
        (units.macs(999_960), "1000 kMAC"),
        (units.amount(14_728_266), "14.73 M"),
        (units.amount(512), "512"),
        (units.amount(0), "0"),
        (units.size(46_729_118), "46.73 MB"),
        (units.size(900), "900 B"),
        (units.milliseconds(0.0517), "0.052 ms"),
        (units.milliseconds(4.7812), "4.78 ms"),
        (units.milliseconds(47.25), "47.2 ms"),
        (units.milliseconds(1234.5), "1234 ms"),
        (units.percent(0.93205), "93.20 %"),
        (units.points(0.94, 0.932), "-0.80 pp"),
        (units.points(0.5, 0.5), "+0.00 pp"),
        (units.ratio(200, 100), "0.50x"),
        (units.ratio(0, 100), "–"),
        (units.counted(1, "group"), "1 group"),
        (units.counted(0, "group"), "0 groups"),
    ],
)
def test_numbers_are_written(text: str, wanted: str) -> None:
    assert text == wanted
