"""Promises that hold on fresh images: a smaller network loses at most so much accuracy, with so much confidence.

Both networks answer the same images, none of which chose anything. An image counts as lost where only the larger
network is right, as won where only the smaller one is; the drop is the share lost less the share won. All of this is
exact for any number of independent images: nothing is approximated by a normal distribution. Other figures than top-1
have `estimated`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from compressor.report.measurements import CONFIDENCE, Certificate, Figure


@dataclass(frozen=True)
class Paired:
    """How two networks differ on the same images."""

    images: int
    lost: int  # only the larger network is right
    won: int = 0  # only the smaller one is

    def __post_init__(self) -> None:
        if not (self.images >= 0 and self.lost >= 0 and self.won >= 0 and self.lost + self.won <= self.images):
            raise ValueError(f"{self.lost} lost and {self.won} won of {self.images} images")

    @classmethod
    def of(cls, larger: ArrayLike, smaller: ArrayLike) -> "Paired":
        """From which images each network has right."""
        big, small = np.asarray(larger, bool), np.asarray(smaller, bool)
        return cls(len(big), int((big & ~small).sum()), int((~big & small).sum()))

    @property
    def drop(self) -> float:
        """On these images, as a share of them."""
        return (self.lost - self.won) / self.images if self.images else 0.0


@lru_cache(4096)
def p_value(paired: Paired, drop: float) -> float:
    """How likely images that speak at least as much for the promise are at most, where the drop is larger.

    How much they speak for it is the score: the images lost less those won, against the promise, in standard deviations
    at the likeliest share won where the promise just fails. The probability of all outcomes with a score as low is
    taken at the share won that makes it largest, of those in line with what was won, plus the chance that the share is
    none of these.

    References: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design" (the score); Suissa and Shuster 1991 (its unconditional test); Berger and Boos 1994, "P values
    maximized over a confidence set for the nuisance parameter".
    """
    if not 0 <= drop < 1:
        raise ValueError(f"a drop of {drop} is no share from 0 to below 1")
    n, won = paired.images, paired.won
    if not n or paired.drop >= drop:
        return 1.0
    low, high = 1 - share_at_most(n - won, n, 1 - _BESIDE / 2), share_at_most(won, n, 1 - _BESIDE / 2)
    shares = np.linspace(low, min(high, (1 - drop) / 2), _SHARES)[:, None]
    reach = stats.binom.ppf([1e-12, 1 - 1e-12], n, shares[[0, -1], 0]).astype(int)
    wins = np.arange(reach[0], reach[1] + 1)
    lost = stats.binom.cdf(_most_lost(paired, drop, wins), n - wins, (drop + shares) / (1 - shares))
    return min(1.0, float((stats.binom.pmf(wins, n, shares) * lost).sum(1).max()) + _BESIDE)


_BESIDE = 0.001  # chance that the share won is none of those that are looked at
_SHARES = 13  # that are looked at: the probability hardly depends on them


def _score(lost: NDArray[np.float64], won: NDArray[np.float64], images: int, drop: float) -> NDArray[np.float64]:
    """Of lost less won against `images * drop`, in standard deviations at the likeliest share won of that drop."""
    rest = (lost + won) * (1 - drop) - 2 * drop * (images - lost)
    share = (rest + np.sqrt(rest**2 + 8 * images * won * drop * (1 - drop))) / (4 * images)
    spread = np.sqrt(images * (2 * share + drop - drop**2))
    found: NDArray[np.float64] = (lost - won - images * drop) / np.maximum(spread, 1e-12)
    return found


def _most_lost(paired: Paired, drop: float, won: NDArray[np.int64]) -> NDArray[np.int64]:
    """With so many images won, how many may be lost to speak for the promise as much as these do; -1 for none."""
    score = _score(np.array(float(paired.lost)), np.array(float(paired.won)), paired.images, drop)
    low, high = np.full(len(won), -1), paired.images - won + 1  # `low` do, `high` do not: the score grows with the lost
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = _score(middle.astype(float), won.astype(float), paired.images, drop) <= score + 1e-9
        low, high = np.where(enough & (middle >= 0), middle, low), np.where(enough, high, middle)
    return low


def bound(paired: Paired, confidence: float = CONFIDENCE) -> float:
    """The largest drop that these images leave possible at this confidence, to a thousandth of a point: 1 where they
    say nothing.
    """
    low, high = 0.0, 1.0  # the promise of `high` is kept, that of `low` is not
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(paired, middle) <= 1 - confidence else (middle, high)
    return high


def certified(candidates: Sequence[Paired], drop: float, confidence: float = CONFIDENCE) -> int:
    """How many candidates, from the first, keep the promise; they come from the safest to the cheapest.

    Their order is chosen before these images are looked at. The first that fails ends it, so that
    all of them together break the promise in no more than 1 - confidence of all draws.

    Reference: Angelopoulos et al. 2021, "Learn then Test", section 3 (fixed sequence testing).
    """
    for number, paired in enumerate(candidates):
        if p_value(paired, drop) > 1 - confidence:
            return number
    return len(candidates)


def images_needed(drop: float, confidence: float = CONFIDENCE, share_lost: float = 0.0) -> int:
    """Images that would do if this share of them were lost and none won: without a single loss the fewest that can
    promise it.

    Raises ValueError where no number would: as many are lost as may be.

    Example: `images_needed(0.002)` is 1507.
    """
    if not 0 <= share_lost < drop < 1:
        raise ValueError(f"with {share_lost:g} of the images lost no number of them promises {drop:g}")

    def enough(images: int) -> bool:
        return p_value(Paired(images, math.floor(share_lost * images)), drop) <= 1 - confidence

    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def share_at_most(count: int, images: int, confidence: float) -> float:
    """The largest share of which so many cases among the images leave room at this confidence.

    Reference: Clopper and Pearson 1934.
    """
    return float(stats.beta.ppf(confidence, count + 1, images - count)) if count < images else 1.0


def promised(
    labels: ArrayLike | None,
    larger: ArrayLike,
    candidates: Sequence[ArrayLike],
    classes: Sequence[str],
    *,
    drop: float,
    confidence: float = CONFIDENCE,
    otherwise: str = "",
) -> tuple[int | None, Certificate]:
    """The cheapest candidate that loses at most `drop`, None where none does, and what is promised of it.

    Args:
        labels: the class of every image, (images,), none of which has chosen anything; None where they have no classes.
        larger: which images the network as it came has right, bool (images,).
        candidates: the same of every candidate, from the safest to the cheapest.
        classes: a name for every class.
        otherwise: what is done where nothing can be promised, such as "all layers run".
    """
    rows = [np.asarray(each, bool) for each in candidates]
    pairs = [Paired.of(larger, each) for each in rows]
    count = certified(pairs, drop, confidence)
    at = max(count - 1, 0)
    lost = max(pairs[at].drop, 0.0)
    number, worst, images = (0, 0.0, 0) if labels is None else worst_class(labels, larger, rows[at])
    certificate = Certificate(
        drop=bound(pairs[at], confidence),
        confidence=confidence,
        images=pairs[at].images,
        observed=pairs[at].drop,
        kept=count > 0,
        asked=drop,
        would_do=images_needed(drop, confidence, lost) if not count and lost < drop else None,
        worst_class=classes[number] if images else "",
        worst_drop=worst,
        worst_images=images,
        agreement=float((np.asarray(larger, bool) == rows[at]).mean()),
        otherwise=otherwise,
    )
    return (at if count else None), certificate


def estimated(
    larger: ArrayLike,
    candidates: Sequence[ArrayLike],
    figure: Figure,
    *,
    drop: float,
    confidence: float = CONFIDENCE,
    images: int,
    unit: str,
) -> tuple[int | None, Certificate]:
    """`promised` of any figure, as a bootstrap estimate: no exact test, but the share of samples that lose more.

    Args:
        larger: the figure of the network as it came, and then that of every sample, (1 + samples,).
        candidates: the same of every candidate on the same samples, from the safest to the cheapest.
        images: examples or batches, by `unit`, that the samples are drawn from.

    Reference: Efron and Tibshirani 1993, section 13.3 (percentile intervals).
    """
    sign = 1.0 if figure.higher else -1.0
    losses = [sign * (np.asarray(larger) - np.asarray(each)) for each in candidates]
    risk = (1 - confidence) / 2  # percentile intervals are too short: at the whole risk about twice as many break it
    kept = [float((each[1:] > drop).mean()) <= risk for each in losses]
    count = kept.index(False) if False in kept else len(kept)
    loss = losses[max(count - 1, 0)]
    certificate = Certificate(
        drop=float(np.quantile(loss[1:], 1 - risk, method="higher")), confidence=confidence, images=images,
        observed=float(loss[0]), kept=count > 0, asked=drop, would_do=None, figure=figure.name, unit=unit,
    )  # fmt: skip
    return (count - 1 if count else None), certificate


def worst_class(labels: ArrayLike, larger: ArrayLike, smaller: ArrayLike) -> tuple[int, float, int]:
    """The class that loses most, its drop, and how many images it has: what an average hides."""
    classes = np.asarray(labels)
    differences = np.asarray(larger, float) - np.asarray(smaller, float)
    found = [(float(differences[classes == each].mean()), int(each)) for each in np.unique(classes)]
    drop, number = max(found, key=lambda pair: (pair[0], -pair[1]))
    return number, drop, int((classes == number).sum())
