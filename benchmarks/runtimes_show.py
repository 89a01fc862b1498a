"""The tables of `benchmarks.runtimes`: each runtime by kind of network, then its times by network."""

from collections.abc import Iterable, Iterator
from typing import Any

from compressor.exporting.runtimes import RUNTIMES

Result = dict[str, Any]
TITLES = {name: each.title for name, each in RUNTIMES.items()}
_NOT_RUN = "CoreML", "TensorRT"
# Else the files that were opened.
_SHOWN_BY = {"onnx": "its profiler", "openvino": "oneDNN's log", "executorch": "its ETDump"}


def table(result: Result) -> str:
    """All of it as Markdown."""
    return "\n".join([*_by_kind(result), "", *_by_network(result), "", _told(result)])


def _by_kind(result: Result) -> Iterator[str]:
    static, dynamic = _measured(result["static"]), _measured(result["dynamic"])
    yield f"| runtime | {len(static)} static, fp32 | INT8 | {' | '.join(dynamic)} | skipping shown by |"
    yield "|---|---|---|" + "---|" * (len(dynamic) + 1)
    for runtime, title in TITLES.items():
        fp32, int8 = (_rows(static, runtime, precision) for precision in ("fp32", "int8"))
        ran = [row for row in fp32.values() if "refused" not in row]
        cells = [f"{len(ran)} run, {_equal(row['max_rel'] for row in ran)}" if ran else "none"]
        agreed = [row["agreement"] for row in int8.values() if "refused" not in row]
        cells.append(f"{len(agreed)} run, {min(agreed):.1%} to {max(agreed):.1%} agree" if agreed else "no")
        cells += [_exits(next(row for row in rows if row["runtime"] == runtime)) for rows in dynamic.values()]
        yield f"| {title} | {' | '.join(cells)} | {_SHOWN_BY.get(runtime, 'the files that ran')} |"
    for title in _NOT_RUN:
        yield f"| {title} | not run here |" + " |" * (len(dynamic) + 2)


def _exits(row: Result) -> str:
    if "refused" in row:
        return row["refused"].partition(", which")[0]
    exits, counts = row["exits"], [each["convolutions"] for each in row["exits"]]
    ran = "" if None in counts else f"; {', '.join(map(str, counts))} convolutions"
    times = ", ".join(f"{each['ms']:.2f}" for each in exits)
    return f"{_equal(each['max_rel'] for each in exits)}{ran}; {times} ms"


def _equal(differences: Iterable[float]) -> str:
    worst = max(differences)
    return f"equal within {worst:.0e}" if worst else "equal"


def _by_network(result: Result) -> Iterator[str]:
    static = _measured(result["static"])
    yield f"| ms, share of ONNX Runtime's | | {' | '.join(static)} |"
    yield "|---|---|" + "---|" * len(static)
    base = {network: row["ms"] for network, row in _rows(static, "onnx", "fp32").items()}
    size = {network: row["bytes"] for network, row in _rows(static, "onnx", "fp32").items()}
    for runtime, title in {"torch, eager": "PyTorch, as it came", **TITLES}.items():
        for precision in ("fp32", "int8"):
            found = _rows(static, runtime, precision)
            if found:
                cells = (_cell(row, base[network], size[network], precision) for network, row in found.items())
                yield f"| {title} | {precision} | {' | '.join(cells)} |"


def _cell(row: Result, base: float, size: int, precision: str) -> str:
    if "refused" in row:
        return str(row["refused"])
    told = f"{row['ms']:.2f}, {row['ms'] / base:.2f}"
    told += f"; {row['agreement']:.1%}" if precision == "int8" else ""
    return told + (f"; {row['bytes'] / 1e6:.2f} MB" if "bytes" in row else "")


def _rows(networks: dict[str, list[Result]], runtime: str, precision: str) -> dict[str, Result]:
    """The row of each network that has one."""
    return {
        network: row
        for network, rows in networks.items()
        for row in rows
        if (row["runtime"], row["precision"]) == (runtime, precision)
    }


def _measured(part: Result) -> dict[str, list[Result]]:
    return {name: found["rows"] for name, found in part.items() if "rows" in found}


def _told(result: Result) -> str:
    subjects = "; ".join(
        f"{name}: {found['of']}, {found['images']}" if "rows" in found else f"{name}: not measured, {found['refused']}"
        for name, found in result["static"].items()
    )
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in VERSIONS)
    return (
        "Static networks: time of one image and that as a share of ONNX Runtime's in fp32; INT8: images of the same "
        f"class as in fp32; size. Processor time, one thread, medians of {result['rounds']} rounds in which all take "
        "turns, on a machine that others used too: shares of one column compare, its milliseconds depend on the hour; "
        "of ExecuTorch, whose Python package computes on all cores, it is that of all threads. "
        f"Dynamic networks: digits_cnn, each exit of it. INT8 of `onnx` and `openvino` with `--chip {result['chip']}`. "
        f"{subjects}. {result['machine']}; {versions}."
    )


VERSIONS = ("onnxruntime", "openvino", "ai-edge-litert", "litert-torch", "executorch", "ncnn", "pnnx")
