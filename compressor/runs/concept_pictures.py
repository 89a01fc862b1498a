"""What AdapNet's concepts look like: for each, the feature maps nearest to its centre, as small pictures."""

import base64
import io
from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from compressor.pruning.adapnet.unit import Unit
from compressor.report.sections import Gallery
from compressor.report.units import counted

_MOST_LAYERS, _MOST_CONCEPTS, _MOST_MAPS = 6, 6, 6


def galleries(units: Iterable[Unit]) -> tuple[Gallery, ...]:
    """One gallery a layer that has concepts, evenly chosen where there are many; a row a concept, strongest first.

    The maps are the unit's exemplars, which AdapNet keeps nearest to the centre first. Black is a map's least
    activation, white its largest.
    """
    found = [unit for unit in units if unit.concepts]
    return tuple(_gallery(unit) for unit in found[:: max(1, -(-len(found) // _MOST_LAYERS))])


def _gallery(unit: Unit) -> Gallery:
    strength = unit.table.sum(0)
    ranked = sorted(unit.concepts, key=lambda concept: -float(strength[concept]))
    shown = ranked[:_MOST_CONCEPTS]
    shares = (strength / strength.sum()).tolist()
    rows = tuple((f"{100 * shares[each]:.0f} %", tuple(_pictures(unit, each))) for each in shown)
    more = f", the {len(shown)} strongest of {len(ranked)}" if len(shown) < len(ranked) else ""
    side = f"{unit.size}x{unit.size}"
    left = "left: share of all maps"
    caption = f"{counted(len(shown), 'concept')}{more}; maps at {side}, nearest to the centre first; {left}"
    return Gallery(unit.name, rows, caption)


def _pictures(unit: Unit, concept: int) -> Iterator[str]:
    for picture in unit.exemplars[(unit.owners == concept).to(unit.device)][:_MOST_MAPS]:
        yield _data_uri(picture)


def _data_uri(picture: Tensor) -> str:
    """A map (height, width) as a grey PNG inside an address."""
    from PIL import Image

    values = picture.float().cpu().numpy()
    least, most = float(values.min()), float(values.max())
    grey = np.zeros_like(values) if most <= least else (values - least) / (most - least)
    buffer = io.BytesIO()
    Image.fromarray((255 * grey).round().astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
