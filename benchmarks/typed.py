"""Carry out commands as a page prints them, and take the report of the last one."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def report_of(commands: Sequence[str], places: Mapping[str, Path]) -> dict[str, Any]:
    """The report of the last command, with the names that stand in the commands.

    `places` says where lies what a command calls by such a name; the runs' folders, `runs/NAME`, go when it returns.
    """
    with tempfile.TemporaryDirectory() as folder:
        real = {name: str(place.resolve()) for name, place in places.items()} | {"runs/": f"{folder}/"}
        words: list[str] = []
        for command in commands:
            words = command.removeprefix("compressor ").split()
            for name, place in real.items():
                words = [word.replace(name, place) for word in words]
            subprocess.run([sys.executable, "-m", "compressor", *words], check=True)
        text = (Path(words[words.index("--out") + 1]) / "report.json").read_text()
    for name, place in real.items():
        text = text.replace(place, name)
    report: dict[str, Any] = json.loads(text)
    return report
