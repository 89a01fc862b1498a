"""Run a command as a person would, and compare all it prints with a file, numbers that vary made equal."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
Patterns = tuple[tuple[str, str], ...]  # regular expression -> what stands in its place
RENEW = bool(os.environ.get("RENEW_GOLDEN"))  # write the files anew instead of comparing

# What depends on the machine, its speed, or the last bits of a sum.
VARIES: Patterns = (
    (r"^epoch .* left\n", ""),  # a line within an epoch, where that takes long
    (r"^[a-zA-Z ,]+ \d+/\d+\n", ""),  # one within a step
    (r"[\d,]+ images/s", "N images/s"),
    (r"\d\.?\d*e-\d\d", "E"),
    (r"[\d.]+ ms\b", "T ms"),
    (r"about [\d:]+ on", "about T on"),
    (r"[\d.]+ [kMG]B\b", "SIZE"),
    (r"[\d,]+ bytes", "SIZE"),
    (r"loss [\d.]+", "loss L"),
    (r"(top-1|validation)(\s+)[\d.]+( ?%)", r"\1\2P\3"),
    (r"(right after pruning: )[\d.]+%", r"\1P%"),
    (r"(test top-1).*", r"\1 ..."),
    (r"(the largest error on images held back has [\w.]+: ).*", r"\1..."),
    (r"(latency (?:torch|ONNX Runtime)).*", r"\1 ..."),
    (r"\d+ threads?\b", "N threads"),
    (r"--out (deploy|runs/small)-\d+$", r"--out \1"),  # where a run by hand left such a folder
)


@dataclass
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str


class Compressor:
    """The command line, called inside this process: `compressor("profile", "model.safetensors")`."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys = capsys
        self.folder = folder  # a fresh one for results

    def __call__(self, *arguments: str) -> Ran:
        from compressor.cli import main

        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        seen = self._capsys.readouterr()
        return Ran(left.value.code, seen.out, seen.err)


def normal(text: str, folder: Path, also: Patterns = ()) -> str:
    """The text with everything that varies made equal, and at most 80 columns wide as it was printed."""
    text = text.replace(str(folder), "OUT").replace(str(ROOT), "ROOT")
    for pattern, same in (*VARIES, *also):
        text = re.sub(pattern, same, text, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip() + "\n"


def check_golden(name: str, ran: Ran, folder: Path, also: Patterns = ()) -> None:
    """Compare exit code, stdout and stderr with the file of that name; `also` varies in this one."""
    out, err = (normal(text, folder, also) for text in (ran.out, ran.err))
    found = f"exit {ran.code}\n\n--- stdout\n{out}\n--- stderr\n{err}"
    path = GOLDEN / f"{name}.txt"
    if RENEW:
        path.write_text(found, encoding="utf-8")
    expected = path.read_text(encoding="utf-8") if path.exists() else ""
    assert found == expected, f"{path.name} says otherwise; if it is meant so: RENEW_GOLDEN=1 pytest tests/cli"
