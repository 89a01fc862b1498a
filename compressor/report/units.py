"""Numbers as people read them: four significant digits with a unit."""

from collections.abc import Callable, Iterable

NOTHING = "–"  # where there is no number
ENGINES = {"onnxruntime": "ONNX Runtime", "torch": "torch"}  # what times are measured on
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def macs(count: float) -> str:
    """Multiply-adds: 313201664 -> "313.2 MMAC"."""
    return f"{_scaled(count)}MAC"


def amount(count: float) -> str:
    """A count of things: 14728266 -> "14.73 M", 512 -> "512"."""
    return _scaled(count).strip()


def size(count: float) -> str:
    """Bytes, in powers of ten: 58912345 -> "58.91 MB"."""
    return f"{_scaled(count)}B"


def milliseconds(value: float) -> str:
    """A time in milliseconds: 4.7812 -> "4.78 ms"."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} ms"


def duration(seconds: float) -> str:
    """A time as a clock shows it: 75 -> "1:15", 3700 -> "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shape(sizes: Iterable[int | None]) -> str:
    """As the command line takes it: (3, 32, 32) -> "3x32x32"; a size that may be any is said so."""
    return "x".join("any" if size is None else str(size) for size in sizes)


def or_nothing(value: float | None, write: Callable[[float], str]) -> str:
    """A number as `write` has it, or what stands for none."""
    return NOTHING if value is None else write(value)


def percent(fraction: float) -> str:
    """A fraction in 0..1: 0.932 -> "93.20 %"."""
    return f"{100 * fraction:.2f} %"


def share(fraction: float, digits: int = 1) -> str:
    """A share that may be of next to nothing: 0.0678 -> "6.8%", 12.5 -> "over 1,000%"."""
    return "over 1,000%" if fraction > 10 else f"{fraction:.{digits}%}"


def points(before: float, after: float) -> str:
    """The change of a fraction in percentage points: 0.94, 0.932 -> "-0.80 pp"."""
    return f"{100 * (after - before):+.2f} pp"


def ratio(before: float, after: float) -> str:
    """What is left: 200, 100 -> "0.50x"; nothing can be said of a zero before."""
    return f"{after / before:.2f}x" if before else NOTHING


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1, "group" -> "1 group"; 14 -> "14 groups"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _scaled(count: float) -> str:
    for step, prefix in _STEPS:
        if abs(count) >= step:
            digits = f"{count / step:#.4g}"  # with its zeros, so that columns line up
            return f"{digits.removesuffix('.')} {prefix}"
    return f"{count:.4g} "
