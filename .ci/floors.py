"""Print every dependency of pyproject.toml at its lowest version, as constraints for pip (`make floors`).

torch and torchvision are at the versions of constraints.txt: their lowest have no CPU build everywhere, and a test that
fetches gigabytes would not be run.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)

for dependency in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
    name, _, lowest = re.split(r"(>=)", dependency)
    print(f"{name}=={PINNED.get(name, lowest)}")
