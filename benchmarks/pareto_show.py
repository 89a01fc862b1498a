"""The result of `benchmarks/pareto.py` as tables in Markdown and as a plot."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def table(result: dict[str, Any]) -> str:
    """For each network and data set: test top-1 in per cent, mean ± standard deviation over the seeds, by how many
    multiply-adds went; the best of ours and of the peer's at each point are bold.
    """
    return "\n\n".join(_one(network, data, rows) for network, data, rows in cases(result))


def cases(result: dict[str, Any]) -> Iterator[tuple[str, str, Rows]]:
    """Each network and data set with its rows."""
    for network, data in dict.fromkeys((row["network"], row["data"]) for row in result["rows"]):
        yield network, data, [row for row in result["rows"] if (row["network"], row["data"]) == (network, data)]


def points(rows: Rows) -> dict[str, dict[float, list[float]]]:
    """method -> share of the multiply-adds that stays -> top-1 of each seed, in per cent."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        found.setdefault(row["method"], {}).setdefault(row["left"], []).append(100 * row["top1"])
    return found


def is_peer(method: str) -> bool:
    """Whether it is Torch-Pruning's."""
    return method.startswith("TP ")


def _one(network: str, data: str, rows: Rows) -> str:
    found = points(rows)
    untouched = found.pop("untouched", {}).get(1.0, [])
    lefts = sorted({left for values in found.values() for left in values}, reverse=True)
    best = {
        (peer, left): max(
            (method for method in found if is_peer(method) is peer and left in found[method]),
            key=lambda method: statistics.mean(found[method][left]),
            default="",
        )
        for peer in (False, True)
        for left in lefts
    }
    lines = [f"{network} on {data}; untouched, with the same epochs: {_spread(untouched)}", ""]
    lines.append(f"| MACs removed | {' | '.join(f'{1 - left:.0%}' for left in lefts)} | s |")
    lines.append("|---" * (len(lefts) + 2) + "|")
    for method, values in found.items():
        cells = []
        for left in lefts:
            text = _spread(values.get(left, []))
            cells.append(f"**{text}**" if best[is_peer(method), left] == method and text else text)
        seconds = statistics.mean(row["cpu_seconds"] for row in rows if row["method"] == method)
        lines.append(f"| {method} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel for each network and data set: top-1 over the share of the multiply-adds that stays."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = list(cases(result))
    with matplotlib.rc_context({"svg.hashsalt": "compressor", "font.size": 8}):
        figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
        for axes, (network, data, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            found = points(rows)
            whole = found.pop("untouched", None)
            if whole:
                axes.axhline(statistics.mean(whole[1.0]), color="black", linewidth=0.6, label="untouched")
            for method, values in found.items():
                lefts = sorted(values)
                means = [statistics.mean(values[left]) for left in lefts]
                spreads = [statistics.stdev(values[left]) if len(values[left]) > 1 else 0.0 for left in lefts]
                style = "--" if is_peer(method) else "-"
                axes.errorbar(
                    [100 * left for left in lefts],
                    means,
                    spreads,
                    fmt=f"o{style}",
                    markersize=3,
                    linewidth=1,
                    label=method,
                )
            axes.set(title=f"{network} on {data}", xlabel="MACs left, %", ylabel="test top-1, %")
            axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        figure.savefig(path, metadata={"Date": None})
