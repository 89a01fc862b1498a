"""The result of `benchmarks/pareto.py` as tables in Markdown and as a plot."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
RANDOM = "random"


def table(result: dict[str, Any]) -> str:
    """For each network and data set: test top-1 in per cent, mean ± standard deviation over the seeds, by how many
    multiply-adds went; the best of ours and of the peer's at each point are bold.
    """
    return "\n\n".join(_one(network, data, rows) for network, data, rows in cases(result))


def cases(result: dict[str, Any]) -> Iterator[tuple[str, str, Rows]]:
    """Each network and data set with its rows."""
    for network, data in dict.fromkeys((row["network"], row["data"]) for row in result["rows"]):
        yield network, data, [row for row in result["rows"] if (row["network"], row["data"]) == (network, data)]


Points = dict[str, dict[float, dict[int, float]]]


def points(rows: Rows) -> Points:
    """method -> share of the multiply-adds that stays -> seed -> top-1 in per cent."""
    found: Points = {}
    for row in rows:
        found.setdefault(row["method"], {}).setdefault(row["left"], {})[row["seed"]] = 100 * row["top1"]
    return found


def is_peer(method: str) -> bool:
    """Whether it is Torch-Pruning's."""
    return method.startswith("TP ")


def _sides(found: Points) -> tuple[Points, Points]:
    """Our methods and the peer's; what neither chose (random filters) is on no side."""
    ours = {name: values for name, values in found.items() if not is_peer(name) and name != RANDOM}
    return ours, {name: values for name, values in found.items() if is_peer(name)}


def _mean(values: dict[int, float]) -> float:
    return statistics.mean(values.values())


def _best(found: Points, left: float) -> str:
    """The method with the highest mean; none where no method was measured."""
    able = [method for method in found if left in found[method]]
    return max(able, key=lambda method: _mean(found[method][left]), default="")


def _one(network: str, data: str, rows: Rows) -> str:
    found = points(rows)
    untouched = found.pop("untouched", {}).get(1.0, {})
    lefts = sorted({left for values in found.values() for left in values}, reverse=True)
    ours, peers = _sides(found)
    best = {(name, left) for side in (ours, peers) for left in lefts for name in [_best(side, left)]}
    lines = [f"{network} on {data}; untouched, with the same epochs: {_spread(untouched)}", ""]
    lines.append(f"| MACs removed | {' | '.join(f'{1 - left:.0%}' for left in lefts)} | CPU s |")
    lines.append("|---" * (len(lefts) + 2) + "|")
    for method, values in found.items():
        cells = []
        for left in lefts:
            text = _spread(values.get(left, {}))
            cells.append(f"**{text}**" if (method, left) in best and text else text)
        seconds = statistics.mean(row["cpu_seconds"] for row in rows if row["method"] == method)
        lines.append(f"| {method} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def text(result: dict[str, Any]) -> str:
    """Tables and verdicts of all networks, and the budget."""
    parts = []
    for _, _, rows in cases(result):
        lines = f"{table({'rows': rows})}\n\n{verdict(rows)}"
        if short := met_alone(rows):
            lines += f" Where too few filters qualified in time, l1 took the rest: AdapNet alone came to {short}."
        if off := far_off(rows):
            lines += f" Where layers have few filters, one ratio for all comes only near the target: {off}."
        counts = {len(values) for lefts in points(rows).values() for values in lefts.values()}
        parts.append(f"{lines} {' or '.join(map(str, sorted(counts)))} seeds.")
    falling = f" (the last {result['falling']} along a cosine to nothing)" if result["falling"] else ""
    augment = "" if result["augment"] == "auto" else f", augmented by {result['augment']}"
    parts.append(
        f"{result['train_images']:,} training images{augment}; {result['start_epochs']} epochs before and "
        f"{result['epochs']} after{falling}, of which AdapNet changes the structure in "
        f"{result['adapnet']['max_epochs']} at most; CPU s is processor time for a network."
    )
    return "\n\n".join(parts)


def brief(result: dict[str, Any]) -> str:
    """A line for each network, data set and question: by how many points one side's best is above the other's."""
    lefts = sorted({row["left"] for row in result["rows"]} - {1.0}, reverse=True)
    shares = " | ".join(f"{1 - left:.0%}" for left in lefts)
    lines = [f"| network, data, seeds | points of top-1; MACs removed: | {shares} |", "|---" * (len(lefts) + 2) + "|"]
    for network, data, rows in cases(result):
        seeds = len({row["seed"] for row in rows})
        for question, some, others in _questions(rows):
            gaps = (_gap(some, others, left) for left in lefts)
            cells = [f"**{text}**" if clear else text for text, clear in gaps]
            lines.append(f"| {network}, {data}, {seeds} | {question} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(rows: Rows) -> str:
    """The same in words: mean and standard deviation of the difference on the same seed, in percentage points."""
    lefts = sorted({row["left"] for row in rows} - {1.0}, reverse=True)
    told = []
    for question, some, others in _questions(rows):
        gaps = {left: _gap(some, others, left) for left in lefts}
        words = ", ".join(f"{text} at {1 - left:.0%}" for left, (text, _) in gaps.items() if text)
        clear = ", ".join(f"{1 - left:.0%}" for left, (_, clear) in gaps.items() if clear)
        told.append(f"{question}: {words}; beyond one standard deviation at {clear or 'none'}.")
    return " ".join(told)


def _questions(rows: Rows) -> Iterator[tuple[str, Points, Points]]:
    """Whose best is held against whose, with the points of both."""
    found = points(rows)
    found.pop("untouched", None)
    ours, peers = _sides(found)
    adaptive = {name: values for name, values in ours.items() if name.startswith("adapnet")}
    sparse = {name: values for name, values in peers.items() if "group norm" in name}
    one_shot = {name: values for name, values in (ours | peers).items() if name not in adaptive | sparse}
    yield "Our best less the peer's best", ours, peers
    if adaptive:
        yield "AdapNet less the best one-shot method", adaptive, one_shot
    if RANDOM in found:
        yield "The best one-shot score less random filters", one_shot, {RANDOM: found[RANDOM]}


def _gap(some: Points, others: Points, left: float) -> tuple[str, bool]:
    """How far the best of some is above the best of others on the same seeds; whether beyond one standard deviation."""
    names = _best(some, left), _best(others, left)
    if not all(names):
        return "", False
    one, other = some[names[0]][left], others[names[1]][left]
    gaps = [one[seed] - other[seed] for seed in one if seed in other]
    mean = statistics.mean(gaps)
    if len(gaps) == 1:
        return f"{mean:+.1f}", False
    spread = statistics.stdev(gaps)
    return f"{mean:+.1f} ± {spread:.1f}", mean > spread


def met_alone(rows: Rows) -> str:
    """What AdapNet itself had left on average where others finished the cut for it; empty where it met all targets."""
    short: dict[float, list[float]] = {}
    for row in rows:
        if "macs_left_by_adapnet" in row and row["macs_left_by_adapnet"] > 1.02 * row["left"]:
            short.setdefault(row["left"], []).append(row["macs_left_by_adapnet"])
    return ", ".join(f"{statistics.mean(found):.0%} for {left:.0%}" for left, found in short.items())


def far_off(rows: Rows) -> str:
    """Methods whose networks have on average over two points more or fewer multiply-adds than were asked for."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        found.setdefault((row["method"], row["left"]), []).append(row["macs_left"])
    means = {key: statistics.mean(values) for key, values in found.items()}
    return ", ".join(
        f"{method} has {mean:.0%} for {left:.0%}" for (method, left), mean in means.items() if abs(mean - left) > 0.02
    )


def _spread(values: dict[int, float]) -> str:
    if not values:
        return ""
    return (
        f"{_mean(values):.1f} ± {statistics.stdev(values.values()):.1f}" if len(values) > 1 else f"{_mean(values):.1f}"
    )


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
                axes.axhline(_mean(whole[1.0]), color="black", linewidth=0.6, label="untouched")
            for method, values in found.items():
                lefts = sorted(values)
                means = [_mean(values[left]) for left in lefts]
                several = all(len(values[left]) > 1 for left in lefts)
                spreads = [statistics.stdev(values[left].values()) for left in lefts] if several else None
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
