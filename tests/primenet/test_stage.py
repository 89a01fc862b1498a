"""A stage makes the maps that are asked for, or says that it cannot."""

import pytest

from compressor.errors import ModelError
from compressor.primenet.settings import PrimeNetSettings
from compressor.primenet.stage import build_stage
from tests.primenet.nets import CLASSES, IMAGE


@pytest.mark.parametrize(
    "wanted",
    [{"filters": 0}, {"projected": 0}, {"size": (IMAGE[1] + 1, IMAGE[2])}, {"size": (IMAGE[1], IMAGE[2] + 1)}],
    ids=str,
)
def test_a_stage_without_filters_or_projection_or_of_larger_maps_is_refused(wanted: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="the block cannot make .* choose another stage"):
        build_stage(IMAGE, CLASSES, PrimeNetSettings(), **{"filters": 4, "projected": 4, "size": (4, 4), **wanted})
