"""Settings under the names by which they are typed."""

import re
from functools import cache

from compressor.runs.jobs import VERBS
from compressor.settings import known_to


def flag(name: str) -> str:
    """How a setting is typed; the model is no flag."""
    return "MODEL" if name == "model" else f"--{name.strip('_').replace('_', '-')}"


def as_typed(text: str) -> str:
    """A text with every setting that stands in backquotes as it is typed: `target_macs` becomes --target-macs."""
    return re.sub(r"`(\w+)`", lambda found: flag(found[1]) if found[1] in _settings() else found[0], text)


@cache
def _settings() -> frozenset[str]:
    """The names of all settings of all verbs."""
    return frozenset(name for kinds in VERBS.values() for kind in kinds for name in known_to(kind))
