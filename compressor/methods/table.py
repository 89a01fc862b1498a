"""Every one-shot method by its name; what a person reads about them stands in `catalogue`."""

from compressor.methods.bn_scale import bn_scale
from compressor.methods.fpgm import fpgm
from compressor.methods.l1 import l1
from compressor.methods.l2 import l2
from compressor.methods.random import random
from compressor.methods.scores import Score
from compressor.methods.taylor import taylor

METHODS: dict[str, Score] = {
    "l1": l1,
    "l2": l2,
    "bn-scale": bn_scale,
    "fpgm": fpgm,
    "taylor": taylor,
    "random": random,
}
