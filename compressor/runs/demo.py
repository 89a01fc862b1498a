"""The job that `compressor demo` shows: AdapNet on a small CNN for scikit-learn's digits, to half its multiply-adds."""

from dataclasses import replace
from pathlib import Path

from compressor.errors import FileError
from compressor.loading.arch import SAMPLE_FOLDER
from compressor.pruning.adapnet.settings import PRESETS
from compressor.runs.folder import read_settings
from compressor.runs.jobs import AdaptJob
from compressor.runs.settings import GoalSettings, ModelSettings, OutputSettings

_MODEL = SAMPLE_FOLDER / "digits_cnn.safetensors"

# Smaller batches make more of few images: a period is then an epoch. The target ends the changes after 10 to 13 epochs.
_SETTINGS = replace(PRESETS["quick"], batch_size=64, max_epochs=16, finetune_epochs=6)


def demo_job(out: str, overwrite: bool, command: str) -> AdaptJob:
    """The demo as a job; an earlier demo in the same folder may be replaced without asking.

    Raises:
        FileError: the sample model is not there.
    """
    if not _MODEL.is_file():
        raise FileError(f"the demo's model {_MODEL} is not here: install compressor again")
    return AdaptJob(
        ModelSettings(str(_MODEL)),
        "digits",
        OutputSettings(out, overwrite=overwrite or _holds_demo(Path(out))),
        goals=GoalSettings(target_macs=0.5, round_to=8),  # the same on every machine
        preset="quick",
        adapnet=_SETTINGS,
        command=command,
    )


def _holds_demo(folder: Path) -> bool:
    try:
        return read_settings(folder).get("command") == "demo"
    except FileError:
        return False
