"""Steps that take long are told to whoever listens, and to nobody else."""

from compressor.report.progress import counted, listening, progress


def test_every_part_is_told_once_it_is_done():
    told = []
    with listening(lambda *event: told.append(event)):
        assert list(counted("images", ["ab", "c"], 3, len)) == ["ab", "c"]
    assert told == [("images", 0, 3), ("images", 2, 3), ("images", 3, 3)]


def test_outside_nobody_is_told():
    told = []
    with listening(lambda *event: told.append(event)):
        pass
    progress("images", 1, 2)
    assert list(counted("images", [1], 1)) == [1] and not told
