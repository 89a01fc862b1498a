"""The metrics of a run as TensorBoard's event files; the package tensorboard is optional."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressor.errors import UsageError

FOLDER = "tensorboard"


def check_installed() -> None:
    """Raise UsageError where the package is missing, before a run begins."""
    if find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs the package tensorboard: pip install 'cnn-compressor[tensorboard]'")


class EventFiles:
    """Rows of metrics as scalars, `finetune/train_loss`, over optimizer steps."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / FOLDER), flush_secs=10)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write every number of a row."""
        phase, step = row.get("phase", "training"), int(row.get("step", row.get("epoch", 0)))
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "epoch"):
                self._writer.add_scalar(f"{phase}/{name}", value, step)
        self._writer.flush()
