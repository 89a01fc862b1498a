"""The governor's turns and its budget."""

from compressor.pruning.adapnet.governor import Governor
from compressor.pruning.adapnet.settings import AdapNetSettings

NAMES = ["a", "b", "c", "d", "e"]


def test_all_groups_are_judged_by_default_and_a_large_share_is_told_once() -> None:
    governor = Governor(AdapNetSettings())
    assert governor.due(NAMES) == NAMES
    note = governor.passed(NAMES, 5, training=10.0, boundary=5.0)
    assert note is not None and "50%" in note
    assert governor.passed(NAMES, 5, training=10.0, boundary=5.0) is None
    assert Governor(AdapNetSettings()).passed(NAMES, 5, training=10.0, boundary=1.0) is None


def test_a_budget_chooses_how_many_and_they_take_turns() -> None:
    governor = Governor(AdapNetSettings(ic_budget=0.25))
    assert governor.due(NAMES) == NAMES
    note = governor.passed(NAMES, 5, training=10.0, boundary=6.0)  # 1.2 seconds each: two fit into 2.5
    assert note is not None and "--units-per-lsep 2" in note
    turns = []
    for _ in range(5):
        turns.append(governor.due(NAMES))
        governor.passed(NAMES, 2, training=10.0, boundary=2.4)
    assert turns == [["a", "b"], ["c", "d"], ["e", "a"], ["b", "c"], ["d", "e"]]


def test_the_users_number_needs_no_clock_and_survives_a_checkpoint() -> None:
    governor = Governor(AdapNetSettings(units_per_lsep=2))
    assert governor.due(NAMES) == ["a", "b"]
    governor.passed(NAMES, 2, training=1.0, boundary=9.0)
    again = Governor(AdapNetSettings(units_per_lsep=2))
    again.load_state_dict(governor.state_dict())
    assert again.due(NAMES) == governor.due(NAMES) == ["c", "d"]
