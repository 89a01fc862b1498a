"""The results of `benchmarks/surgery.py` as Markdown."""

from statistics import median
from typing import Any

Result = dict[str, Any]


def zoo(result: Result) -> str:
    """How many networks each tool prunes, and ours that fail, by name."""
    lines = ["| networks | ours: pruned | whole, with reasons | failed | Torch-Pruning: pruned and smaller | failed |"]
    lines.append("|---|---|---|---|---|---|")
    for library in ("torchvision", "timm"):
        rows = {name: row for name, row in result["networks"].items() if name.startswith(library)}
        ours = _statuses(rows, "ours")
        theirs = _statuses(rows, "torch_pruning")
        ran = sum(theirs.values())
        peer = f"{theirs.get('pruned', 0)} of {ran}" if ran else "not run"
        lines.append(
            f"| {library} ({len(rows)}) | {ours.get('pruned', 0)} | {ours.get('whole', 0)} | {_failed(ours)} | {peer} "
            f"| {_failed(theirs) if ran else ''} |"
        )
    bad = [
        name for name, row in result["networks"].items() if row.get("ours", {}).get("status") in ("failed", "crashed")
    ]
    lines.append(f"\nOurs that fail: {', '.join(bad) if bad else 'none'}. {_edited(result)}")
    lines.append(f"{_peer_failures(result)}{where(result)}")
    return "\n".join(lines)


def _edited(result: Result) -> str:
    """On how many networks merges and insertions left the outputs as they were."""
    rows = {name: row["edits"] for name, row in result["networks"].items() if "edits" in row}
    if not rows:
        return ""
    counts = _statuses(result["networks"], "edits")
    bad = [name for name, row in rows.items() if row["status"] in ("failed", "crashed")]
    none = f"; {counts['whole']} have no group that allows it" if "whole" in counts else ""
    return (
        "A filter inserted and taken out again, two equal ones merged, in every group that allows it: the same outputs "
        f"and tensors on {counts.get('edited', 0)} of {len(rows)}{none}; failed: {', '.join(bad) if bad else 'none'}."
    )


def _peer_failures(result: Result) -> str:
    """Why Torch-Pruning fails where it does: by time, in training mode, or else by an exception."""
    rows = [row["torch_pruning"] for row in result["networks"].values() if "torch_pruning" in row]
    why = [row["failures"][0] for row in rows if row["failures"]]
    slow, broken = (sum(text.startswith(start) for text in why) for start in ("took longer", "does not run in"))
    if not why:
        return ""
    limit = result["limit_cpu_s"]
    return (
        f"Torch-Pruning's: {slow} by the limit of {limit} CPU seconds a network, which holds for both, {broken} do not "
        f"run in training mode any more, {len(why) - slow - broken} stop with an exception (each in the result file)"
        f"{_measured_before(result)}. "
    )


def _measured_before(result: Result) -> str:
    """Where the peer was measured, if elsewhere."""
    before = result.get("torch_pruning_measured")
    return f", measured on {before['machine']}, torch {before['versions']['torch']}" if before else ""


def speed(result: Result) -> str:
    """Seconds of both tools on the networks that one looks for and on the hard ones, and the range over all."""
    rows = result["networks"]
    lines = ["| network | ours | Torch-Pruning | times faster |", "|---|---|---|---|"]
    named = ("resnet50", "densenet121", "mobilenet_v3_small", "efficientnet_b0", "vgg11_bn", "convnext_tiny",
             "hrnet_w18_small", "convnext_atto", "Unet", "PSPNet")  # fmt: skip
    for name, row in rows.items():
        if name.partition(":")[2] in named:
            seconds = f"{row['ours']:.2f} s | {row['torch_pruning']:.2f} s | {row['ratio']:.1f}"
            lines.append(f"| {name.partition(':')[2]} | {seconds} |")
    both = {name: row for name, row in rows.items() if "torch_pruning_error" not in row}
    slower = [f"{name.partition(':')[2]} ({row['ratio']:.1f})" for name, row in both.items() if row["ratio"] < 1]
    lines.append(
        f"\nMeasured on {len(rows)} of the {result['of']} networks of torchvision, timm and "
        f"segmentation_models_pytorch in benchmarks/networks.py; on the {len(both)} on which both succeed the median "
        f"is {median(row['ratio'] for row in both.values()):.1f} times; "
        f"slower on {', '.join(slower) if slower else 'none'}. Medians of {result['rounds']} rounds. {where(result)}"
    )
    if "editing" in result:
        found = result["editing"]
        lines.append(
            "\nA plan applied in the middle of training (ResNet-50 with momentum; a sixteenth of a group "
            f"pruned, a pair merged, a channel inserted): {found['one_group_median'] * 1e3:.0f} ms in the median over "
            f"{found['groups']} groups, {found['one_group_largest'] * 1e3:.0f} ms at most, "
            f"{found['all_groups_at_once_median'] * 1e3:.0f} ms for all groups in one plan, "
            f"where a plain copy of the same tensors takes {found['plain_copy_median'] * 1e3:.0f}; CPU time, "
            f"{found['rounds']} rounds."
        )
    return "\n".join(lines)


def _statuses(rows: dict[str, Any], tool: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows.values():
        if tool in row:
            status = row[tool]["status"]
            status = "failed" if row[tool].get("failures") else status
            found[status] = found.get(status, 0) + 1
    return found


def _failed(statuses: dict[str, int]) -> int:
    return statuses.get("failed", 0) + statuses.get("crashed", 0)


def where(result: Result) -> str:
    return f"{result['machine']}; torch {result['versions']['torch']}, Torch-Pruning {result['torch_pruning']}."
