"""Every one-shot method by its name; what a person reads about them stands in `catalogue`."""

from compressor.pruning.bn_scale import bn_scale
from compressor.pruning.fpgm import fpgm
from compressor.pruning.l1 import l1
from compressor.pruning.l2 import l2
from compressor.pruning.random import random
from compressor.pruning.scores import Score
from compressor.pruning.taylor import taylor

METHODS: dict[str, Score] = {
    "l1": l1,
    "l2": l2,
    "bn-scale": bn_scale,
    "fpgm": fpgm,
    "taylor": taylor,
    "random": random,
}
