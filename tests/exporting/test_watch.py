"""A watch speaks where a certificate no longer holds and is quiet where it does, at next to no cost."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.certify import share_at_most
from compressor.exporting.watch import Watch, Watched

DEFAULT, DEEPEST = {"thresholds": np.float32([0.5])}, {"thresholds": np.float32([2.0])}


def stepped(watch: Watch, differs: bool) -> float:
    """The factor by which the capital grows."""
    before = watch.log_capital
    watch.add(differs)
    return math.exp(watch.log_capital - before)


@given(st.floats(1e-4, 0.9), st.lists(st.booleans(), max_size=60))
def test_at_the_limit_the_capital_is_expected_to_stay_as_it_is(limit: float, history: list[bool]) -> None:
    """Which is all that Ville's inequality asks, whatever came before; and it is never lost."""
    watches = Watch(limit, 0.95), Watch(limit, 0.95)
    for watch in watches:
        for differs in history:
            watch.add(differs)
    yes, no = (stepped(watch, differs) for watch, differs in zip(watches, (True, False)))
    assert limit * yes + (1 - limit) * no == pytest.approx(1) and no > 0.4


@pytest.mark.parametrize("limit", [0.01, 0.1])
def test_it_is_quiet_at_the_limit_and_speaks_beyond_it(limit: float) -> None:
    random = np.random.default_rng(0)

    def spoke(share: float, count: int) -> bool:
        watch = Watch(limit, 0.95)
        for differs in (random.random(count) < share).tolist():
            watch.add(differs)
            if watch.exceeded:
                return True
        return False

    assert sum(spoke(limit, 1000) for _ in range(100)) <= 100 * 0.05 + 2 * math.sqrt(100 * 0.05 * 0.95)
    assert all(spoke(4 * limit, 3000) for _ in range(10))


class Two:
    """Two depths; the first is taken by half of the images and differs from the second on a given share."""

    def __init__(self, differs: float) -> None:
        self.random, self.differs, self.deep = np.random.default_rng(1), differs, 0

    def __call__(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        count = len(inputs["input"])
        if np.array_equal(inputs["thresholds"], DEEPEST["thresholds"]):
            self.deep += count
            return [np.eye(2)[(self.random.random(count) < self.differs).astype(int)], np.ones(count, np.int64)]
        return [np.eye(2)[np.zeros(count, int)], np.arange(count) % 2]


FACTS = {
    "feeds": DEFAULT, "deepest": DEEPEST, "share": 0.02, "images": 500, "differed": 5,
    "limit": share_at_most(5, 500, 0.975), "level": 0.975, "confidence": 0.95,
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 7, 400])
def test_a_drawn_share_is_compared_and_every_exit_counted(batch: int) -> None:
    network = Two(0.01)
    watched = Watched(network, 2, FACTS)
    for _ in range(20_000 // batch):
        assert len(watched({"input": np.zeros((batch, 1)), **DEFAULT})) == 2
    total = 20_000 // batch * batch
    assert sum(watched.left_at()) == total and watched.left_at()[1] == batch // 2 * (20_000 // batch)
    assert watched.watch is not None and watched.watch.seen == network.deep
    assert abs(network.deep - 0.02 * total) < 5 * math.sqrt(0.02 * total)
    assert "nothing speaks against the certificate" in watched.words()


def test_where_more_answers_differ_it_says_so() -> None:
    watched = Watched(Two(0.3), 2, FACTS)
    for _ in range(40):
        watched({"input": np.zeros((100, 1)), **DEFAULT})
    assert "THE CERTIFICATE NO LONGER HOLDS: the deepest exit answered otherwise on" in watched.words()
    assert "where the certificate was made on 5 of 500, so at most 2." in watched.words()


def test_another_exit_than_the_certified_one_is_counted_and_not_compared() -> None:
    network = Two(0.5)
    watched = Watched(network, 2, FACTS)
    for _ in range(50):
        watched({"input": np.zeros((100, 1)), "thresholds": np.float32([0.4])})
    assert (sum(watched.left_at()), network.deep) == (5000, 0)
