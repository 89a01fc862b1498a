"""The faults that `make mutants` plants: what they are, that drawing is stable, and which tests are chosen for one."""

import ast
from pathlib import Path

import pytest

from benchmarks.mutants import recorded
from benchmarks.mutants_drawn import draw, mutants_of
from benchmarks.mutants_measured import Measured, choose_tests, functions, lines_of

SOURCE = '''"""A file with every kind of line."""

LIMIT = 3


def chosen(values: list[int], low: int = 0) -> list[int]:
    """Docstrings stay."""
    found = [value for value in values if low < value and not value == 7]
    if not found:
        raise ValueError(f"none of {len(values) + 1} values")
    found.append(min(found) - low)
    return found[1:] if len(found) > LIMIT else sorted(found, key=lambda value: -value)
'''


def made(source: str = SOURCE) -> set[tuple[str, str, str]]:
    return {(mutant.operator, mutant.old, mutant.new) for mutant in mutants_of("file.py", source)}


@pytest.mark.parametrize(
    "fault",
    [
        ("comparison", "low < value", "(low <= value)"),
        ("comparison", "low < value", "(low > value)"),
        ("comparison", "value == 7", "(value != 7)"),
        ("constant", "3", "4"),
        ("constant", "0", "-1"),
        ("constant", "1", "2"),
        ("statement dropped", "found.append(min(found) - low)", "pass"),
        ("swapped", "min(found) - low", "(low - min(found))"),
        ("term dropped", "min(found) - low", "(min(found))"),
        ("and/or", "low < value and not value == 7", "(low < value or not value == 7)"),
        ("condition negated", "not value == 7", "(value == 7)"),
        ("condition negated", "len(found) > LIMIT", "(not len(found) > LIMIT)"),
        ("min/max", "min", "max"),
    ],
)
def test_faults_of_every_kind_are_found(fault):
    assert fault in made()


def test_every_fault_is_another_program_and_leaves_texts_alone():
    for mutant in mutants_of("file.py", SOURCE):
        assert SOURCE[mutant.start : mutant.end] == mutant.old
        tree = ast.parse(SOURCE[: mutant.start] + mutant.new + SOURCE[mutant.end :])
        assert ast.dump(tree) != ast.dump(ast.parse(SOURCE))
        assert "raise" not in mutant.old and "len(values)" not in mutant.old
    assert made('x = "é" + y') == {("term dropped", '"é" + y', "'é'")}


def test_a_change_elsewhere_leaves_what_is_drawn(tmp_path: Path):
    path = tmp_path / "file.py"
    path.write_text(SOURCE)
    before = draw([path], tmp_path, 12, seed=1)
    path.write_text(SOURCE.replace('"""A file', '"""\n\nA file'))
    after = draw([path], tmp_path, 12, seed=1)
    assert [(m.old, m.new) for m in before] == [(m.old, m.new) for m in after] and len(before) == 12
    assert len({mutant.operator for mutant in before}) == 8  # as many of each kind
    assert [(m.old, m.new) for m in draw([path], tmp_path, 12, seed=2)] != [(m.old, m.new) for m in before]


def test_statements_have_their_own_lines():
    source = "def f(x):\n    if (\n        x > 1\n    ):\n        return g(\n            x\n        )\n    return 2\n"
    assert lines_of(source, source.index("x > 1"), source.index("x > 1") + 5) == (2, 4)
    assert lines_of(source, source.rindex("x\n"), source.rindex("x\n") + 1) == (5, 7)
    assert lines_of(source, source.index("2"), source.index("2") + 1) == (8, 8)


def test_tests_that_run_the_line_come_first_of_the_same_name_then_of_the_room_then_the_fastest():
    path, source = "compressor/graph/propagate.py", "def f(x):\n    if x:\n        return 1\n    return 2\n"
    [function] = functions(source)
    reached = {
        "tests/cli/test_a.py::one": (0.1, 0b111), "tests/surgery/test_b.py::two": (0.2, 0b101),
        "tests/graph/test_c.py::three": (9.0, 0b11), "tests/graph/test_walk.py::four": (5.0, 0b111),
        "tests/surgery/test_b.py::five": (0.1, 0b111),
    }  # fmt: skip
    seconds = {name: each for name, (each, _) in reached.items()}
    ran = {name: {path: {function.name: bits}} for name, (_, bits) in reached.items()}
    known = Measured("", seconds, ran, {path: {function.name: function.sha}})
    names = {name.rpartition("::")[2]: name for name in reached}
    ordered = [names[each] for each in ("four", "three", "five", "one")]
    assert choose_tests(path, source, (3, 3), [known], 100) == ordered  # `two` does not run the line
    assert choose_tests(path, source, (3, 3), [known], 14) == ordered[:2]
    known.shas = {path: {function.name: "as it was once"}}
    assert len(choose_tests(path, source, (3, 3), [known], 100)) == 5


def test_recorded_faults_are_found_in_the_code():
    assert len(list(recorded())) >= 63
