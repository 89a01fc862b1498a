"""The results of `benchmarks/adapnet_variants.py` as a table in Markdown."""

import statistics
from typing import Any

BASE = "one-shot"  # what others are compared with


def table(result: dict[str, Any]) -> str:
    """Test top-1 in per cent and, in points, how far that is above one-shot, seed by seed; means over the seeds."""
    rows = result["rows"]
    lefts = sorted({row["left"] for row in rows}, reverse=True)
    base = {(row["left"], row["seed"]): row["top1"] for row in rows if row["arm"] == BASE}
    seeds = len({row["seed"] for row in rows})
    spread = "1 seed" if seeds == 1 else f"{seeds} seeds where a spread stands"
    lines = [
        f"{result['network']} on {result['data']}: {result['train_images']:,} training images, {result['epochs']} "
        f"epochs in batches of {result['batch_size']}, {spread}; "
        f"{result['machine']}, torch {result['versions']['torch']}.",
        "",
        f"| MACs left | {' | '.join(f'{left:.0%}' for left in lefts)} | CPU s |",
        "|---" * (len(lefts) + 2) + "|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        cells = []
        for left in lefts:
            at = [row for row in own if row["left"] == left and (left, row["seed"]) in base]
            leads = [100 * (row["top1"] - base[left, row["seed"]]) for row in at]
            lead = "" if arm == BASE or not at else f" ({_spread(leads, '+.1f')})"
            cells.append(f"{_spread([100 * row['top1'] for row in at], '.1f')}{lead}" if at else "")
        seconds = statistics.mean(row["cpu_seconds"] for row in own)
        lines.append(f"| {arm} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    mean = format(round(statistics.mean(values), 1) + 0.0, form)  # no "-0.0"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean
