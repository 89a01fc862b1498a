"""What is known of a model besides its weights, as a graph carries it with or without a package."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from compressor.vision.preparation import Preparation

CARD_KEY = "compressor.card"  # of a graph that is no package's
_KNOWN = "of the training data"


@dataclass(frozen=True)
class Card:
    """What is known of a model besides its weights."""

    classes: tuple[str, ...] | None = None
    preparation: Preparation | None = None  # None: nobody said, and pixels in 0..1 go in as they are
    history: tuple[str, ...] = ()  # the commands that made it
    certificate: dict[str, Any] | None = None  # what is promised of it on fresh images


def card_text(shape: tuple[int, ...], card: Card, gives: Any = 0) -> str:
    """What `manifest.card_inside` and `gives_inside` read, for a model whose first input has this shape."""
    return json.dumps(
        {
            "input": input_facts(shape, card),
            "gives": gives,
            "classes": card.classes,
            "history": card.history,
            "certificate": card.certificate,
        }
    )


def input_facts(shape: tuple[int, ...], card: Card, name: str = "input", dtype: str = "float32") -> dict[str, Any]:
    """How images have to be brought to the model; of several inputs the first."""
    channels = shape[0] if shape else 1
    plain = Preparation((0.0,) * channels, (1.0,) * channels)
    preparation = card.preparation or (
        replace(Preparation.usual(*shape[1:]), mean=plain.mean, std=plain.std) if len(shape) == 3 else plain
    )
    return {
        "name": name,
        "shape": shape,
        "layout": "NCHW",
        "dtype": dtype,
        "scale": "pixels / 255, then (x - mean) / std for each channel",
        **asdict(preparation),
        "normalisation": _KNOWN if card.preparation else "unknown: the model did not say",
    }


def input_from(held: Mapping[str, Any]) -> dict[str, Any]:
    """What `input_facts` wrote. Raises KeyError, TypeError or ValueError for what is damaged."""
    numbers = {key: tuple(float(each) for each in held[key]) for key in ("mean", "std")}
    Preparation.from_json(held)
    return {**held, **numbers, "shape": tuple(int(size) for size in held["shape"])}


def preparation_of(held: Mapping[str, Any]) -> Preparation | None:
    """How images are prepared, where it is known."""
    return Preparation.from_json(held) if held.get("normalisation") == _KNOWN else None


def check_gives(held: Any) -> None:
    """Raise TypeError for what is no way to return outputs."""
    if isinstance(held, Mapping | list):
        for part in held.values() if isinstance(held, Mapping) else held:
            check_gives(part)
    elif held is not None and type(held) is not int:
        raise TypeError(f"gives holds {type(held).__name__}")
