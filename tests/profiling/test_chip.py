"""The multiple that a chip likes."""

from compressor.profiling.chip import preferred_multiple


def test_wide_vectors_want_sixteen_and_others_eight() -> None:
    assert preferred_multiple("AVX512")[0] == 16
    for capability in ("AVX2", "DEFAULT", "NO AVX", "SVE256"):
        multiple, why = preferred_multiple(capability)
        assert multiple == 8 and capability in why
    assert preferred_multiple()[0] in (8, 16)
