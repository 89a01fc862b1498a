"""Train digits_cnn.safetensors on scikit-learn's digits: `python sample_models/train_digits.py` in the project's root.

1,295 images to train on, 143 to validate, 359 held out for the number at the end. Some seconds on two CPU cores.
"""

from dataclasses import replace

import torch

from compressor.loading.opening import open_model
from compressor.loading.saving import save_model
from compressor.training.data import open_data
from compressor.training.evaluate import evaluate
from compressor.training.events import EpochEvent, Event
from compressor.training.loop import fit
from compressor.training.settings import TrainSettings

ARCH = "sample:digits_cnn"
OUT = "sample_models/digits_cnn.safetensors"
SETTINGS = TrainSettings(epochs=40, batch_size=64, lr=0.05, label_smoothing=0.05)


def show(event: Event) -> None:
    if isinstance(event, EpochEvent):
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in event.row.items()})


def main() -> None:
    torch.manual_seed(SETTINGS.seed)
    data = open_data("digits")
    opened = open_model(None, arch=ARCH)
    fit(opened.module, data, SETTINGS, on_event=show)
    result = evaluate(opened.module.cpu(), data.test, data)
    print(f"test top-1 {result.top1:.4f} on {result.count} images")
    save_model(
        replace(opened, classes=data.classes, preparation=data.preparation),
        OUT,
        history=["python sample_models/train_digits.py"],
        measurements={"top1": result.top1},
        overwrite=True,
    )


if __name__ == "__main__":
    main()
