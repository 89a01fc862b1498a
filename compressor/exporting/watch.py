"""Counts at which exits images leave, and says when a certificate no longer holds on the images that come.

A package carries a copy of this file for the device (`run.py` imports it). It needs NumPy and nothing of compressor's.
There are no labels on a device. What is watched is how often the answer differs from the deepest exit's: it differed on
some of the images that the certificate was made on, and on images like those it differs no more often.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

OVERHEAD = 0.005  # of the multiply-adds: what running a share of the images through the whole network may cost
_FLUSHED = 4096  # images after which exits are counted where nothing is compared


@dataclass
class Watch:
    """An e-process for a share that should be at most `limit`, valid at any time and not only at the end.

    It is `exceeded` once there is this much evidence against the limit. Where the limit holds, that happens in at most
    1 - confidence of all streams. Its fields are plain numbers, to be stored where a program starts again.

    Reference: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", section 4;
    Ville's inequality. The stake is Kelly's for the share seen so far.
    """

    limit: float
    confidence: float
    log_capital: float = 0.0
    seen: int = 0
    differed: int = 0

    def add(self, differs: bool) -> None:
        """One image on which both answers are known."""
        share = (self.differed + self.limit) / (self.seen + 1)
        stake = min(max((share - self.limit) / (self.limit * (1 - self.limit)), 0.0), 0.5 / self.limit)
        self.log_capital += math.log1p(stake * (differs - self.limit))
        self.seen, self.differed = self.seen + 1, self.differed + differs

    @property
    def exceeded(self) -> bool:
        """Whether the share is larger than the limit."""
        return self.log_capital >= -math.log(1 - self.confidence)


class Watched:
    """A package's network that counts exits; on a share of the images it also runs the deepest one, to compare."""

    def __init__(self, network: Callable[..., list[np.ndarray]], exits: int, facts: Mapping[str, Any] | None) -> None:
        """`facts` is what the manifest says under `watch`, its feeds as the runtime takes them."""
        self.network, self.facts = network, facts
        self.watch = None if facts is None else Watch(facts["limit"], facts["level"])
        self._left_at, self._pending = np.zeros(exits, np.int64), list[np.ndarray]()
        self._random = np.random.default_rng()
        self._skip = self._gap() - 1  # images before the next that is looked at

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs for a batch."""
        outputs = self.network(inputs)
        if "thresholds" in inputs:
            self._pending.append(outputs[1])  # counted later and together: a call is short where the network is
        else:
            self._left_at[inputs.get("start", 0)] += len(outputs[0])
        self._skip -= len(outputs[0])
        if self._skip < 0:
            self._look(inputs, outputs[0])
        return outputs

    def left_at(self) -> list[int]:
        """How many images took each exit."""
        if self._pending:
            self._left_at += np.bincount(np.concatenate(self._pending), minlength=len(self._left_at))
            self._pending.clear()
        found: list[int] = self._left_at.tolist()
        return found

    def _gap(self) -> int:
        return _FLUSHED if self.facts is None else int(self._random.geometric(self.facts["share"]))

    def _look(self, inputs: Mapping[str, np.ndarray], scores: np.ndarray) -> None:
        """Compare the images of a batch that are drawn, and find the next."""
        self.left_at()
        chosen = []
        while self._skip < 0:
            chosen.append(self._skip)  # counted from the batch's end
            self._skip += self._gap()
        if self.facts is not None:
            self._compare(inputs, scores, chosen)

    def _compare(self, inputs: Mapping[str, np.ndarray], scores: np.ndarray, chosen: list[int]) -> None:
        """Tell the watch of these images, where they took the exit that the certificate is of."""
        assert self.facts is not None and self.watch is not None
        if all(np.array_equal(value, inputs[name]) for name, value in self.facts["feeds"].items()):
            deepest = self.network({"input": inputs["input"][chosen], **self.facts["deepest"]})[0]
            for differs in (deepest.argmax(1) != scores[chosen].argmax(1)).tolist():
                self.watch.add(differs)

    def words(self) -> str:
        """How many images left where, and whether the certificate still holds."""
        left = "images at each exit: " + ", ".join(f"{number} {count:,}" for number, count in enumerate(self.left_at()))
        if self.facts is None or self.watch is None:
            return f"{left}; there is no certificate to watch"
        watch, facts = self.watch, self.facts
        found = f"the deepest exit answered otherwise on {watch.differed:,} of {watch.seen:,} images drawn from them"
        expected = (
            f"where the certificate was made on {facts['differed']:,} of {facts['images']:,}, so at most "
            f"{facts['limit']:.2%} of images like those"
        )
        told = "THE CERTIFICATE NO LONGER HOLDS" if watch.exceeded else "nothing speaks against the certificate"
        return f"{left}; {told}: {found}, {expected} ({facts['confidence']:.0%} confidence)"
