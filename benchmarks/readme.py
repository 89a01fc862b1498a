"""Write the results of benchmarks/results into README.md and docs, between the lines that name them; draw real.svg.

    python -m benchmarks.readme            # rewrites the pages
    python -m benchmarks.readme --check    # exit code 1 where a page and the result files disagree

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; `BLOCKS` says which function fills which.
"""

import argparse
import errno
import json
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import (
    adapnet_show,
    adapnet_small,
    adapnet_time,
    detector,
    editable,
    growth,
    int8_ways,
    kinds,
    large_images,
    loop,
    onnx_in,
    pareto_show,
    real_costs,
    real_show,
    routing_published,
    runtimes_show,
    segmenter,
    surgery_show,
    watch,
    without_data,
)
from benchmarks import adapnet_tables as paper_tables
from benchmarks import blocks as block_costs
from benchmarks import cnsn as cnsn_benchmark
from benchmarks import exits as exits_together
from benchmarks import latency as latency_targets
from benchmarks import nsn as nsn_benchmark
from benchmarks import primenet as primenet_benchmark
from benchmarks import promises as promise_splits
from benchmarks import routing as routing_benchmark
from benchmarks import widths as width_times
from benchmarks.first_run import command
from compressor.report.report import Report
from compressor.report.tables import before_after_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_WIDTH = 120


def demo() -> str:
    """The table that `make demo` printed."""
    return _run_table("demo.json")


def first_run() -> str:
    """The table that README's first command printed, and what is promised of fresh images."""
    result = _read("first.json")
    if result["typed"] != command():
        raise FileNotFoundError(errno.ENOENT, "measured with another command", "first.json")
    certificate = Report.from_json(result).after.certificate
    promised = [] if certificate is None else [certificate.words()]
    words = " ".join([*promised, f"{round(result['seconds'] / 60)} minutes in all."])
    return f"{_run_table('first.json')}\n\n{words}"


def first() -> str:
    """A published ResNet-56 at half its MACs, ours and the peer's."""
    return real_show.table(_read("real-resnet56.json"))


def fashion() -> str:
    """A quarter-width VGG-11 on Fashion-MNIST at half its MACs, with the commands."""
    report = _read("fashion_vgg11.json")
    commands = "\n".join(f"    {command}" for command in report["commands"])
    return f"{commands}\n\n{_run_table('fashion_vgg11.json')}"


def zoo() -> str:
    """How many networks each tool prunes, and ours that fail, by name."""
    return surgery_show.zoo(_read("zoo.json"))


def speed() -> str:
    """Seconds of both tools on the networks that one looks for, and the range over all."""
    return surgery_show.speed(_read("speed.json"))


def real() -> str:
    """Trained networks of others, cut by ours, AdapNet and the peer."""
    return "\n\n".join(real_show.table(result) for result in _trained())


def _trained() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("real-*.json"))]


def latency() -> str:
    """What targets of time reach."""
    return latency_targets.table(_read("latency.json"))


def widths() -> str:
    """How fast half of the multiply-adds is."""
    return width_times.table(_read("widths.json"))


def adapnet() -> str:
    """AdapNet against one-shot l1 and the untouched network, over seeds."""
    return adapnet_small.text(_read("adapnet-small.json"))


def adapnet_trained() -> str:
    """The same from a trained network."""
    return adapnet_small.text(_read("adapnet-small-trained.json"))


def adapnet_variants() -> str:
    """AdapNet, its controls and variants of it against one-shot pruning with the same help."""
    paths = sorted(RESULTS.glob("adapnet-variants-*.json"), reverse=True)
    return "\n\n".join(adapnet_show.table(json.loads(path.read_text())) for path in paths)


def adapnet_growth() -> str:
    """A network that is too narrow in places, and what grows it."""
    return growth.table(_read("growth.json"))


def adapnet_tables() -> str:
    """The paper's tables at a small scale, ours beside the paper's."""
    paths = [RESULTS / f"adapnet-table-{number}-small.json" for number in paper_tables.NUMBERS]
    return paper_tables.text([json.loads(path.read_text()) for path in paths if path.exists()])


def cnsn() -> str:
    """CNSN's sub-models beside the same ones trained alone."""
    return cnsn_benchmark.table(_read("cnsn-cpu.json"))


def exits() -> str:
    """Ways to train the exits of one network, beside each trained alone."""
    return "\n\n".join(exits_together.table(_read(name)) for name in ("exits.json", "exits-resnet20.json"))


def nsn() -> str:
    """NSN beside the paper's figures."""
    return nsn_benchmark.table(_read("nsn-cpu.json"))


def primenet() -> str:
    """PrimeNet's errors beside the paper's, and what a step of training takes."""
    return primenet_benchmark.table(_read("primenet-cpu.json"))


def routing() -> str:
    """Routing beside the unrouted network, fixed depths and early exit, and the paper's networks."""
    result = _read("routing-cpu.json")
    budget = result["budget"]
    return (
        f"{routing_benchmark.table(result)}\n\n{budget['images']:,} training images, the whole test set; "
        f"{result['machine']}; torch {result['versions']['torch']}, onnxruntime {result['versions']['onnxruntime']}."
    )


def submodels() -> str:
    """The methods of several depths and PrimeNet beside their papers, a line each."""
    lines = ["| method, network, data | budget | ours | its paper |", "|---|---|---|---|"]
    for row in _read("cnsn-cpu.json")["rows"]:
        budget = f"{row['epochs']} epochs, {row['images']:,} images"
        alone = f"; each alone {_list(row['alone_top1'])}" if row["alone_top1"] else ""
        ours = f"{_list(row['top1'])}{alone}"
        lines.append(f"| CNSN, quarter VGG-16, {row['data']} | {budget} | {ours} | CIFAR-10 only |")
    for row in _read("nsn-cpu.json")["rows"]:
        ours, paper = _list(row["top1"]), _list(row["paper_top1"])
        lines.append(f"| NSN, 784-784-784-10, {row['data']} | {row['epochs']} epochs | {ours} | {paper}, 600 epochs |")
    result = _read("routing-cpu.json")
    for row in (each for each in result["rows"] if "goal" in each):
        budget, saved, top1 = result["budget"], row["goal"]["macs_saved"], row["router"]["top1"]
        done = f"{budget['epochs']} + {budget['more_epochs']} epochs, {budget['images']:,} images"
        ours = f"{top1:.4f} at {saved:.0%} fewer MACs; unrouted {row['unrouted']['top1']:.4f}"
        data, _, network = row["name"].partition(", ")
        lines.append(f"| routing, {network}, {data} | {done} | {ours} | – |")
    result = _read("primenet-cpu.json")
    for row in result["rows"]:
        error, budget, paper = row["error_percent"], row["budget"], result["paper"]["error_percent"].get(row["data"])
        done = f"{budget['epochs']} + {budget['retrain_epochs']} epochs, {row['train_images']:,} images"
        ours = f"error {error['static, rest retrained']:.2f} %, end to end {error['end to end']:.2f} %"
        theirs = "–" if paper is None else f"{paper:.2f} %, 100 + 50 epochs, all images"
        lines.append(f"| PrimeNet, {budget['width']:g} of its width, {row['data']} | {done} | {ours} | {theirs} |")
    return "\n".join(lines)


def _list(fractions: list[float]) -> str:
    return " / ".join(f"{fraction:.4f}" for fraction in fractions)


def export() -> str:
    """Packages against flat files and against earlyon: sizes, memory, and the time of every exit."""
    result = _read("export.json")
    pages = []
    for key, title in (("detach", "VGG-16, 32x32, four sub-models"), ("route", "ResNet-18, 224x224, three exits")):
        part = result[key]
        ways = [way for way in part["exits"][0]["ms"] if way in part["disk"] or way in part["memory"]]
        exits = [f"{row['exit']}, {row['macs'] / 1e6:.0f} MMAC" for row in part["exits"]]
        pages += [f"| {title} | disk | memory | {' | '.join(exits)} |", "|---" * (3 + len(exits)) + "|"]
        for way in ways:
            disk = part["disk"].get(way, part["disk"]["package"])
            cells = [f"{disk / 1e6:.1f} MB", f"{part['memory'][way] / 1e6:.0f} MB" if "memory_in" in result else "–"]
            cells += [_against_flat(row["ms"], way) for row in part["exits"]]
            pages.append(f"| {_WAYS[way]} | {' | '.join(cells)} |")
        pages.append("")
    peer = result["route"]["earlyon"]
    versions = result["versions"]
    pages.append(
        f"Exits: CPU time of one thread against a flat file of that exit alone, ratio of medians of {result['rounds']} "
        f"runs in turn. Memory (PSS): {result.get('memory_in', 'to be measured again')}. {result['machine']}; "
        f"onnxruntime {versions['onnxruntime']}, earlyon {peer}; one run."
    )
    return "\n".join(pages)


_WAYS = {
    "flat": "a file for each exit",
    "package": "package",
    "tuned": "package, after `compressor tune`",
    "least memory": "package, least memory",
    "earlyon": "earlyon",
}


def _against_flat(ms: dict[str, float], way: str) -> str:
    return f"{ms[way]:.1f} ms" if way == "flat" else f"{ms[way] / ms['flat']:.2f}x"


def faults() -> str:
    """Every fault that the tests try, and what comes of it where all of them passed."""
    result = _read("faults.json")
    lines = ["| fault | outcome | tests |", "|---|---|---|"]
    for row in result["rows"]:
        counts = row["tests"]
        whole = set(counts) == {"passed"}
        outcome = row["outcome"] if whole else f"**not held**: {counts.get('failed', 0)} tests fail"
        if not whole and "failed" not in counts:
            outcome = f"{row['outcome']} ({counts['skipped']} not run here)"
        lines.append(f"| {row['fault']} | {outcome} | {sum(counts.values())} |")
    return "\n".join([*lines, "", f"`{result['command']}`, {result['machine']}, torch {result['versions']['torch']}."])


def mutants() -> str:
    """How many of the faults that were planted in each room the fast tests notice."""
    result = _read("mutants.json")
    lines = ["| planted in | faults | noticed | not noticed: harmless | others |", "|---|---|---|---|---|"]
    rooms: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        room = "/".join(row["file"].split("/")[1:-1])
        rooms.setdefault(room, []).append(row)
    for room, rows in [*sorted(rooms.items()), ("all", result["rows"])]:
        noticed, harmless = sum(row["noticed"] for row in rows), sum("harmless" in row for row in rows)
        share = f" ({noticed / len(rows):.1%})" if room == "all" else ""
        others = len(rows) - noticed - harmless
        lines.append(f"| {room} | {len(rows)} | {noticed}{share} | {harmless} | {others} |")
    kinds = Counter(row["kind"] for row in result["rows"])
    tried = "" if result["planned"] == len(result["rows"]) else f" of {result['planned']} planned"
    told = (
        f"{kinds['known']} of kinds that no test once saw, {kinds['careless']} that a careless change would make, "
        f"{kinds['drawn']} drawn (seed {result['seed']}){tried}. `{result['command']}`, {result['machine']}, torch "
        f"{result['versions']['torch']}."
    )
    return "\n".join([*lines, "", told])


def _run_table(name: str) -> str:
    report = Report.from_json(_read(name))
    console = Console(width=76, file=open("/dev/null", "w"), record=True)  # noqa: PTH123, SIM115 - a sink
    console.print(before_after_table(report))
    console.file.close()
    table = "\n".join(f"    {line}".rstrip() for line in console.export_text().splitlines())
    versions = report.versions
    where = f"{report.device}; torch {versions['torch']}, onnxruntime {versions['onnxruntime']}; one run."
    return table.strip("\n") + "\n\n" + where


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def pareto() -> str:
    """Accuracy at four costs beside Torch-Pruning's, and what came of it."""
    result = _read("pareto-small.json")
    return f"{pareto_show.text(result)} {surgery_show.where(result)}"


def pareto_brief() -> str:
    """Who is ahead of whom, and by how much."""
    result = _read("pareto-small.json")
    return f"{pareto_show.brief(result)}\n\n{surgery_show.where(result)}"


def training() -> str:
    """The training loop beside a plain one, evaluation, and what AdapNet adds."""
    result = _read("training-cpu.json")
    speed, found = result["images_per_second"], result["adapnet"]
    shares = [f"{name.removeprefix('aten::')} {share:.0%}" for name, share in result["profile"].items()]
    return (
        f"{speed['ours']:,} images/s against {speed['plain']:,} of the plain loop ({result['ours_over_plain']:.2f} "
        f"times) and {speed['bare']:,} of bare steps on batches that lie ready; evaluation "
        f"{result['evaluation_ours_over_plain']:.2f} times a plain loop's speed. AdapNet adds {found['added']:.0%} to "
        f"its epochs ({found['periods']} periods of {found['steps_a_period']} steps, one run). Where the time goes: "
        f"{', '.join(shares[:4])}. {result['network']}, medians of {result['rounds']} rounds, processor time. "
        f"{result['machine']}; torch {result['versions']['torch']}."
    )


def int8() -> str:
    """Time and size of a ResNet-18, and accuracy of every exit of a small network."""
    result = _read("int8.json")
    names = {"float32": "float32", "defaults": "INT8, the quantizer's defaults", "x86": "INT8, `--chip x86`"}
    base = result["resnet18"]["float32"]["ms"]
    lines = ["| ResNet-18, 224x224 | size | latency | times as fast |", "|---|---|---|---|"]
    for name, words in names.items():
        row = result["resnet18"][name]
        lines.append(f"| {words} | {row['bytes'] / 1e6:.1f} MB | {row['ms']:.1f} ms | {base / row['ms']:.1f} |")
    exits = ", ".join(f"{each['name']} {each['top1_float']:.2%} to {each['top1']:.2%}" for each in result["digits"])
    told = (
        f"Top-1 on the test images of `digits` before and after, two sub-models: {exits}. Times: CPU time "
        f"of one thread, medians of {result['rounds']} runs in turn. {result['machine']}; onnxruntime "
        f"{result['versions']['onnxruntime']}; one run."
    )
    return "\n".join([*lines, "", told])


def watched() -> str:
    """What watching a certificate costs, and how soon it speaks."""
    return watch.words(_read("watch.json"))


def promises() -> str:
    """How often promises are broken, and what they cost."""
    return promise_splits.table(_read("promises.json"))


BLOCKS: dict[str, Callable[[], str]] = {
    "first": first,
    "first_run": first_run,
    "demo": demo,
    "fashion": fashion,
    "zoo": zoo,
    "speed": speed,
    "pareto": pareto,
    "pareto_brief": pareto_brief,
    "training": training,
    "export": export,
    "real": real,
    "real_costs": lambda: real_costs.table(
        _read("real_costs.json"), {each["network"]: each["rows"] for each in _trained()}
    ),
    "segmenter": lambda: segmenter.table(_read("segmenter.json")),
    "editable": lambda: editable.table(_read("editable.json")),
    "loop": lambda: loop.words(_read("loop.json")),
    "large_images": lambda: large_images.words(_read("large_images.json")),
    "widths": widths,
    "latency": latency,
    "blocks": lambda: block_costs.table(_read("blocks.json")),
    "without_data": lambda: without_data.table(_read("without_data.json")),
    "detector": lambda: detector.table(_read("detector.json")),
    "kinds": lambda: kinds.table(_read("kinds.json")),
    "adapnet": adapnet,
    "adapnet_trained": adapnet_trained,
    "adapnet_tables": adapnet_tables,
    "adapnet_variants": adapnet_variants,
    "adapnet_growth": adapnet_growth,
    "adapnet_time": lambda: adapnet_time.words(_read("adapnet_time.json")),
    "faults": faults,
    "mutants": mutants,
    "submodels": submodels,
    "cnsn": cnsn,
    "nsn": nsn,
    "primenet": primenet,
    "routing": routing,
    "routing_published": lambda: routing_published.table(_read("routing-resnet20.json")),
    "exits": exits,
    "int8": int8,
    "int8_ways": lambda: int8_ways.table(_read("int8_ways.json")),
    "onnx_in": lambda: onnx_in.words(_read("onnx_in.json")),
    "promises": promises,
    "watch": watched,
    "runtimes": lambda: runtimes_show.table(_read("runtimes.json")),
}


def filled(text: str) -> str:
    """The page with every block written anew from its result file; a block without a file says so."""

    def block(match: re.Match[str]) -> str:
        name = match.group(1)
        try:
            content = BLOCKS[name]()
        except FileNotFoundError as error:
            content = f"(not measured yet: {Path(error.filename).name} is missing)"
        lines = (wrapped for line in content.splitlines() for wrapped in _wrapped(line))
        return f"<!-- begin {name} -->\n" + "\n".join(lines) + f"\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", block, text, flags=re.S)


def _wrapped(line: str) -> list[str]:
    """A line of prose as several; tables and indented lines as they are."""
    return [line] if line.startswith(("|", "    ")) or not line else textwrap.wrap(line, _WIDTH, break_on_hyphens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    wrong = []
    if not check:
        peer = real_show.best_recipe(_read("real-resnet20.json"))
        real_show.draw([each for each in _trained() if "resnet" in each["network"]], peer, RESULTS / "real.svg")
    for path in PAGES:
        text = path.read_text()
        new = filled(text)
        if new != text and check:
            wrong.append(str(path.relative_to(ROOT)))
        elif new != text:
            path.write_text(new)
    if wrong:
        sys.exit(f"{', '.join(wrong)} and benchmarks/results disagree: run python -m benchmarks.readme")


if __name__ == "__main__":
    main()
