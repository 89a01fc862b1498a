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
    lines.append(f"| MACs removed | {' | '.join(f'{1 - left:.0%}' for left in lefts)} | CPU s |")
    lines.append("|---" * (len(lefts) + 2) + "|")
    for method, values in found.items():
        cells = []
        for left in lefts:
            text = _spread(values.get(left, []))
            cells.append(f"**{text}**" if best[is_peer(method), left] == method and text else text)
        seconds = statistics.mean(row["cpu_seconds"] for row in rows if row["method"] == method)
        lines.append(f"| {method} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def text(result: dict[str, Any]) -> str:
    """Tables and verdicts of all networks, and the budget."""
    parts = []
    for _, _, rows in cases(result):
        lines = f"{table({'rows': rows})}\n\n{verdict(rows)}"
        short = met_alone(rows)
        if short:
            lines += f" Where too few filters qualified in time, l1 took the rest: AdapNet alone came to {short}."
        counts = {len(values) for lefts in points(rows).values() for values in lefts.values()}
        parts.append(f"{lines} {' or '.join(map(str, sorted(counts)))} seeds.")
    parts.append(
        f"{result['train_images']} training images, {result['start_epochs']} epochs before and {result['epochs']} "
        f"after, of which AdapNet changes the structure in {result['adapnet']['max_epochs']} at most; CPU s is "
        "processor time for a network."
    )
    return "\n\n".join(parts)


def verdict(rows: Rows) -> str:
    """How far our best is from the peer's best at each point, and AdapNet from the best one-shot method at the smallest
    network: mean and standard deviation of the difference on the same seed, in percentage points.
    """
    found = points(rows)
    found.pop("untouched", None)
    lefts = sorted({left for values in found.values() for left in values}, reverse=True)
    peers = [name for name in found if is_peer(name)]
    adaptive = [name for name in found if name.startswith("adapnet")]
    one_shot = [name for name in found if name not in adaptive and "group norm" not in name]

    def lead(ones: list[str], others: list[str], left: float) -> tuple[str, bool]:
        one, other = (
            max((found[name][left] for name in names if left in found[name]), key=statistics.mean)
            for names in (ones, others)
        )
        gaps = [a - b for a, b in zip(one, other)]  # rows of one seed follow those of the seed before
        spread = statistics.stdev(gaps) if len(gaps) > 1 else 0.0
        return f"{statistics.mean(gaps):+.1f} ± {spread:.1f}", statistics.mean(gaps) > spread

    leads = {left: lead([name for name in found if name not in peers], peers, left) for left in lefts}
    beyond = [f"{1 - left:.0%}" for left, (_, clear) in leads.items() if clear]
    words = ", ".join(f"{text} at {1 - left:.0%}" for left, (text, _) in leads.items())
    told = (
        f"Our best less the peer's best, on the same seed: {words}; beyond one standard deviation at "
        f"{', '.join(beyond) or 'none of them'}."
    )
    if not adaptive:
        return f"{told} AdapNet is not measured here yet."
    last, clear = lead(adaptive, one_shot, lefts[-1])
    return (
        f"{told} AdapNet less the best one-shot method of either at {1 - lefts[-1]:.0%}: {last}, "
        f"{'beyond' if clear else 'within'} one standard deviation."
    )


def met_alone(rows: Rows) -> str:
    """What AdapNet itself had left on average where others finished the cut for it; empty where it met all targets."""
    short: dict[float, list[float]] = {}
    for row in rows:
        if "macs_left_by_adapnet" in row and row["macs_left_by_adapnet"] > 1.02 * row["left"]:
            short.setdefault(row["left"], []).append(row["macs_left_by_adapnet"])
    return ", ".join(f"{statistics.mean(found):.0%} for {left:.0%}" for left, found in short.items())


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
