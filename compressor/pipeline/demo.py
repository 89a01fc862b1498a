"""The job that `compressor demo` shows: a small CNN on scikit-learn's digits, to half its multiply-adds."""

import json
from dataclasses import replace
from pathlib import Path

from compressor.errors import FileError
from compressor.methods.settings import PruneSettings
from compressor.pipeline.folder import SETTINGS
from compressor.pipeline.settings import FINETUNE, ModelSettings, OutputSettings, PruneJob

_MODEL = Path(__file__).resolve().parents[2] / "sample_models" / "digits_cnn.pt"


def demo_job(out: str, overwrite: bool, command: str) -> PruneJob:
    """The demo as a job; an earlier demo in the same folder may be replaced without asking.

    Raises:
        FileError: the sample model is not there.
    """
    if not _MODEL.is_file():
        raise FileError(f"the demo's model {_MODEL} is not here: run the demo in a clone of the repository")
    return PruneJob(
        ModelSettings(str(_MODEL)),
        OutputSettings(out, overwrite=overwrite or _holds_demo(Path(out))),
        PruneSettings(method="taylor", target_macs=0.5),
        data="digits",
        training=replace(FINETUNE, epochs=12),
        command=command,
    )


def _holds_demo(folder: Path) -> bool:
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("command") == "demo"
