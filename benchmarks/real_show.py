"""The results of `benchmarks/real.py` as tables in Markdown and as a picture."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def best_recipe(result: dict[str, Any]) -> str:
    """The peer's recipe with the highest validation top-1 after fine-tuning, on average over the targets and seeds that
    all recipes were measured at.
    """
    found: dict[str, dict[tuple[float, int], float]] = {}
    for row in result["rows"]:
        if row["arm"].startswith("TP ") and "+" not in row["arm"]:
            found.setdefault(row["arm"], {})[row["left"], row["seed"]] = row["validation_top1"]
    shared = set.intersection(*map(set, found.values()))
    return max(found, key=lambda arm: statistics.mean(found[arm][cell] for cell in shared))


def table(result: dict[str, Any]) -> str:
    """Test top-1 in per cent, right after the cut / fine-tuned, mean and standard deviation over the seeds."""
    rows: Rows = result["rows"]
    lefts = sorted({row["left"] for row in rows} - {1.0}, reverse=True)
    dense = [row for row in rows if row["arm"] == "dense"]
    seeds, images = len({row["seed"] for row in rows}), result["train_images"]
    images = images if images == "all" else f"{images:,}"
    lines = [
        f"{result['network']} on {result['data']}: {_top1(dense, 'untrained_top1')} as it came, "
        f"{_top1(dense, 'top1')} fine-tuned. {images} training images, {result['epochs']} epochs, "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}; {result['machine']}, Torch-Pruning {result['torch_pruning']}.",
        "",
        f"| MACs left | {' | '.join(f'{left:.0%}' for left in lefts)} | CPU s of the cut |",
        "|---" * (len(lefts) + 2) + "|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"] != "dense"):
        own = [row for row in rows if row["arm"] == arm]
        cells = [_cell([row for row in own if row["left"] == left]) for left in lefts]
        lines.append(f"| {arm} | {' | '.join(cells)} | {statistics.mean(row['cut_cpu_seconds'] for row in own):.0f} |")
    return "\n".join(lines)


def _cell(rows: Rows) -> str:
    if not rows:
        return ""
    left = statistics.mean(row["macs_left"] for row in rows)
    off = "" if abs(left - rows[0]["left"]) < 0.015 else f" ({left:.0%} left)"
    return f"{measured(rows)}{off}"


def measured(rows: Rows) -> str:
    """Test top-1 in per cent right after the cut / fine-tuned."""
    return f"{_top1(rows, 'untrained_top1')} / {_top1(rows, 'top1')}"


def _top1(rows: Rows, key: str) -> str:
    values = [100 * row[key] for row in rows if row[key] is not None]
    return _spread(values) if values else "-"


def _spread(values: Iterable[float]) -> str:
    values = list(values)
    text = f"{statistics.mean(values):.1f}"
    return f"{text} ± {statistics.stdev(values):.1f}" if len(values) > 1 else text


def draw(results: list[dict[str, Any]], peer: str, path: Path) -> None:
    """A panel for each network: test top-1 over the multiply-adds left, ours and the peer's recipe, with and without
    training, from the whole network on; means over the seeds.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "compressor", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(3.6 * len(results), 3.0), layout="constrained")
        for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results):
            for arm, label, colour in (("ours", "compressor", "#0b57d0"), (peer, "Torch-Pruning", "#c4561b")):
                for key, words, style in (("top1", "fine-tuned", "o-"), ("untrained_top1", "as cut", "o:")):
                    line = _line(result["rows"], arm, key)
                    axes.plot(*zip(*line), style, color=colour, markersize=3.5, label=f"{label}, {words}")
            axes.set(title=f"{result['network']}, {result['data']}", xlabel="MACs left, %")
            axes.invert_xaxis()
            axes.grid(alpha=0.3)
        first = figure.axes[0]
        first.set_ylabel("test top-1, %")
        first.legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None})


def _line(rows: Rows, arm: str, key: str) -> list[tuple[float, float]]:
    """(share of the multiply-adds left, top-1), both in per cent."""
    own = [row for row in rows if row["arm"] in ("dense", arm) and row[key] is not None]
    lefts = sorted({row["left"] for row in own}, reverse=True)
    at = {left: [row for row in own if row["left"] == left] for left in lefts}
    return [
        (100 * statistics.mean(row["macs_left"] for row in each), 100 * statistics.mean(row[key] for row in each))
        for each in at.values()
    ]
