"""Small faults that can be put into a Python file, found in its syntax tree: what `benchmarks.mutants` draws from.

Annotations, docstrings, imports, assertions and the text of errors are left alone. Drawing is by hashes of the faults
themselves, so a change elsewhere in the code leaves the others drawn.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
REVERSED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
_OPPOSITES = ("min max", "any all", "amin amax", "argmin argmax", "minimum maximum", "floor ceil", "sum mean")
OPPOSITE = {one: other for pair in map(str.split, _OPPOSITES) for one, other in (pair, reversed(pair))}
# Of these functions the order of the first two arguments does not matter.
SYMMETRIC = frozenset({"min", "max", "minimum", "maximum", "transpose"})
_LEFT_ALONE = (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.JoinedStr)


@dataclass(frozen=True)
class Mutant:
    """One fault: `old` at the characters `start` to `end` of a file becomes `new`."""

    path: str  # from the root of the repository
    start: int
    end: int
    old: str
    new: str
    operator: str

    def key(self, source: str) -> str:
        """The fault with the lines around it, as a number that does not depend on where in the file it stands."""
        before, after = source[: self.start].rfind("\n"), source.find("\n", self.end)
        words = (self.path, source[before + 1 : self.start], self.old, self.new, source[self.end : after])
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """Every fault of the kinds below that one file can have."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def place(line: int, column: int) -> int:
        start = lines[line - 1]
        return start + len(source[start : lines[line]].encode()[:column].decode())

    for node in _nodes(ast.parse(source)):
        for operator, old, new in _replacements(node):
            start, end = place(old.lineno, old.col_offset), place(old.end_lineno or 0, old.end_col_offset or 0)
            text = ast.unparse(ast.fix_missing_locations(new))
            if ast.dump(new) == ast.dump(old):  # the two arguments that were swapped are equal
                continue
            text = text if isinstance(new, ast.stmt | ast.Constant | ast.Name | ast.Attribute) else f"({text})"
            yield Mutant(path, start, end, source[start:end], text, operator)


def draw(paths: Iterable[Path], root: Path, number: int, seed: int) -> list[Mutant]:
    """About `number` faults, as many of each kind, by the hash of the seed and the fault."""
    kinds: dict[str, list[tuple[str, Mutant]]] = {}
    for path in sorted(paths):
        source, name = path.read_text(), path.relative_to(root).as_posix()
        seen: dict[str, count[int]] = {}  # equal faults on equal lines are told apart by their order
        for mutant in mutants_of(name, source):
            key = mutant.key(source)
            drawn = hashlib.sha256(f"{seed} {key} {next(seen.setdefault(key, count()))}".encode()).hexdigest()
            kinds.setdefault(mutant.operator, []).append((drawn, mutant))
    each = -(-number // len(kinds))
    chosen = [pair for found in kinds.values() for pair in sorted(found, key=lambda pair: pair[0])[:each]]
    return [mutant for _, mutant in sorted(chosen, key=lambda pair: pair[0])[:number]]


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What runs, outermost first."""
    if isinstance(node, _LEFT_ALONE) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list", "bases"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _nodes(child)


_Replacement = tuple[str, ast.expr | ast.stmt, ast.expr | ast.stmt]  # kind of fault, a node, and what takes its place


def _replacements(node: ast.AST) -> Iterator[_Replacement]:
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            for table in (FLIPPED, REVERSED):
                if type(operator) in table:
                    yield "comparison", node, ast.Compare(left, [table[type(operator)]()], [right])
        case ast.Constant(value=bool(value)):
            yield "constant", node, ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "constant", node, ast.Constant(value + 1)
            yield "constant", node, ast.Constant(value - 1)
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield "statement dropped", node, ast.Pass()
        case ast.Call(func=function):
            yield from _in_call(node, function)
        case ast.BinOp(left=left, op=operator, right=right):
            if isinstance(operator, ast.Sub | ast.Div | ast.FloorDiv | ast.MatMult | ast.Pow):
                yield "swapped", node, ast.BinOp(right, operator, left)
            yield "term dropped", node, left
        case ast.BoolOp(op=operator, values=values):
            yield "and/or", node, ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
            yield "term dropped", node, values[0]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "condition negated", node, operand
        case ast.If(test=test) | ast.IfExp(test=test) | ast.comprehension(ifs=[test]):
            yield "condition negated", test, ast.UnaryOp(ast.Not(), test)


def _in_call(call: ast.Call, function: ast.expr) -> Iterator[_Replacement]:
    name = ast.unparse(function).rpartition(".")[2]
    if len(call.args) > 1 and name not in SYMMETRIC and not any(isinstance(arg, ast.Starred) for arg in call.args[:2]):
        first, second, *more = call.args
        yield "swapped", call, ast.Call(function, [second, first, *more], call.keywords)
    if name in OPPOSITE and isinstance(function, ast.Name) and name != "sum":  # there is no function called mean
        yield "min/max", function, ast.Name(OPPOSITE[name])
    elif name in OPPOSITE and isinstance(function, ast.Attribute):
        yield "min/max", function, ast.Attribute(function.value, OPPOSITE[name])
